"""Writes the table of a sweep's runs from their work directories; `vit_jax.scaling.table` reads it.

`collect` writes runs.parquet and runs.csv into the sweep's folder, with a row for each run and
evaluation, and one for a run without an evaluation, by name (point-2 before point-10). It only
reads files of the runs, so it can be called at any time, by any number of processes at once.

run                     name of the run's folder
status                  waiting, running, stopped, finished, failed, blocked (its trunk failed)
evaluation              name in config.evals, such as "test"; "" before the first one
step                    updates made when it was evaluated
final                   whether that was the run's last step
KEY                     value that the sweep sets, by its key ("optim.lr"; "model" for ":model")
seed                    of the run
family                  of its model: vit, hybrid, resnet or mixer
params                  of the model, all of them
params_non_embedding    without patch and position embeddings, further tokens and the head
examples                trained on in an epoch: the size of the training set
steps                   of the whole run
examples_seen           up to this step: step x batch size
epochs                  examples_seen / examples
forward_flops           of one image; a multiply-add is two
total_train_flops       up to this step: for every image seen about three times forward_flops, less
                        with frozen parameters, twice as much with SAM
device_hours            up to this step: wall time x devices; a share of a CPU's cores is one
                        device, and a GPU that several runs share counts for each of them
loss, error, top1       of the evaluation; error is 1 - top1
attention_distance_last_layer, ...   of an evaluation of the type analysis: its numbers by name
cka_final_state_last_layer, ...   similarity with the state after the run's last step
train_loss              of the last batch before it that was logged
config_hash             equal for runs that compute the same; see `config_hash`
code_version            release and commit of the run's last process
device                  kind of device of that process
attempts                number of processes that the sweep has started for the run
error_message           why it failed, stopped or is blocked

For a branch, step, examples_seen, total_train_flops and device_hours include the trunk's part: they
are the cost of the run without a trunk. A run started by an earlier release has no number of
parameters until the same command is started again.
"""

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from vit_jax import storage
from vit_jax.config import CLASSIFICATION_METRICS
from vit_jax.errors import ConfigError, DataError, VitJaxError
from vit_jax.models import family
from vit_jax.rundir import workdir as workdirs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.order import natural_order
from vit_jax.telemetry.jsonlines import read_jsonl

PARQUET, CSV = "runs.parquet", "runs.csv"

# Column order: _FIRST, then the swept keys, then _LAST.
_FIRST = ("run", "status", "evaluation", "step", "final")
_LAST = (
    *("seed", "family", "params", "params_non_embedding", "examples", "steps", "examples_seen"),
    *("epochs", "forward_flops", "total_train_flops", "device_hours", "loss", "error", "top1"),
    *("train_loss", "config_hash", "code_version", "device", "attempts", "error_message"),
)
# Keys by section that do not affect results beyond rounding: location and loading of the data,
# devices and implementation, saving and logging.
_IRRELEVANT = {
    "": ("checkpoint", "compiler", "log", "mesh", "timeout_seconds"),
    "data": ("data_dir", "manual_dir", "workers", "threads", "prefetch", "cache", "cache_gb"),
    "model": ("attention", "remat"),
}
_LARGEST = 2**26  # Bytes of a JSON file.

Row = dict[str, Any]


def collect(folder: str | os.PathLike) -> pathlib.Path:
    """Writes the table of all runs in a sweep's folder, as Parquet and as CSV, each atomically.

    Returns:
      The path of the Parquet file.

    Raises:
      ConfigError: the folder does not exist, or cannot be written.
    """
    folder = pathlib.Path(folder)
    with storage.reported(
        ConfigError, f"--workdir={folder}: the table of its runs cannot be written"
    ):
        table = _table(list(_runs(folder)))
        content = io.BytesIO()
        pq.write_table(table, content)
        storage.write_bytes(folder / PARQUET, content.getvalue())
        content = io.BytesIO()
        pa_csv.write_csv(table, content, pa_csv.WriteOptions(quoting_style="needed"))
        storage.write_bytes(folder / CSV, content.getvalue())
    return folder / PARQUET


# ------------------------------------------------------------------------------- rows of a run


def _runs(folder: pathlib.Path) -> Iterator[tuple[list[Row], dict[str, Any]]]:
    """Yields the rows and the flattened config of each run in a folder; skips other files."""
    for workdir in sorted(folder.iterdir(), key=lambda path: natural_order(path.name)):
        if not any((workdir / name).is_file() for name in (records.RECORD, workdirs.CONFIG)):
            continue
        try:
            config = _read_json(workdir / workdirs.CONFIG)
            yield _rows(workdir, config), workdirs.flatten(config)
        except VitJaxError as error:
            yield [{"run": workdir.name, "error_message": str(error)}], {}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            message = f"Its files are damaged: {type(error).__name__}: {error}"
            yield [{"run": workdir.name, "error_message": message}], {}


def _rows(workdir: pathlib.Path, config: Mapping[str, Any]) -> list[Row]:
    record = records.read(workdir)
    summary = _read_json(workdir / workdirs.SUMMARY)
    metrics, timing = _read_lines(workdir / "metrics.jsonl"), _read_lines(workdir / "timing.jsonl")
    metrics = _with_similarity(workdir, config, metrics)
    variant = config.get("model", {}).get("variant")
    status = records.status(workdir, record)
    row = {
        "run": workdir.name,
        "status": status,
        **{_column(key): value for key, value in record.values.items()},
        "seed": config.get("seed", record.values.get("seed")),
        "family": family(variant) if variant else None,
        **{key: summary.get(key) for key in ("params", "params_non_embedding", "examples")},
        "steps": summary.get("total_steps"),
        **{key: summary.get(key) for key in ("forward_flops", "code_version", "device")},
        "config_hash": config_hash(config) if config else None,
        "attempts": record.attempts,
        "error_message": records.reason(workdir, record, status),
    }
    rows = [row | cells for cells in _evaluations(config, summary, metrics, timing)]
    if row["status"] == "finished" and config.get("evals") and not rows:
        row["error_message"] = "It is finished, but metrics.jsonl has no evaluation."
    return rows or [row]


