r"""Inspects, verifies and converts checkpoints of any known format.

    vit-jax convert --inspect CHECKPOINT [--image_size=384]
    vit-jax convert --verify REFERENCE
    vit-jax convert SOURCE DESTINATION --to=hf [--image_size=384] [--dtype=bfloat16]

CHECKPOINT and SOURCE are a file, a folder, one of our work directories, or a name on a hub
(hf:google/vit-base-patch16-224, timm:vit_base_patch16_224.augreg_in21k, gs://vit_models/...npz).
Hints supply what a file does not contain: --hints=num_heads=12,image_size=224x224.

Exit codes: 0 done; 1 --verify found a difference; 2 an error that the message explains.
"""

import pathlib
import re

from absl import flags

from vit_jax import cli
from vit_jax.errors import (
    CheckpointError,
    ConfigError,
    ExitCode,
    VitJaxError,
    printable,
)

# TARGETS of vit_jax.pretrained.exports, whose import would import JAX; a test compares them.
FORMATS = ("hf", "timm", "google", "big_vision", "orbax", "stablehlo", "onnx")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("inspect", "", "A checkpoint to describe.", flag_values=values)
    flags.DEFINE_string("verify", "", "A folder of fixtures to compare with.", flag_values=values)
    flags.DEFINE_string("image_size", "", "Pixels, 384 or HEIGHTxWIDTH.", flag_values=values)
    flags.DEFINE_list(
        "hints", [], "What the file does not contain: NAME=VALUE,...", flag_values=values
    )
    flags.DEFINE_list(
        "leave_out", [], "Patterns of tensors or parameters to leave.", flag_values=values
    )
    flags.DEFINE_enum("to", None, FORMATS, "The format to write.", flag_values=values)
    dtypes = ("float32", "bfloat16")
    flags.DEFINE_enum("dtype", "float32", dtypes, "The numbers to write.", flag_values=values)
    flags.DEFINE_bool(
        "change_numerics",
        False,
        "Write it although outputs will be a little different.",
        flag_values=values,
    )


def parse_size(text: str, *, flag: str) -> tuple[int, int] | None:
    """Parses "384" or "384x256" into (height, width); returns None for ""."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match:
        raise ConfigError(f"--{flag}={text}: write pixels, 384 or HEIGHTxWIDTH.")
    return int(match[1]), int(match[2] or match[1])


def print_verification(reference: pathlib.Path) -> bool:
    """Prints a line for each output of each fixture; returns whether all are right.

    Raises:
      CheckpointError: raised after all lines, if some fixtures could not be compared.
    """
    from vit_jax.pretrained.verification import fixtures, verify

    all_right, all_fixtures, failed = True, fixtures(reference), []
    print(f"{'fixture':40} {'array':18} {'difference':>10} {'noise':>8} {'allowed':>8}")
    for fixture in all_fixtures:
        try:
            for comparison in verify(fixture):
                all_right &= comparison.is_close
                line = (
                    f"{comparison.fixture:40} {comparison.array:18} {comparison.difference:10.1e} "
                    f"{comparison.noise_floor:8.1e} {comparison.tolerance:8.1e}"
                )
                print(printable(line + ("" if comparison.is_close else "  WRONG")), flush=True)
        except VitJaxError as error:
            failed.append(fixture["id"])
            print(printable(f"{fixture['id']:40} FAILED: {error}"), flush=True)
    if failed:
        raise CheckpointError(
            f"{len(failed)} of {len(all_fixtures)} fixtures could not be compared: "
            f"{', '.join(failed)}. The lines above say why."
        )
    return all_right


def _source_and_destination(arguments: list[str], *, to: str | None) -> tuple[str, str]:
    """Returns the two arguments of a conversion.

    Raises:
      ConfigError: one of them or the format is missing.
    """
    accepted = ", ".join(FORMATS)
    if not arguments and to is None:
        raise ConfigError(
            "Nothing to do: pass --inspect=CHECKPOINT, --verify=REFERENCE, or SOURCE DESTINATION "
            f"--to=FORMAT, one of {accepted}."
        )
    if len(arguments) > 2:
        raise ConfigError(
            f"Unexpected argument {' '.join(arguments[2:])!r}: write SOURCE DESTINATION "
            "--to=FORMAT."
        )
    missing = ["SOURCE", "DESTINATION"][len(arguments) :]
    if to is None:
        missing.append(f"--to=FORMAT (one of {accepted})")
    if missing:
        is_are = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{' and '.join(missing)} {is_are} missing: write vit-jax convert SOURCE DESTINATION "
            "--to=FORMAT."
        )
    source, destination = arguments
    return source, destination


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Inspects, verifies or converts."""
    from vit_jax.parallel import processes
    from vit_jax.parallel.compilation import enable_user_compilation_cache
    from vit_jax.pretrained.exports import check_destination, export
    from vit_jax.pretrained.formats.hints import parse_hints
    from vit_jax.pretrained.inspection import inspect
    from vit_jax.pretrained.load import load_pretrained

    enable_user_compilation_cache()
    processes.check_alone("convert")
    hints = parse_hints(values.hints)
    size = parse_size(values.image_size, flag="image_size")
    if arguments and (values.verify or values.inspect):
        raise ConfigError(
            f"Unexpected argument {' '.join(arguments)!r} beside --verify or --inspect."
        )
    if values.verify:
        if hints or size or values.leave_out:
            raise ConfigError(
                "--verify takes these settings from the manifest: --hints, --image_size and "
                "--leave_out have no effect, remove them."
            )
        all_right = print_verification(pathlib.Path(values.verify))
        return ExitCode.DONE if all_right else ExitCode.FAILED
    if values.inspect:
        description = inspect(
            values.inspect, image_size=size, hints=hints, leave_out=values.leave_out
        )
        print(printable(description))
        return ExitCode.DONE
    source, destination = _source_and_destination(arguments, to=values.to)
    check_destination(destination, to=values.to, dtype=values.dtype)
    pretrained = load_pretrained(source, image_size=size, hints=hints, leave_out=values.leave_out)
    notes = export(
        pretrained,
        destination,
        to=values.to,
        dtype=values.dtype,
        change_numerics=values.change_numerics,
    )
    lines = (f"{destination}: written, --to={values.to}", *pretrained.all_notes, *notes)
    print(printable("\n".join(lines)))
    return ExitCode.DONE


COMMAND = cli.Command(__doc__, define, main, takes_arguments=True)

if __name__ == "__main__":
    cli.run(COMMAND)
