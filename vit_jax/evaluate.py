"""Evaluates a trained model on a split: every example once, whatever the devices.

    python -m vit_jax.evaluate --workdir=runs/quickstart [--split=test]

Prints accuracy, loss and calibration error, and leaves evaluation.json (these, per-class accuracy
and the confusion matrix), confusion.png, predictions.png (a page of pictures with what the model
says of them) and samples/ (a few of the split's pictures, to try vit_jax.predict on) in the work
directory, or in its folder evaluation-SPLIT for a split that the config does not evaluate.
"""

import json
import pathlib
import re
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from vit_jax import cli
from vit_jax import workdir as workdirs
from vit_jax.analysis import figures
from vit_jax.analysis.confusion_matrix import confusion
from vit_jax.checkpoints.load import Run, load_run
from vit_jax.data import transforms
from vit_jax.data.base import Source
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, DataError
from vit_jax.evals.build import classifier, eval_batches
from vit_jax.evals.classification import ClassificationReport
from vit_jax.evals.probabilities import predict
from vit_jax.models import VitConfig, vit_config
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import make_mesh

NUM_PICTURES = 500  # Among these, predictions.png looks for mistakes.
NUM_SAMPLES = 10


def evaluate(checkpoint: pathlib.Path, *, split: str = "") -> ClassificationReport:
    """Evaluates a run's model and writes what is found into its work directory.

    Args:
      checkpoint: WORKDIR or WORKDIR/checkpoints/STEP.
      split: of the run's data set, slices allowed; "": the first that its config evaluates.

    Raises:
      VitJaxError: there is no such checkpoint or split.
    """
    # The parameters are split over all devices, so that what could be trained can be evaluated.
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": -1, "tensor": 1}))
    with jax.set_mesh(mesh):
        run = load_run(checkpoint, mesh=mesh)
        usual = next((entry.split for entry in run.config.evals.values()), "")
        split = split or usual
        if not split:
            raise ConfigError("The run's config evaluates no split: name one with --split.")
        source = open_source(run.config.data, split=split, seed=run.config.seed)
        names = run.dataset["class_names"]
        if list(source.class_names) != names[: source.num_classes]:
            raise DataError(
                f"{source.name}, {split}, has the classes {', '.join(source.class_names[:9])}; the "
                f"model was trained on {', '.join(names[:9])}: what it says would mean nothing."
            )
        cfg = vit_config(run.config.model, num_classes=run.dataset["num_classes"])
        with eval_batches(
            run.config, cfg, source, mesh, batch_size=run.config.batch_size
        ) as batches:
            report = classifier(run.config, cfg).report(run.params, batches)
        probabilities = _first_probabilities(run, cfg, source, mesh)

    if jax.process_index() == 0:
        slug = re.sub(r"[^\w.-]+", "_", split).strip("_")
        folder = run.workdir if split == usual else run.workdir / f"evaluation-{slug}"
        folder.mkdir(exist_ok=True)
        head = {"data": source.name, "split": split, "step": run.step}
        workdirs.write_json(
            folder / "evaluation.json", head | json.loads(report.to_json(class_names=names))
        )
        if report.confusion is not None:
            confusion(report, names, folder / "confusion.png")
        if not source.multi_label:
            _draw_pictures(run, cfg, source, probabilities, names, folder)
        print(
            f"{source.name}, {split}, after {run.step:,} steps: "
            f"{report.count:,} examples, top-1 {report.top1:.2%}, top-5 {report.top5:.2%}, "
            f"loss {report.loss:.4f}, calibration error {report.ece:.2%}\n"
            f"Written to {folder}."
        )
    return report


def _first_probabilities(run: Run, cfg: VitConfig, source: Source, mesh: Mesh) -> np.ndarray:
    """Class probabilities of the first examples of a split."""
    rows = []
    with eval_batches(run.config, cfg, source, mesh, batch_size=run.config.batch_size) as batches:
        for probabilities, batch in predict(
            cfg, run.params, batches, loss_name=run.config.loss.name, mesh=mesh
        ):
            rows.append(probabilities[batch["weight"] > 0])
            if sum(map(len, rows)) >= NUM_PICTURES:
                break
    return np.concatenate(rows)[:NUM_PICTURES]


def _draw_pictures(
    run: Run,
    cfg: VitConfig,
    source: Source,
    probabilities: np.ndarray,
    names: Sequence[str],
    folder: pathlib.Path,
) -> None:
    """predictions.png and samples/: whole pictures, squashed to the model's size."""
    decode = run.config.data.eval_transforms[0]
    picture = transforms.build((decode, {"op": "resize"}), image_size=cfg.image_size)
    rng = np.random.default_rng(0)
    examples = [picture(source[i], rng) for i in range(len(probabilities))]
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    figures.predictions(images, labels, probabilities, names, folder / "predictions.png")
    (folder / "samples").mkdir(exist_ok=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if i < NUM_SAMPLES:
            name = re.sub(r"[^\w.-]+", "_", names[label])
            Image.fromarray(image.squeeze()).save(folder / "samples" / f"{i}-{name}.png")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "The run: WORKDIR or WORKDIR/checkpoints/STEP.")
    _SPLIT = flags.DEFINE_string("split", "", "Of the run's data set; a slice is allowed.")
    flags.mark_flag_as_required("workdir")

    def main(argv: Sequence[str]) -> None:
        cli.no_arguments(argv)
        processes.start()
        evaluate(cli.local_path(_WORKDIR.value, flag="workdir"), split=_SPLIT.value)

    cli.run(main)
