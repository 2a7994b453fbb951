"""Compares runs: their curves in one image, and tables of cost, evaluations and differing keys.

    vit-jax compare runs/a runs/b [runs/c ...] [--out=comparison.png]

The runs may have different lengths, and may still be running. Curves show steps, or images seen if
the runs have different batch sizes.
"""

from absl import flags

from vit_jax import cli, storage


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "out", "comparison.png", "Image of the curves, .png or .svg; none: no image.",
        flag_values=values,
    )  # fmt: skip


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Compares the runs."""
    from vit_jax.analysis.comparison import compare_runs
    from vit_jax.telemetry.progress import wide_console

    out = None if values.out == "none" else storage.as_path(values.out, name="--out")
    wide_console().print(compare_runs(arguments, out=out).tables())
    if out is not None:
        print(f"\nCurves: {out}")


COMMAND = cli.Command(__doc__, define, main, takes_arguments=True)

if __name__ == "__main__":
    cli.run(COMMAND)
