r"""Inspects, verifies and converts checkpoints of any known format.

    python -m vit_jax.convert --inspect CHECKPOINT [--image_size=384]
    python -m vit_jax.convert --verify REFERENCE
    python -m vit_jax.convert SOURCE DESTINATION --to=hf [--image_size=384] [--dtype=bfloat16]

CHECKPOINT and SOURCE are a file, a folder, one of our work directories, or a name on a hub
(hf:google/vit-base-patch16-224, timm:vit_base_patch16_224.augreg_in21k, gs://vit_models/...npz).
Hints supply what a file does not contain: --hints=num_heads=12,image_size=224x224.

Exit codes: 0 done; 1 --verify found a difference; 2 an error that the message explains.
"""

import pathlib
import re
from collections.abc import Sequence

from absl import flags

from vit_jax import cli
from vit_jax.errors import CheckpointError, ConfigError, ExitCode, VitJaxError, printable
from vit_jax.pretrained.exports import DTYPES, TARGETS, check_destination, export
from vit_jax.pretrained.formats.hints import parse_hints
from vit_jax.pretrained.inspection import inspect
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.verification import fixtures, verify


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


if __name__ == "__main__":
    _INSPECT = flags.DEFINE_string("inspect", "", "A checkpoint to describe.")
    _VERIFY = flags.DEFINE_string("verify", "", "A folder of fixtures to compare with.")
    _SIZE = flags.DEFINE_string("image_size", "", "Pixels, 384 or HEIGHTxWIDTH.")
    _HINTS = flags.DEFINE_list("hints", [], "What the file does not tell: NAME=VALUE,...")
    _LEAVE_OUT = flags.DEFINE_list("leave_out", [], "Patterns of tensors or parameters to leave.")

    _TO = flags.DEFINE_enum("to", None, TARGETS, "The format to write.")
    _DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "The numbers to write.")
    _CHANGE = flags.DEFINE_bool(
        "change_numerics", False, "Write it although outputs will be a little different."
    )

    def main(argv: Sequence[str]) -> int:
        hints = parse_hints(_HINTS.value)
        size = parse_size(_SIZE.value, flag="image_size")
        if _VERIFY.value:
            cli.no_arguments(argv)
            if hints or size or _LEAVE_OUT.value:
                raise ConfigError(
                    "--verify takes these settings from the manifest: --hints, --image_size and "
                    "--leave_out have no effect, remove them."
                )
            return (
                ExitCode.DONE
                if print_verification(pathlib.Path(_VERIFY.value))
                else ExitCode.FAILED
            )
        if _INSPECT.value:
            cli.no_arguments(argv)
            description = inspect(
                _INSPECT.value, image_size=size, hints=hints, leave_out=_LEAVE_OUT.value
            )
            print(printable(description))
            return 0
        if len(argv) != 3 or not _TO.value:
            raise ConfigError(
                "Nothing to do: pass --inspect=CHECKPOINT, --verify=REFERENCE, or SOURCE "
                f"DESTINATION --to={'|'.join(TARGETS)}."
            )
        check_destination(argv[2], to=_TO.value, dtype=_DTYPE.value)
        pretrained = load_pretrained(
            argv[1], image_size=size, hints=hints, leave_out=_LEAVE_OUT.value
        )
        notes = export(
            pretrained, argv[2], to=_TO.value, dtype=_DTYPE.value, change_numerics=_CHANGE.value
        )
        print(
            printable(
                "\n".join((f"{argv[2]}: written, --to={_TO.value}", *pretrained.notes, *notes))
            )
        )
        return 0

    cli.run(main)
