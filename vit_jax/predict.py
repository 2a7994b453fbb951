r"""Predicts the classes of images.

    vit-jax predict --checkpoint=runs/quickstart [--top_k=5] [--output=preds.csv] \
        IMAGE_OR_FOLDER ...

The checkpoint is one of our work directories, or a published one: a Hugging Face folder, a file by
timm or Google, or a name on a hub such as hf:google/vit-base-patch16-224.

Each image is preprocessed as in the model's evaluation. The names and probabilities of its most
probable classes are printed, or written to a .csv, .jsonl or .parquet file. A file that cannot be
read as an image gets an error instead. Files in a folder that do not have the name of an image are
skipped, with a note on standard error.

Exit codes: 0 all images were read; 1 some could not be; 2 an error that the message explains.
"""

from absl import flags

from vit_jax import cli, storage
from vit_jax.errors import ExitCode, printable


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "checkpoint",
        None,
        "WORKDIR, WORKDIR/checkpoints/STEP, or a published checkpoint.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "hints", [], "Settings missing in its file: NAME=VALUE,...", flag_values=values
    )
    flags.DEFINE_integer(
        "top_k", 5, "Classes to name for each image.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "output", "", "A .csv, .jsonl or .parquet file to write.", flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Predicts."""
    from vit_jax.inference.predict import check_output, format_prediction, predict, write
    from vit_jax.pretrained.formats.hints import parse_hints

    hints = parse_hints(values.hints)
    output = storage.as_path(values.output, name="--output") if values.output else None
    if output is not None:
        check_output(output)
    predictions = []
    for prediction in predict(values.checkpoint, arguments, top_k=values.top_k, hints=hints):
        predictions.append(prediction)
        if output is None or prediction.error:
            print(printable(format_prediction(prediction)))
    bad = sum(bool(p.error) for p in predictions)
    if output is not None:
        write(predictions, output)
        print(f"{len(predictions) - bad:,} predictions and {bad:,} errors in {output}")
    return ExitCode.FAILED if bad else ExitCode.DONE


COMMAND = cli.Command(__doc__, define, main, required=("checkpoint",), takes_arguments=True)

if __name__ == "__main__":
    cli.run(COMMAND)
