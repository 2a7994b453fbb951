r"""Fits scaling laws to a table of runs, and reports how reliable they are.

    python -m vit_jax.fit --runs=runs/study/runs.parquet --law=auto --x=total_train_flops \
        --frontier --out=runs/study/fit
    python -m vit_jax.fit --runs=papers.csv --law=power_floor --x="Seen Examples" --y=Loss \
        --group=Model --where=Task=inet_10 --hold_back=Training=0 --out=fit
    python -m vit_jax.fit --runs=runs/study/runs.parquet --law=chinchilla --budget=1e15 --out=fit

The table is a .csv or .parquet file with a row for each run. Of a table by vit_jax.sweep, only rows
of a run's last step and of the evaluation "test" are used. y and the inputs are columns, or
expressions of columns with + - * / and brackets: --y=1-test/top1, --x=6*params*tokens. Writes
fit.json, figures as PNG and SVG, and report.html, a page that needs no other file.

Laws: power, power_floor, m3, m4, bnsl (of --x); frontier (of --x; fitted to the Pareto frontier of
the rows, as is any other law with --frontier); auto (the one of these that best predicts larger
scales); chinchilla (of --n and --d) and chinchilla_repeat (and --u); shape (of --x, for example a
width, and --t; several columns for --x are the arms of a star); isoflop (parabolas over --x at each
--t).
"""

import json
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags
from etils import epath

from vit_jax import cli, storage
from vit_jax.analysis import figures
from vit_jax.errors import ConfigError
from vit_jax.parallel.compilation import enable_user_compilation_cache
from vit_jax.scaling import report
from vit_jax.scaling.question import AUTO, COLUMNS, NAMES, Question
from vit_jax.scaling.study import study
from vit_jax.scaling.table import read_runs


def fit(runs: pathlib.Path, question: Question, out: epath.PathLike, *, command: str) -> str:
    """Answers a question about a table and writes fit.json, report.html and the figures.

    Args:
      runs: the table, a .csv or .parquet file.
      question: the law, its columns and the rows to use.
      out: folder of the results; created if it does not exist.
      command: the command line, shown in the report.

    Returns:
      A summary for the terminal.

    Raises:
      VitJaxError: the table or the question is wrong, no law can be fitted, or `out` cannot be
        written.
    """
    out = epath.Path(out)
    if os.path.lexists(out) and not os.path.isdir(out):  # Checked before the computation.
        raise ConfigError(f"--out={out} is a file: choose a folder.")
    answered = study(read_runs(runs), question, runs=str(runs))
    result, plots = answered.result, answered.figures()
    svgs = {name: figures.rendered(figure, "svg") for name, figure in plots.items()}
    page = report.page(result, {name: svg.decode() for name, svg in svgs.items()}, command=command)
    with storage.reported(ConfigError, f"--out={out} cannot be written"):
        storage.make_folder(out)
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        storage.write_bytes(out / "fit.json", text.encode())
        storage.write_bytes(out / "report.html", page.encode())
        for name, figure in plots.items():
            storage.write_bytes(out / f"{name}.svg", svgs[name])
            storage.write_bytes(out / f"{name}.png", figures.rendered(figure, "png"))
    figures_written = ", ".join(f"{name}.png" for name in plots)
    return (
        f"{report.text(result)}\n\nIn {out}: fit.json, report.html, {figures_written} (and .svg)."
    )


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


if __name__ == "__main__":
    _RUNS = flags.DEFINE_string("runs", None, "Table of runs: .parquet or .csv.")
    _OUT = flags.DEFINE_string("out", None, "Folder of the results; created if missing.")
    _LAW = flags.DEFINE_string("law", AUTO, f"One of {', '.join(NAMES)}.")
    _Y = flags.DEFINE_string("y", "error", "Column of errors or losses, or an expression: 1-top1.")
    _COLUMNS = {
        role: flags.DEFINE_string(role, None, f"Column of the input {role}: {COLUMNS[role]}.")
        for role in COLUMNS
    }
    _GROUP = flags.DEFINE_list("group", [], "Columns: one fit per combination of their values.")
    _WHERE = flags.DEFINE_multi_string("where", [], "Only rows with COLUMN=VALUE (!=, <, >=, ...).")
    _HOLD_BACK = flags.DEFINE_multi_string(
        "hold_back",
        [],
        "Test set: do not fit rows with COLUMN>=VALUE, but evaluate the law on them.",
    )
    _FRONTIER = flags.DEFINE_bool(
        "frontier", False, "Fit only rows on the Pareto frontier of y over x."
    )
    _CHOSEN_BY = flags.DEFINE_string(
        "chosen_by", "", "Evaluation whose y chooses among runs of a group with equal x and seed."
    )
    _BUDGET = flags.DEFINE_list(
        "budget", [], "chinchilla: training FLOPs whose optimal n and d are computed."
    )
    _PREDICT = flags.DEFINE_list("predict", [], "Values of x at which y is predicted.")
    _LEVEL = flags.DEFINE_float("level", 0.9, "Coverage of the intervals.")
    flags.mark_flags_as_required(["runs", "out"])

    def main(argv: Sequence[str]) -> None:
        cli.no_arguments(argv)
        enable_user_compilation_cache()
        question = Question(
            law=_LAW.value,
            y=_Y.value,
            columns={role: flag.value for role, flag in _COLUMNS.items() if flag.value},
            group=tuple(_GROUP.value),
            where=tuple(_WHERE.value),
            hold_back=tuple(_HOLD_BACK.value),
            frontier=_FRONTIER.value,
            chosen_by=_CHOSEN_BY.value,
            budgets=parse_numbers("budget", _BUDGET.value),
            predict=parse_numbers("predict", _PREDICT.value),
            level=_LEVEL.value,
        )
        command = shlex.join(["python", "-m", "vit_jax.fit", *sys.argv[1:]])
        out = storage.as_path(_OUT.value, name="--out")
        print(fit(pathlib.Path(_RUNS.value), question, out, command=command))

    cli.run(main)
