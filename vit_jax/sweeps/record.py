"""What a sweep knows of one of its runs: a file in the run's work directory.

It says what cannot be seen from the other files: which point of the sweep the run is, how often it
was started, and why it failed. That it has finished can be seen, and is (`is_finished`): a sweep
that is killed between the end of a run and the record's writing does not run it again.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax import storage
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.rundir import workdir as workdirs

RECORD = "sweep.json"
JOB = "slurm_job.txt"
LOG = "log.txt"  # What all processes of the run have printed.

# blocked: its trunk failed, so that it cannot begin.
STATUSES = ("waiting", "running", "stopped", "finished", "failed", "blocked")
_LARGEST = 2**20  # Bytes.


@dataclasses.dataclass(frozen=True)
class Record:
    """What a sweep knows of a run.

    Attributes:
      name: of the run.
      values: what its point sets; see `vit_jax.sweeps.plan.PlannedRun`.
      branch_of: the run and the step that it goes on from, or None.
      status: one of STATUSES.
      attempts: how many processes were started.
      error: why it failed or is blocked; "" if it did not.
    """

    name: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    branch_of: tuple[str, int] | None = None
    status: str = "waiting"
    attempts: int = 0
    error: str = ""


def read(workdir: pathlib.Path) -> Record:
    """The record of a run; of one that has none, an empty one.

    Raises:
      CheckpointError: it is damaged, or cannot be read.
    """
    path = workdir / RECORD
    try:
        plain = workdirs.read_json(path, limit=_LARGEST)
        known = {field.name for field in dataclasses.fields(Record)}  # To this release.
        kept = {key: value for key, value in plain.items() if key in known}
        if kept.get("branch_of") is not None:
            kept["branch_of"] = tuple(kept["branch_of"])
        record = Record(**kept)
        texts = record.name, record.status, record.error
        if record.status not in STATUSES or not all(isinstance(text, str) for text in texts):
            raise ValueError("its name, status or error is none")
        if type(record.attempts) is not int or not isinstance(record.values, dict):
            raise ValueError("its attempts or values are none")
        return record
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. It says only how the run was started: delete it, and "
            "start the sweep again."
        ) from error


def write(workdir: pathlib.Path, record: Record) -> None:
    """Writes the record, whole or not at all; the folder is made if it is not there.

    Raises:
      ConfigError: it cannot be written.
    """
    workdirs.make(workdir)
    hint = "When it can, the same command goes on; the runs have been told to save and end."
    with storage.reported(ConfigError, f"{workdir / RECORD} cannot be written", hint=hint):
        workdirs.write_json(workdir / RECORD, dataclasses.asdict(record))


def change(workdir: pathlib.Path, **changes: Any) -> Record:
    """Writes the record with some fields changed, if that changes anything; gives it."""
    before = read(workdir)
    after = dataclasses.replace(before, **changes)
    # As JSON has them: a tuple is a list there.
    if json.dumps(dataclasses.asdict(before)) != json.dumps(dataclasses.asdict(after)):
        write(workdir, after)
    return after


def read_job(workdir: pathlib.Path) -> str:
    """The Slurm job that a run is, or was last; "" if it never was one."""
    try:
        return (workdir / JOB).read_text(errors="replace").strip()
    except OSError:
        return ""


def write_job(workdir: pathlib.Path, job: str) -> None:
    """Writes which job a run is: into a file of its own, as the job may be writing the record.

    Raises:
      ConfigError: it cannot be written.
    """
    with storage.reported(ConfigError, f"{workdir / JOB} cannot be written"):
        storage.write_bytes(workdir / JOB, f"{job}\n".encode())


def forget_job(workdir: pathlib.Path) -> None:
    """Notes that a run is a Slurm job no more: it is started here."""
    with contextlib.suppress(OSError):
        (workdir / JOB).unlink(missing_ok=True)


def is_finished(workdir: pathlib.Path, record: Record) -> bool:
    """Whether a run is complete: by its record, or by the checkpoint of its last step."""
    if record.status == "finished":
        return True
    total = total_steps(workdir)
    return total is not None and has_state(workdir, total)


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """What run.json says of a run; {} before it has begun to train."""
    try:
        return workdirs.read_json(workdir / workdirs.SUMMARY, limit=_LARGEST)
    except (OSError, ValueError):
        return {}


def total_steps(workdir: pathlib.Path) -> int | None:
    """How many steps a run has; None before it has begun to train."""
    total = read_summary(workdir).get("total_steps")
    return total if type(total) is int else None


def has_state(workdir: pathlib.Path, step: int) -> bool:
    """Whether a checkpoint is there: a folder has its name only when it is complete."""
    return (workdir / workdirs.CHECKPOINTS / str(step) / "_CHECKPOINT_METADATA").is_file()


def newest_step(workdir: pathlib.Path) -> int:
    """The step of the newest checkpoint, -1 if there is none."""
    try:
        names = [path.name for path in (workdir / workdirs.CHECKPOINTS).iterdir()]
    except OSError:
        return -1
    return max((int(name) for name in names if name.isdigit()), default=-1)
