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
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from vit_jax import cli, storage
from vit_jax.analysis import figures
from vit_jax.analysis.confusion_matrix import confusion
from vit_jax.checkpoints.load import Run, load_run
from vit_jax.config import base_config
from vit_jax.data import transforms
from vit_jax.data.base import Source
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, DataError, printable
from vit_jax.evals.build import classifier, eval_batches
from vit_jax.evals.classification import ClassificationReport
from vit_jax.evals.predictions import predict
from vit_jax.models import ModelConfig, read_section
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.watch import Watch
from vit_jax.rundir import workdir as workdirs

NUM_PICTURES = 500  # Among these, predictions.png looks for mistakes.
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
        model_config = read_section(run.config.model, num_classes=run.dataset["num_classes"])
        with eval_batches(
            run.config, model_config, source, mesh, batch_size=run.config.batch_size
        ) as batches:
            report = classifier(run.config, model_config).report(
                run.params, watch.over(batches, "the evaluation")
            )
        watch.at("the images")
        ids, probabilities = _first_probabilities(run, model_config, source, mesh)

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
                _draw_pictures(run, model_config, source, ids, probabilities, names, folder)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {storage.explain(error)}.") from error
        bad = len(source) - report.count
        skipped = f" ({bad:,} bad ones are not counted)" if bad else ""
        said = (
            f"{source.name}, {split}, after {run.step:,} steps: "
            f"{report.count:,} examples{skipped}, top-1 {report.top1:.2%}, "
            f"top-5 {report.top5:.2%}, loss {report.loss:.4f}, calibration error {report.ece:.2%}\n"
            f"Written to {folder}."
        )
        print(printable(said))
    return report


def _results_folder(run: Run, *, split: str, usual: str) -> epath.Path:
    """The work directory for what is usual, and a folder in it for what is not."""
    parts = []
    if split != usual:
        # [:50], [50:] and [:50%] are three.
        told = split.replace("%", "pct").replace(":]", "_end]")
        parts.append(_file_name(told).strip("_"))
    if run.step != run.newest:
        parts.append(f"step-{run.step}")
    return run.workdir / "-".join(["evaluation", *parts]) if parts else run.workdir


def _file_name(text: str) -> str:
    """Text as part of a file's name: it leads to no other folder."""
    short = re.sub(r"[^\w.-]+", "_", text).encode()[:100]  # Bytes are what a name has 255 of.
    return short.decode(errors="ignore")


def _first_probabilities(
    run: Run, model_config: ModelConfig, source: Source, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """The first examples of a split that are not bad, and their class probabilities."""
    ids, rows, seen = [], [], 0
    with eval_batches(
        run.config,
        model_config,
        source,
        mesh,
        batch_size=run.config.batch_size,
        on_bad=lambda example, message: None,  # It was told of before.
    ) as batches:
        for probabilities, batch in predict(
            model_config, run.params, batches, loss_name=run.config.loss.name, mesh=mesh
        ):
            (good,) = np.nonzero(batch["weight"])
            ids.append(seen + good)
            rows.append(probabilities[good])
            seen += len(probabilities)
            if sum(map(len, rows)) >= NUM_PICTURES:
                break
    return np.concatenate(ids)[:NUM_PICTURES], np.concatenate(rows)[:NUM_PICTURES]


def _draw_pictures(
    run: Run,
    model_config: ModelConfig,
    source: Source,
    ids: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    folder: epath.Path,
) -> None:
    """predictions.png and samples/: whole images, squashed to the model's size."""
    decode = run.config.data.eval_transforms[0]
    picture = transforms.build((decode, {"op": "resize"}), image_size=model_config.image_size)
    rng = np.random.default_rng(0)
    examples = [picture(source[i], rng) for i in ids.tolist()]
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    figures.predictions(images, labels, probabilities, names, folder / "predictions.png")
    storage.make_subfolder(folder / "samples")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if i < NUM_SAMPLES:
            png = io.BytesIO()
            Image.fromarray(image.squeeze()).save(png, format="png")
            name = f"{i}-{_file_name(names[label])}.png"
            storage.write_bytes(folder / "samples" / name, png.getvalue())


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "The run: WORKDIR or WORKDIR/checkpoints/STEP.")
    _SPLIT = flags.DEFINE_string("split", "", "Of the run's data set; a slice is allowed.")
    flags.mark_flag_as_required("workdir")

    def main(argv: Sequence[str]) -> None:
        cli.no_arguments(argv)
        processes.start()
        evaluate(storage.as_path(_WORKDIR.value, name="--workdir"), split=_SPLIT.value)

    cli.run(main)
