"""Evaluates any checkpoint on any labelled images: every image counts once, on any devices.

    vit-jax evaluate --workdir=runs/quickstart [--split=test]
    vit-jax evaluate --checkpoint=hf:google/vit-base-patch16-224 --data=FOLDER
    vit-jax evaluate --checkpoint=FILE.npz --data=imagenet_v2:test [--method=knn]

The data are those of the run, or of --data: a folder with a folder of images for each class, a
table, tar files, a data set of TFDS or Hugging Face; or of --config. Images are prepared as the
checkpoint's publisher does. Classes are matched with the model's outputs by name, ImageNet's id
(n01440764) or WordNet lemma (tench); what has no counterpart is reported. Where the model has other
outputs, accuracy is given over all of them and over the matched ones alone.

A model without a head for these classes is evaluated by its features (the head's input): kNN
(k=20, temperature 0.07, as DINO), ridge regression on 1, 5, 10 and 25 labels a class (as
big_vision) and a linear probe (L-BFGS). These are trained on --train_split. The figures and the
least accurate classes are those of kNN or the probe, whichever has the higher top-1; they name it.

Prints a table and writes evaluation.json and figures: into the work directory (another split than
the config's first goes to evaluation-SPLIT, an older checkpoint to evaluation-step-STEP), else
into evaluations/CHECKPOINT/DATA-SPLIT, or --out; of a run also samples/, ten images of its split to
try `vit-jax predict` on. Images that cannot be read are listed, and are
not counted.
"""

from typing import Any

from absl import flags

from vit_jax import cli, storage
from vit_jax.convert import parse_size
from vit_jax.errors import ConfigError, printable

METHODS = ("auto", "classifier", "knn", "fewshot", "probe")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    cli.define_config(values)
    cli.define_model(values)
    cli.define_dtype(values)
    text = {
        "workdir": "The run: WORKDIR or WORKDIR/checkpoints/STEP; the same as --checkpoint.",
        "data": "A folder of images, a table, or NAME or NAME:SPLIT of TFDS.",
        "split": "Split of the data, or a slice of it such as test[:500].",
        "train_split": "Split that kNN, few-shot regression and the probe are trained on.",
        "out": "Folder for the results.",
    }
    for name, meaning in text.items():
        default = {"train_split": "train", "workdir": None, "data": None}.get(name, "")
        flags.DEFINE_string(name, default, meaning, flag_values=values)
    flags.DEFINE_enum(
        "method", "auto", METHODS, "How the images are classified.", flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Evaluates."""
    import jax

    from vit_jax.inference import results
    from vit_jax.inference.evaluate import evaluate
    from vit_jax.inference.progress import ProgressBar
    from vit_jax.parallel import processes
    from vit_jax.parallel.compilation import enable_user_compilation_cache
    from vit_jax.pretrained.formats.hints import parse_hints

    checkpoint = _one_of(values, "checkpoint", "workdir")
    if checkpoint is None:
        raise ConfigError("--checkpoint=... (or --workdir=... of a run) is missing. See --help.")
    if values.workdir is not None:
        checkpoint = storage.as_path(values.workdir, name="--workdir")
    data = _one_of(values, "data", "config")
    if values["config"].value is not None:
        data = cli.read_config(values)
    out = storage.as_path(values.out, name="--out") if values.out else None
    if out is not None:  # Not after hours of evaluation.
        with storage.reported(ConfigError, f"--out={out} cannot be made"):
            storage.check_folder(out)
    enable_user_compilation_cache()
    processes.start()
    with ProgressBar() as progress:
        evaluation = evaluate(
            checkpoint,
            data,
            split=values.split,
            method=values.method,
            train_split=values.train_split,
            hints=parse_hints(values.hints),
            image_size=parse_size(values.image_size, flag="image_size"),
            batch_size=values.batch_size,
            dtype=values.dtype,
            on_progress=progress,
        )
    if jax.process_index() == 0:
        print(printable(results.table(evaluation)), flush=True)
    folder = results.write(evaluation, out)
    if jax.process_index() == 0:
        print(printable(f"written  to {folder}"))


def _one_of(values: flags.FlagValues, *names: str) -> Any:
    """Returns the value of the flag that is given; None if none is.

    Raises:
      ConfigError: several are given.
    """
    given = [name for name in names if values[name].value is not None]
    if len(given) > 1:
        raise ConfigError(f"--{given[0]} and --{given[1]} exclude each other: give one of them.")
    return values[given[0]].value if given else None


COMMAND = cli.Command(__doc__, define, main)

if __name__ == "__main__":
    cli.run(COMMAND)
