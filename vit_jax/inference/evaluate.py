"""Evaluates the model of a run on a split, and writes the results into its work directory."""

import io
import json
import re
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int, PyTree, UInt8
from ml_collections import ConfigDict
from PIL import Image

from vit_jax import storage
from vit_jax.analysis import figures
from vit_jax.analysis.confusion_matrix import confusion
from vit_jax.checkpoints.load import TrainedModel, load_run
from vit_jax.config import base_config
from vit_jax.data import transforms
from vit_jax.data.base import Source
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, DataError, printable
from vit_jax.evals.classification import ClassificationReport
from vit_jax.evals.evaluator import Evaluator
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.watch import Watch
from vit_jax.rundir import workdir as workdirs

NUM_IMAGES = 500  # predictions.png shows mistakes among these.
NUM_SAMPLES = 10


def evaluate(checkpoint: epath.PathLike, *, split: str = "") -> ClassificationReport:
    """Evaluates a run's model and writes the results into its work directory.

    Args:
      checkpoint: WORKDIR or WORKDIR/checkpoints/STEP.
      split: a split of the run's data set, or a slice; "": the first that the config evaluates.

    Raises:
      VitJaxError: there is no such checkpoint or split, or the results cannot be written.
    """
    # Parameters are sharded over all devices: a model that could be trained can be evaluated.
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": -1, "tensor": 1}))
    with Watch(base_config().timeout_seconds) as watch, jax.set_mesh(mesh):
        watch.at("the restore")
        run = load_run(checkpoint, mesh=mesh)
        default_split = next((entry.split for entry in run.config.evals.values()), "")
        split = split or default_split
        if not split:
            raise ConfigError("The run's config evaluates no split: name one with --split.")
        source = open_source(run.config.data, split=split)
        names = run.dataset["class_names"]
        if list(source.class_names) != names[: source.num_classes]:
            raise DataError(
                f"{source.name}, {split}, has the classes {', '.join(source.class_names[:9])}; the "
                f"model was trained on {', '.join(names[:9])}: choose a split with these classes."
            )
        evaluator = Evaluator(run.config, run.model_config, mesh)
        with evaluator.batches(source) as batches:
            report = evaluator.classification().report(
                run.params, watch.iterate(batches, "the evaluation")
            )
        watch.at("the images")
        ids, probabilities = _first_probabilities(evaluator, run.params, source)

    if jax.process_index() == 0:
        folder = _results_folder(run, split=split, default_split=default_split)
        head = {"data": source.name, "split": split, "step": run.step}
        results = head | json.loads(report.to_json(class_names=names))
        try:
            if folder != run.workdir:
                storage.make_subfolder(folder)
            workdirs.write_json(folder / "evaluation.json", results)
            if report.confusion is not None:
                confusion(report, names, folder / "confusion.png")
            if not source.multi_label:
                images, labels = _images(evaluator, source, ids)
                path = folder / "predictions.png"
                figures.predictions(images, labels, probabilities, names, path)
                _write_samples(images, [names[label] for label in labels], folder / "samples")
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {storage.explain(error)}.") from error
        bad = len(source) - report.count
        skipped = f" ({bad:,} bad ones are not counted)" if bad else ""
        text = (
            f"{source.name}, {split}, after {run.step:,} steps: "
            f"{report.count:,} examples{skipped}, top-1 {report.top1:.2%}, "
            f"top-5 {report.top5:.2%}, loss {report.loss:.4f}, calibration error {report.ece:.2%}\n"
            f"Written to {folder}."
        )
        print(printable(text))
    return report


def _results_folder(run: TrainedModel, *, split: str, default_split: str) -> epath.Path:
    """Returns the work directory, or a folder in it for another split or an older checkpoint."""
    parts = []
    if split != default_split:
        # [:50], [50:] and [:50%] get different names.
        parts.append(_file_name(split.replace("%", "pct").replace(":]", "_end]")).strip("_"))
    if run.step != run.newest:
        parts.append(f"step-{run.step}")
    return run.workdir / "-".join(["evaluation", *parts]) if parts else run.workdir


def _file_name(text: str) -> str:
    """Returns the text as a part of a file name, without path separators."""
    encoded = re.sub(r"[^\w.-]+", "_", text).encode()[:100]  # A name has at most 255 bytes.
    return encoded.decode(errors="ignore")


def _first_probabilities(
    evaluator: Evaluator, params: PyTree, source: Source
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n classes"]]:
    """Returns the ids of the first good examples of a split, and their class probabilities."""
    ids, rows, seen = [], [], 0
    # The evaluation has already reported the bad ones.
    with evaluator.batches(source, on_bad=lambda example, message: None) as batches:
        for probabilities, batch in evaluator.predict(params, batches):
            (good,) = np.nonzero(batch["weight"])
            ids.append(seen + good)
            rows.append(probabilities[good])
            seen += len(probabilities)
            if sum(map(len, rows)) >= NUM_IMAGES:
                break
    return np.concatenate(ids)[:NUM_IMAGES], np.concatenate(rows)[:NUM_IMAGES]


def _images(
    evaluator: Evaluator, source: Source, ids: Int[np.ndarray, "n"]
) -> tuple[UInt8[np.ndarray, "n height width channels"], Int[np.ndarray, "n"]]:
    """Returns uncropped images, resized to the model's image size, and their labels."""
    decode = evaluator.config.data.eval_transforms[0]
    transform = transforms.compose(
        (decode, {"op": "resize"}), image_size=evaluator.model_config.image_size
    )
    rng = np.random.default_rng(0)
    examples = [transform(source[i], rng) for i in ids.tolist()]
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples])


def _write_samples(
    images: UInt8[np.ndarray, "n height width channels"], names: Sequence[str], folder: epath.Path
) -> None:
    """Writes the first images as PNG files, named by their classes."""
    storage.make_subfolder(folder)
    for i, (image, name) in enumerate(zip(images[:NUM_SAMPLES], names, strict=False)):
        png = io.BytesIO()
        Image.fromarray(image.squeeze()).save(png, format="png")
        storage.write_bytes(folder / f"{i}-{_file_name(name)}.png", png.getvalue())
