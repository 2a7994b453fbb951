"""The record of a run in a sweep: a file in the run's work directory.

It holds what the run's other files do not: the point of the sweep, the number of attempts, and the
reason of a failure. Whether a run has finished also follows from its last checkpoint
(`is_finished`): if the sweep is killed before it writes the record, the run is not repeated.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax import storage
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.rundir import failure, lock
from vit_jax.rundir import workdir as workdirs

RECORD = "sweep.json"
JOB = "slurm_job.txt"
LOG = "log.txt"  # Output of all processes of the run.

# blocked: its trunk failed, so it cannot start.
STATUSES = ("waiting", "running", "stopped", "finished", "failed", "blocked")
_LARGEST = 2**20  # Bytes.


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a run.

    Attributes:
      name: name of the run.
      values: settings of its point, see `vit_jax.sweeps.plan.PlannedRun`.
      branch_of: the run and the step whose state it starts from, or None.
      status: one of STATUSES.
      attempts: number of processes that were started.
      error: why it failed, stopped or is blocked; else "".
    """

    name: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    branch_of: tuple[str, int] | None = None
    status: str = "waiting"
    attempts: int = 0
    error: str = ""


def read(workdir: pathlib.Path) -> Record:
    """Reads the record of a run; returns an empty record if there is no file.

    Raises:
      CheckpointError: the file is damaged, or cannot be read.
    """
    path = workdir / RECORD
    try:
        plain = workdirs.read_json(path, limit=_LARGEST)
        # Another release may have other fields.
        names = {field.name for field in dataclasses.fields(Record)}
        fields = {key: value for key, value in plain.items() if key in names}
        if fields.get("branch_of") is not None:
            fields["branch_of"] = tuple(fields["branch_of"])
        record = Record(**fields)
        texts = record.name, record.status, record.error
        if record.status not in STATUSES or not all(isinstance(text, str) for text in texts):
            raise ValueError("its name, status or error is invalid")
        if type(record.attempts) is not int or not isinstance(record.values, dict):
            raise ValueError("its attempts or values are invalid")
        return record
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. It only says how the run was started: delete it, and "
            "start the sweep again."
        ) from error


def write(workdir: pathlib.Path, record: Record) -> None:
    """Writes the record atomically; creates the folder if it does not exist.

    Raises:
      ConfigError: the file cannot be written.
    """
    workdirs.make(workdir)
    hint = "Correct this, then run the same command again; the running runs save and end."
    with storage.reported(ConfigError, f"{workdir / RECORD} cannot be written", hint=hint):
        workdirs.write_json(workdir / RECORD, dataclasses.asdict(record))


def change(workdir: pathlib.Path, **changes: Any) -> Record:
    """Changes fields of the record; writes it if it differs, and returns it."""
    before = read(workdir)
    after = dataclasses.replace(before, **changes)
    # Compared as JSON, where tuples are lists.
    if json.dumps(dataclasses.asdict(before)) != json.dumps(dataclasses.asdict(after)):
        write(workdir, after)
    return after


def read_job(workdir: pathlib.Path) -> str:
    """Returns the id of a run's current or last Slurm job; "" if it never had one."""
    try:
        return (workdir / JOB).read_text(errors="replace").strip()
    except OSError:
        return ""


def write_job(workdir: pathlib.Path, job: str) -> None:
    """Writes the id of a run's job to a separate file, because the job may be writing the record.

    Raises:
      ConfigError: the file cannot be written.
    """
    with storage.reported(ConfigError, f"{workdir / JOB} cannot be written"):
        storage.write_bytes(workdir / JOB, f"{job}\n".encode())


def forget_job(workdir: pathlib.Path) -> None:
    """Deletes the job id of a run that is started locally."""
    with contextlib.suppress(OSError):
        (workdir / JOB).unlink(missing_ok=True)


def is_finished(workdir: pathlib.Path, record: Record) -> bool:
    """Returns whether a run is complete, by its record or the checkpoint of its last step."""
    if record.status == "finished":
        return True
    total = total_steps(workdir)
    return total is not None and has_state(workdir, total)


def status(workdir: pathlib.Path, record: Record) -> str:
    """Returns the status of a run now: that of its record, unless its files and locks differ.

    A run without a record was started by hand: it is running, stopped, failed or finished.
    """
    if is_finished(workdir, record):
        return "finished"
    alive, launched = (
        lock.is_held(folder / lock.LOCK) or lock.is_elsewhere(folder / lock.LOCK)
        for folder in (workdir, workdir.parent)
    )
    launched = launched or bool(read_job(workdir))
    ended = "failed" if failure.read(workdir) else "stopped"
    if record.status == "running" and not (alive or launched):
        return ended  # It ended together with its sweep.
    if record == Record():
        return "running" if alive else ended
    return record.status


def reason(workdir: pathlib.Path, record: Record, state: str) -> str:
    """Returns why a run of this `status` failed, stopped or is blocked; "" if it is unknown."""
    return record.error or (failure.read(workdir) if state == "failed" else "")


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the content of run.json; {} before the run has begun to train."""
    try:
        return workdirs.read_json(workdir / workdirs.SUMMARY, limit=_LARGEST)
    except (OSError, ValueError):
        return {}


def total_steps(workdir: pathlib.Path) -> int | None:
    """Returns the total number of steps; None before the run has begun to train."""
    total = read_summary(workdir).get("total_steps")
    return total if type(total) is int else None


def has_state(workdir: pathlib.Path, step: int) -> bool:
    """Returns whether a checkpoint exists; Orbax gives a folder its name when it is complete."""
    return (workdir / workdirs.CHECKPOINTS / str(step) / "_CHECKPOINT_METADATA").is_file()


def newest_step(workdir: pathlib.Path) -> int:
    """Returns the step of the newest checkpoint, -1 if there is none."""
    try:
        names = [path.name for path in (workdir / workdirs.CHECKPOINTS).iterdir()]
    except OSError:
        return -1
    return max((int(name) for name in names if name.isdigit()), default=-1)
