"""Evaluates a trained model on a split: every example once, whatever the devices.

    python -m vit_jax.evaluate --workdir=runs/quickstart [--split=test]

Prints accuracy, loss and calibration error, and leaves evaluation.json (these, per-class accuracy
and the confusion matrix), confusion.png, predictions.png (a page of images with the model's
predictions) and samples/ (a few of the split's images, to try vit_jax.predict on) in the work
directory; or in its folder evaluation-SPLIT for a split that the config does not evaluate,
evaluation-step-STEP for a checkpoint that is not the newest, evaluation-SPLIT-step-STEP for both.
"""

import io
import json
import re
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float, Int, PyTree, UInt8
from ml_collections import ConfigDict
from PIL import Image

from vit_jax import cli, storage
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
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.watch import Watch
from vit_jax.rundir import workdir as workdirs

NUM_IMAGES = 500  # Among these, predictions.png looks for mistakes.
NUM_SAMPLES = 10


def evaluate(checkpoint: epath.PathLike, *, split: str = "") -> ClassificationReport:
    """Evaluates a run's model and writes what is found into its work directory.

    Args:
      checkpoint: WORKDIR or WORKDIR/checkpoints/STEP.
      split: of the run's data set, slices allowed; "": the first that its config evaluates.

    Raises:
      VitJaxError: there is no such checkpoint or split, or the results cannot be written.
    """
    # The parameters are split over all devices, so that what could be trained can be evaluated.
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": -1, "tensor": 1}))
    with Watch(base_config().timeout_seconds) as watch, jax.set_mesh(mesh):
        watch.at("the restore")
        run = load_run(checkpoint, mesh=mesh)
        usual = next((entry.split for entry in run.config.evals.values()), "")
        split = split or usual
        if not split:
            raise ConfigError("The run's config evaluates no split: name one with --split.")
        source = open_source(run.config.data, split=split)
        names = run.dataset["class_names"]
        if list(source.class_names) != names[: source.num_classes]:
            raise DataError(
                f"{source.name}, {split}, has the classes {', '.join(source.class_names[:9])}; the "
                f"model was trained on {', '.join(names[:9])}: what it says would mean nothing."
            )
        evaluator = Evaluator(run.config, run.model_config, mesh)
        with evaluator.batches(source) as batches:
            report = evaluator.classification().report(
                run.params, watch.iterate(batches, "the evaluation")
            )
        watch.at("the images")
        ids, probabilities = _first_probabilities(evaluator, run.params, source)

    if jax.process_index() == 0:
        folder = _results_folder(run, split=split, usual=usual)
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


def _results_folder(run: TrainedModel, *, split: str, usual: str) -> epath.Path:
    """The work directory for what is usual, and a folder in it for what is not."""
    parts = []
    if split != usual:
        # [:50], [50:] and [:50%] get three names.
        parts.append(_file_name(split.replace("%", "pct").replace(":]", "_end]")).strip("_"))
    if run.step != run.newest:
        parts.append(f"step-{run.step}")
    return run.workdir / "-".join(["evaluation", *parts]) if parts else run.workdir


def _file_name(text: str) -> str:
    """Text as part of a file's name: it leads to no other folder."""
    short = re.sub(r"[^\w.-]+", "_", text).encode()[:100]  # Bytes are what a name has 255 of.
    return short.decode(errors="ignore")


def _first_probabilities(
    evaluator: Evaluator, params: PyTree, source: Source
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n classes"]]:
    """The first examples of a split that are not bad, and their class probabilities."""
    ids, rows, seen = [], [], 0
    # The evaluation has reported the bad ones.
    with evaluator.batches(source, on_bad=lambda example, message: None) as batches:
        for probabilities, batch in evaluator.probabilities(params, batches):
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
    """Whole images, squashed to the model's size, and their labels."""
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
    """The first images as PNG files, named by their classes."""
    storage.make_subfolder(folder)
    for i, (image, name) in enumerate(zip(images[:NUM_SAMPLES], names, strict=False)):
        png = io.BytesIO()
        Image.fromarray(image.squeeze()).save(png, format="png")
        storage.write_bytes(folder / f"{i}-{_file_name(name)}.png", png.getvalue())


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "The run: WORKDIR or WORKDIR/checkpoints/STEP.")
    _SPLIT = flags.DEFINE_string("split", "", "Of the run's data set; a slice is allowed.")
    flags.mark_flag_as_required("workdir")

    def main(argv: Sequence[str]) -> None:
        cli.no_arguments(argv)
        processes.start()
        evaluate(storage.as_path(_WORKDIR.value, name="--workdir"), split=_SPLIT.value)

    cli.run(main)
