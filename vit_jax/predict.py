r"""Predicts the classes of images, and computes their features.

    vit-jax predict --checkpoint=runs/quickstart [--top_k=5] [--output=preds.csv] \
        [--features=features.parquet] IMAGE_OR_FOLDER ...

The checkpoint is one of our work directories, or a published one: a Hugging Face folder, a file by
timm or Google, or a name on a hub such as hf:google/vit-base-patch16-224.

Each image is preprocessed as in the model's evaluation. The names and probabilities of its most
probable classes are printed, or written to a .csv, .jsonl or .parquet file. --features writes the
input of the model's head, float32, to a .parquet file (columns path, error, features) or an .npz
(arrays features [n, d], paths, errors); it needs no head. Files are written while images are read,
and appear under their names when they are complete. A file that exists is replaced only with
--overwrite, and only by a complete one.

A file that cannot be read as an image gets an error instead. Files in a folder that do not have the
name of an image are skipped, with a note on standard error.

Exit codes: 0 all images were read; 1 some could not be; 2 an error that the message explains.
"""

import contextlib
import sys

from absl import flags

from vit_jax import cli, storage
from vit_jax.convert import parse_size
from vit_jax.errors import ExitCode, printable


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    cli.define_model(values)
    cli.define_dtype(values)
    flags.DEFINE_integer(
        "top_k", 5, "Classes to name for each image.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "output", "", "A .csv, .jsonl or .parquet file for the classes.", flag_values=values
    )
    flags.DEFINE_string(
        "features", "", "A .parquet or .npz file for the features.", flag_values=values
    )
    flags.DEFINE_boolean(
        "overwrite", False, "Replace the files of --output and --features.", flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Predicts."""
    from vit_jax.inference import outputs
    from vit_jax.inference.predict import Predictor
    from vit_jax.inference.progress import ProgressBar
    from vit_jax.parallel import processes
    from vit_jax.parallel.compilation import enable_user_compilation_cache
    from vit_jax.pretrained.formats.hints import parse_hints
    from vit_jax.telemetry.progress import format_count

    enable_user_compilation_cache()
    processes.check_alone("predict")
    files = {}
    for flag, formats in (("output", outputs.PREDICTIONS), ("features", outputs.FEATURES)):
        if path := values[flag].value:
            files[flag] = storage.as_path(path, name=f"--{flag}")
            outputs.check_output(
                files[flag], flag=flag, formats=formats, overwrite=values.overwrite
            )
    predictor = Predictor(
        values.checkpoint,
        arguments,
        top_k=values.top_k,
        hints=parse_hints(values.hints),
        image_size=parse_size(values.image_size, flag="image_size"),
        batch_size=values.batch_size,
        dtype=values.dtype,
    )
    if "output" in files or not files:
        predictor.check_classifier()
    if predictor.assumption:
        print(f"note: {predictor.assumption}", file=sys.stderr)
    bad = 0
    with contextlib.ExitStack() as stack:
        writers = []
        if "output" in files:
            writer = outputs.predictions_writer(files["output"], num_shown=predictor.num_shown)
            writers.append(stack.enter_context(writer))
        if "features" in files:
            writer = outputs.features_writer(
                files["features"], predictor.paths, num_features=predictor.num_features()
            )
            writers.append(stack.enter_context(writer))
        progress = stack.enter_context(ProgressBar()) if writers else None
        for prediction in predictor.predictions(progress):
            bad += bool(prediction.error)
            for writer in writers:
                writer.add(prediction)
            if not writers or prediction.error:
                print(printable(prediction.text()))
    if files:
        right = len(predictor.paths) - bad
        contents = {
            "output": format_count(right, "prediction"),
            "features": f"features of {format_count(right, 'image')}",
        }
        written = ", ".join(contents[flag] for flag in files)
        names = " and ".join(str(file) for file in files.values())
        print(f"{written} and {format_count(bad, 'error')} in {names}")
        print(f"speed: {predictor.throughput.summary()}")
    return ExitCode.FAILED if bad else ExitCode.DONE


COMMAND = cli.Command(__doc__, define, main, required=("checkpoint",), takes_arguments=True)

if __name__ == "__main__":
    cli.run(COMMAND)