def _evaluations(
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    timing: Sequence[Mapping[str, Any]],
) -> Iterator[Row]:
    """Yields the columns that differ between the rows of a run."""
    batch_size = config.get("batch_size", 0)
    # Early commits of 0.2.0 saved 3 x forward_flops, also with frozen parameters, as train_flops.
    flops = summary.get("update_flops_per_image", summary.get("train_flops"))
    examples = summary.get("examples")
    # Early commits of 0.2.0 saved this as core_hours.
    hours = [
        (line["step"], line.get("time/device_hours", line.get("time/core_hours")))
        for line in timing
    ]
    train_loss = None
    for line in metrics:
        step, seen = line["step"], line["step"] * batch_size
        train_loss = line.get("train/loss", train_loss)
        for name in config.get("evals", {}):
            measured = _measured(line, name)
            if f"{name}/loss" not in line and not measured:
                continue
            top1 = line.get(f"{name}/top1")
            yield {
                "evaluation": name,
                "step": step,
                "final": step == summary.get("total_steps"),
                "examples_seen": seen,
                "epochs": seen / examples if examples else None,
                "total_train_flops": float(flops * seen) if flops else None,
                "device_hours": max((h for s, h in hours if s <= step and h), default=None),
                "loss": line.get(f"{name}/loss"),
                "error": None if top1 is None else 1 - top1,
                "top1": top1,
                "train_loss": train_loss,
                **measured,
            }


def _with_similarity(
    workdir: pathlib.Path, config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Adds the similarity with the final state, which a run knows when it ends, to its metrics."""
    lines = {line["step"]: dict(line) for line in metrics}
    for name in config.get("evals", {}):
        for similarity in _read_lines(pathlib.Path(workdirs.similarity_file(workdir, name))):
            line = lines.get(similarity["step"], {})
            # Before --extend, the end was another one.
            if f"{name}/count" in line and similarity.pop("final_step") == max(lines):
                line.update(similarity)
    return list(lines.values())


def _measured(line: Mapping[str, Any], name: str) -> Row:
    """Returns what an evaluation of the type analysis has measured, by column."""
    prefix = f"{name}/"
    values = {key.removeprefix(prefix): x for key, x in line.items() if key.startswith(prefix)}
    return {key: x for key, x in values.items() if key not in CLASSIFICATION_METRICS}


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns 12 hexadecimal digits that are equal for configs with equal results.

    Excludes the location and loading of the data, the mesh, the attention back end,
    rematerialisation and the compiler's options (which only change rounding), checkpointing and
    logging. Of `resume` only the run's name and the step are included, not the folder of the sweep.
    Tables of early commits of 0.2.0 have other hashes for the same configs.
    """
    relevant = {key: value for key, value in config.items() if key not in _IRRELEVANT[""]}
    for section in ("data", "model"):
        values = config.get(section, {})
        relevant[section] = {k: v for k, v in values.items() if k not in _IRRELEVANT[section]}
    relevant["resume"] = pathlib.PurePath(config.get("resume", "")).parts[-3:]
    text = json.dumps(relevant, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file; returns {} if it does not exist yet."""
    try:
        return workdirs.read_json(path, limit=_LARGEST)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


# ------------------------------------------------------------------------------------ columns


def _column(key: str) -> str:
    """Returns the column name of a swept key."""
    name = key.removeprefix(":")
    return f"swept.{name}" if name in (*_FIRST, *_LAST) and name != "seed" else name


def _table(runs: Sequence[tuple[list[Row], Mapping[str, Any]]]) -> pa.Table:
    """Makes the table of all rows; a key that a point does not set comes from its run's config."""
    all_rows = [(row, config) for rows, config in runs for row in rows]
    swept = [key for row, _ in all_rows for key in row if key not in (*_FIRST, *_LAST)]
    columns = {}
    for name in (*_FIRST, *dict.fromkeys(swept), *_LAST):
        values = [row.get(name, config.get(name)) for row, config in all_rows]
        columns[name] = _typed(values, name)
    return pa.table(columns)


_INTEGER_COLUMNS = (
    *("step", "seed", "params", "params_non_embedding", "examples", "steps", "examples_seen"),
    *("forward_flops", "attempts"),
)
_FLOAT_COLUMNS = (
    "epochs",
    "total_train_flops",
    "device_hours",
    "loss",
    "error",
    "top1",
    "train_loss",
)


def _typed(values: list[Any], name: str) -> pa.Array:
    """Makes a column: of a fixed type for our columns, of a common type for swept keys."""
    kinds = {type(value) for value in values if value is not None}
    if name == "final":
        return pa.array([value is True for value in values], pa.bool_())
    if name in _INTEGER_COLUMNS:
        return pa.array([x if type(x) is int else None for x in values], pa.int64())
    if name in _FLOAT_COLUMNS or (
        name not in (*_FIRST, *_LAST) and kinds and kinds <= {int, float}
    ):
        kind = pa.int64() if name not in _FLOAT_COLUMNS and kinds == {int} else pa.float64()
        return pa.array([x if type(x) in (int, float) else None for x in values], kind)
    if kinds == {bool} and name not in (*_FIRST, *_LAST):
        return pa.array(values, pa.bool_())
    return pa.array(["" if x is None else _text(x) for x in values], pa.string())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
