"""Answers a question about a table of runs, and writes the results."""

import json
import os
import pathlib

from etils import epath

from vit_jax import storage
from vit_jax.analysis import figures
from vit_jax.errors import ConfigError
from vit_jax.scaling import report
from vit_jax.scaling.question import Question
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
    result, plots = study(read_runs(runs), question, runs=str(runs))
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
