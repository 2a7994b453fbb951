r"""Fits scaling laws to a table of runs, and reports how reliable they are.

    vit-jax fit --runs=runs/study/runs.parquet --law=auto --x=total_train_flops \
        --frontier --out=runs/study/fit
    vit-jax fit --runs=papers.csv --law=power_floor --x="Seen Examples" --y=Loss \
        --group=Model --where=Task=inet_10 --hold_back=Training=0 --out=fit
    vit-jax fit --runs=runs/study/runs.parquet --law=chinchilla --budget=1e15 --out=fit

The table is a .csv or .parquet file with a row for each run, or the folder of a sweep.
Of a table by `vit-jax sweep`, only rows of a run's last step and of the evaluation "test" are used.
y and the inputs are columns, or expressions of columns with + - * / and brackets: --y=1-top1,
--x=params*examples_seen. Writes fit.json, figures as PNG and SVG, and report.html, a page that
needs no other file.

Laws: power, power_floor, m3, m4, bnsl (of --x); frontier (of --x; fitted to the Pareto frontier of
the rows, as is any other law with --frontier); auto (the one of these that best predicts larger
scales); chinchilla (of --n and --d) and chinchilla_repeat (and --u); shape (of --x, for example a
width, and --t; several columns for --x are the arms of a star); isoflop (parabolas over --x at each
--t).

How a law is fitted is --huber_delta, --weights, --bounds and --starts; the report says what was
used. --law=chinchilla --huber_delta=0.001 fits as Hoffmann et al. 2022 do.
"""

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from vit_jax import cli, storage
from vit_jax.errors import ConfigError
from vit_jax.scaling.columns import COLUMNS
from vit_jax.scaling.question import AUTO, NAMES


def parse_numbers(flag: str, texts: Sequence[str]) -> tuple[float, ...]:
    """Parses the values of a flag that takes several numbers.

    Raises:
      ConfigError: a text is not a number.
    """
    try:
        return tuple(map(float, texts))
    except ValueError:
        raise ConfigError(
            f"--{flag}={','.join(texts)}: write numbers, such as 1e15,1e16."
        ) from None


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "runs", None, "Table of runs: .parquet, .csv, or a sweep's folder.", flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "Folder of the results; created if missing.", flag_values=values
    )
    flags.DEFINE_enum("law", AUTO, NAMES, "One of the laws above.", flag_values=values)
    flags.DEFINE_string(
        "y",
        "error",
        "Column of errors or losses, or an expression: 1-top1.",
        flag_values=values,
    )
    for role, meaning in COLUMNS.items():
        flags.DEFINE_string(
            role, None, f"Column of the input {role}: {meaning}.", flag_values=values
        )
    flags.DEFINE_list(
        "group",
        [],
        "Columns: one fit per combination of their values.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "where", [], "Only rows with COLUMN=VALUE (!=, <, >=, ...).", flag_values=values
    )
    flags.DEFINE_multi_string(
        "hold_back",
        [],
        "Test set: do not fit rows with COLUMN>=VALUE, but evaluate the law on them.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "frontier",
        False,
        "Fit only rows on the Pareto frontier of y over x.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "chosen_by",
        "",
        "Evaluation whose y chooses among runs of a group with equal x and seed.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "budget",
        [],
        "chinchilla: training FLOPs whose optimal n and d are computed.",
        flag_values=values,
    )
    flags.DEFINE_list("predict", [], "Values of x at which y is predicted.", flag_values=values)
    flags.DEFINE_float("level", 0.9, "Coverage of the intervals.", flag_values=values)
    _define_method(values)


def _define_method(values: flags.FlagValues) -> None:
    flags.DEFINE_float(
        "huber_delta",
        None,
        "Log residual at which Huber's loss changes from squares to absolute values: 0.001 "
        "(Chinchilla), inf (least squares); by default 1.345 robust standard deviations.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "weights", "", "Column of the rows' weights; by default equal.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "bounds",
        [],
        "Bounds of a parameter, PARAMETER=LOW:HIGH; PARAMETER=VALUE fixes it.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "starts",
        [],
        "Initial values of a parameter: PARAMETER=VALUE,VALUE. All combinations are tried.",
        flag_values=values,
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Fits."""
    from vit_jax.parallel.compilation import enable_user_compilation_cache
    from vit_jax.scaling.fit import check_folder, fit_law, write
    from vit_jax.scaling.question import parse_bounds, parse_starts

    enable_user_compilation_cache()
    out = storage.as_path(values.out, name="--out")
    check_folder(out)
    answered = fit_law(
        values.runs,
        values.law,
        y=values.y,
        **{role: values[role].value for role in COLUMNS},
        weights=values.weights,
        huber_delta=values.huber_delta,
        bounds=parse_bounds(values.bounds),
        starts=parse_starts(values.starts),
        group=tuple(values.group),
        where=tuple(values.where),
        hold_back=tuple(values.hold_back),
        frontier=values.frontier,
        chosen_by=values.chosen_by,
        budgets=parse_numbers("budget", values.budget),
        predict=parse_numbers("predict", values.predict),
        level=values.level,
    )
    print(write(answered, out, command=shlex.join(["vit-jax", "fit", *sys.argv[1:]])))


COMMAND = cli.Command(__doc__, define, main, required=("runs", "out"))

if __name__ == "__main__":
    cli.run(COMMAND)
