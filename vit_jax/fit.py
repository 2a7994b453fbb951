r"""Fits scaling laws to a table of runs, ours or anybody's, and says how far they can be trusted.

    python -m vit_jax.fit --runs=runs/study/runs.parquet --law=auto --x=total_train_flops \
        --frontier --out=runs/study/fit
    python -m vit_jax.fit --runs=papers.csv --law=power_floor --x="Seen Examples" --y=Loss \
        --group=Model --where=Task=inet_10 --hold_back=Training=0 --out=fit
    python -m vit_jax.fit --runs=runs/study/runs.parquet --law=chinchilla --budget=1e15 --out=fit

The table is a .csv or .parquet file with a row for each run, or vit_jax.sweep's, of which the rows
of a run's last step and of the evaluation "test" count. y and the inputs are columns, or computed
from columns with + - * / and brackets: --y=1-test/top1, --x=6*params*tokens. Writes fit.json,
figures as PNG and SVG, and report.html, one page that needs no other file.

Laws: power, power_floor, m3, m4, bnsl (of --x); frontier (of --x, and of the Pareto frontier of the
rows, as any other with --frontier); auto (of these the one that best predicts larger scales);
chinchilla (of --n and --d) and chinchilla_repeat (and --u); shape (of --x, such as a width, and
--t; several columns for --x are the arms of a star); isoflop (parabolas over --x at each --t).
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
      runs: the table.
      question: what is asked.
      out: folder; made if it is not there.
      command: that asked, for the report.

    Returns:
      What to say in a terminal.

    Raises:
      VitJaxError: the table or the question is wrong, no law can be fitted, or `out` cannot be
        written.
    """
    out = epath.Path(out)
    if os.path.lexists(out) and not os.path.isdir(out):  # Said before anything is computed.
        raise ConfigError(f"--out={out} is a file: choose a folder.")
    result, drawn = study(read_runs(runs), question, runs=str(runs))
    vectors = {name: figures.rendered(figure, "svg") for name, figure in drawn.items()}
    page = report.page(
        result, {name: svg.decode() for name, svg in vectors.items()}, command=command
    )
    with storage.reported(ConfigError, f"--out={out} cannot be written"):
        storage.make_folder(out)
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        storage.write_bytes(out / "fit.json", text.encode())
        storage.write_bytes(out / "report.html", page.encode())
        for name, figure in drawn.items():
            storage.write_bytes(out / f"{name}.svg", vectors[name])
            storage.write_bytes(out / f"{name}.png", figures.rendered(figure, "png"))
    figures_written = ", ".join(f"{name}.png" for name in drawn)
    return (
        f"{report.text(result)}\n\nIn {out}: fit.json, report.html, {figures_written} (and .svg)."
    )


def parse_numbers(flag: str, texts: Sequence[str]) -> tuple[float, ...]:
    """The numbers of a flag that takes several.

    Raises:
      ConfigError: one of the texts is no number.
    """
    try:
        return tuple(map(float, texts))
    except ValueError:
        raise ConfigError(
            f"--{flag}={','.join(texts)}: write numbers, such as 1e15,1e16."
        ) from None


if __name__ == "__main__":
    _RUNS = flags.DEFINE_string("runs", None, "Table of runs: .parquet or .csv.")
    _OUT = flags.DEFINE_string("out", None, "Folder for what is written; made if it is not there.")
    _LAW = flags.DEFINE_string("law", AUTO, f"One of {', '.join(NAMES)}.")
    _Y = flags.DEFINE_string("y", "error", "Column of errors or losses, or such as 1-top1.")
    _COLUMNS = {
        role: flags.DEFINE_string(role, None, f"Column of the input {role}: {COLUMNS[role]}.")
        for role in COLUMNS
    }
    _GROUP = flags.DEFINE_list("group", [], "Columns: a fit for the rows that agree in them.")
    _WHERE = flags.DEFINE_multi_string("where", [], "Only rows with COLUMN=VALUE (!=, <, >=, ...).")
    _HOLD_BACK = flags.DEFINE_multi_string(
        "hold_back", [], "Do not fit rows with COLUMN>=VALUE, but judge the law by them."
    )
    _FRONTIER = flags.DEFINE_bool("frontier", False, "Only the rows with the least y for their x.")
    _CHOSEN_BY = flags.DEFINE_string(
        "chosen_by", "", "Evaluation whose y chooses among runs of a group with equal x and seed."
    )
    _BUDGET = flags.DEFINE_list(
        "budget", [], "chinchilla: training FLOPs to find the best n, d of."
    )
    _PREDICT = flags.DEFINE_list("predict", [], "Values of x to predict y at.")
    _LEVEL = flags.DEFINE_float("level", 0.9, "How often an interval is to cover.")
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
