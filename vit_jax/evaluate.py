"""Evaluates a trained model on a split: every example counts once, on any number of devices.

    vit-jax evaluate --workdir=runs/quickstart [--split=test]

Prints accuracy, loss and calibration error. Writes evaluation.json (these, per-class accuracy and
the confusion matrix), confusion.png, predictions.png (images with the model's predictions) and
samples/ (a few images of the split, for `vit-jax predict`) into the work directory. The results of
another split than the first one that the config evaluates go to its folder evaluation-SPLIT, of
a checkpoint that is not the newest to evaluation-step-STEP, of both to evaluation-SPLIT-step-STEP.
"""

from absl import flags

from vit_jax import cli, storage


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "workdir", None, "The run: WORKDIR or WORKDIR/checkpoints/STEP.", flag_values=values
    )
    flags.DEFINE_string("split", "", "Split of the run's data set, or a slice.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Evaluates."""
    from vit_jax.inference.evaluate import evaluate
    from vit_jax.parallel import processes

    processes.start()
    evaluate(storage.as_path(values.workdir, name="--workdir"), split=values.split)


COMMAND = cli.Command(__doc__, define, main, required=("workdir",))

if __name__ == "__main__":
    cli.run(COMMAND)
