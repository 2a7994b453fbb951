"""Predicts the classes of images."""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax import storage
from vit_jax.checkpoints.load import load_run
from vit_jax.data.files import Files, find_images
from vit_jax.errors import CheckpointError, ConfigError, did_you_mean
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import read_section
from vit_jax.parallel.mesh import make_mesh
from vit_jax.pretrained.exports.workdir import class_names, run_config
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.run_checkpoint import is_run, refuse_hints

BATCH_SIZE = 64  # Maximum: a laptop could not hold the training batch of a pod.
FORMATS = (".csv", ".jsonl", ".parquet")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The model's prediction for one file.

    Attributes:
      path: the path as given, or as found in a folder.
      classes: names of the most probable classes, the most probable first.
      probabilities: probabilities of `classes`.
      error: why the file has no prediction; "" if it has one.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def predict(
    checkpoint: epath.PathLike,
    paths: Sequence[str],
    *,
    top_k: int = 5,
    hints: Mapping[str, Any] | None = None,
) -> Iterator[Prediction]:
    """Predicts images, in order, a batch at a time.

    Args:
      checkpoint: WORKDIR or WORKDIR/checkpoints/STEP, or any checkpoint that
        `vit_jax.pretrained.load.load_pretrained` accepts.
      paths: image files, and folders that are searched for images.
      top_k: number of classes per image.
      hints: settings that the file of a published checkpoint does not contain.

    Raises:
      VitJaxError: the checkpoint cannot be used, or there is nothing to predict.
    """
    files = find_images(paths)
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": -1, "tensor": 1}))
    with jax.set_mesh(mesh):
        config, params, names = _load(checkpoint, mesh, hints or {})
        model_config = read_section(config.model, num_classes=len(names))
        evaluator = Evaluator(config, model_config, mesh)
        bad: dict[int, str] = {}
        seen = 0
        with evaluator.batches(
            Files(files, class_names=names),
            batch_size=min(BATCH_SIZE, config.batch_size),
            on_bad=bad.__setitem__,
        ) as batches:
            for rows, _ in evaluator.predict(params, batches):
                for row in rows[: len(files) - seen]:
                    yield _prediction(files[seen], row, names, top_k, bad.get(seen, ""))
                    seen += 1
        for i in range(seen, len(files)):  # Without a readable file there was no batch.
            yield Prediction(_printable_path(files[i]), error=bad[i].removeprefix(f"{files[i]}: "))


def _load(
    checkpoint: epath.PathLike, mesh: Mesh, hints: Mapping[str, Any]
) -> tuple[FrozenConfigDict, PyTree, list[str]]:
    """Returns config, parameters and class names of one of our runs or a published checkpoint."""
    if is_run(checkpoint):
        refuse_hints(checkpoint, hints)
        run = load_run(checkpoint, mesh=mesh)
        config, params, names = run.config, run.params, run.dataset["class_names"]
    else:
        pretrained = load_pretrained(str(checkpoint), mesh=mesh, hints=hints)
        config, params = run_config(pretrained), pretrained.params
        names = class_names(pretrained)
    if not names:
        raise CheckpointError(
            f"{checkpoint} has no head, so it cannot predict classes. Fine-tune it first, see "
            "configs/finetune.py."
        )
    return config, params, [name.encode(errors="replace").decode() for name in names]


def _prediction(
    path: pathlib.Path, probabilities: np.ndarray, names: Sequence[str], top_k: int, error: str
) -> Prediction:
    if error:
        return Prediction(_printable_path(path), error=error.removeprefix(f"{path}: "))
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return Prediction(
        _printable_path(path),
        tuple(names[i] for i in best),
        tuple(float(probabilities[i]) for i in best),
    )


def _printable_path(path: pathlib.Path) -> str:
    """Returns a path as UTF-8 text; file names may have other bytes."""
    return os.fsencode(path).decode(errors="replace")


def write(predictions: Sequence[Prediction], output: epath.PathLike) -> None:
    """Writes predictions to a .csv, .jsonl or .parquet file, atomically.

    CSV and Parquet have the columns path, error, class_1, probability_1, class_2, ...
    """
    output, content = epath.Path(output), io.BytesIO()
    if output.suffix == ".jsonl":
        for prediction in predictions:
            line = json.dumps(dataclasses.asdict(prediction), ensure_ascii=False)
            content.write(f"{line}\n".encode(errors="replace"))
    elif output.suffix == ".csv":
        pyarrow.csv.write_csv(_table(predictions), content)
    else:
        pyarrow.parquet.write_table(_table(predictions), content)
    try:
        storage.write_bytes(output, content.getvalue())
    except OSError as error:
        raise ConfigError(
            f"--output={output} cannot be written: {storage.explain(error)}."
        ) from error


def check_output(output: epath.Path) -> None:
    """Raises ConfigError if the file cannot be written; called before the prediction."""
    if output.suffix not in FORMATS:
        raise ConfigError(f"--output={output}: " + did_you_mean(output.suffix, FORMATS))
    if storage.is_local(output) and not output.parent.is_dir():
        raise ConfigError(f"--output={output}: there is no folder {output.parent}.")
    if output.is_dir():
        raise ConfigError(f"--output={output} is a folder: name a file.")


def _table(predictions: Sequence[Prediction]) -> pyarrow.Table:
    columns: dict[str, pyarrow.Array] = {
        "path": pyarrow.array([p.path for p in predictions], pyarrow.string()),
        "error": pyarrow.array([p.error for p in predictions], pyarrow.string()),
    }
    for k in range(max((len(p.classes) for p in predictions), default=0)):
        at_k = [p if k < len(p.classes) else None for p in predictions]
        columns[f"class_{k + 1}"] = pyarrow.array(
            [p and p.classes[k] for p in at_k], pyarrow.string()
        )
        columns[f"probability_{k + 1}"] = pyarrow.array(
            [p and p.probabilities[k] for p in at_k], pyarrow.float64()
        )
    return pyarrow.table(columns)


def format_prediction(prediction: Prediction) -> str:
    """Returns a line for the terminal."""
    if prediction.error:
        return f"{prediction.path}: cannot be predicted: {prediction.error}"
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return f"{prediction.path}: " + ", ".join(f"{name} {share:.1%}" for name, share in pairs)
