"""Fits laws to a table of runs in one call, and writes the results: `vit-jax fit`."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError, DataError
from vit_jax.scaling import page as pages
from vit_jax.scaling.method import Method
from vit_jax.scaling.question import Question
from vit_jax.scaling.study import Study, study
from vit_jax.scaling.table import read_runs


@runtime_checkable
class Columns(Protocol):
    """Columns by name: a dict, a pandas.DataFrame, or whatever `dict()` takes likewise."""

    def keys(self) -> Any: ...

    def __getitem__(self, name: Any, /) -> Any: ...


def fit_law(
    table: str | os.PathLike | Columns,
    law: str = "auto",
    *,
    y: str = "error",
    x: str | None = None,
    n: str | None = None,
    d: str | None = None,
    u: str | None = None,
    t: str | None = None,
    weights: str = "",
    huber_delta: float | int | None = None,
    bounds: Mapping[str, Any] | None = None,
    starts: Mapping[str, Sequence[float | int]] | None = None,
    level: float = 0.9,
    **selection: Any,
) -> Study:
    """Fits a scaling law to a table of runs; `vit-jax fit` prints and draws its result.

    >>> images = [300, 1000, 3000, 10_000, 30_000, 60_000]
    >>> error = [0.3051, 0.2195, 0.1697, 0.1346, 0.1160, 0.1072]
    >>> study = fit_law({"images": images, "error": error}, "power_floor", x="images")
    >>> study.result["law"], round(study.params()["c"].estimate, 2)
    ('power_floor', -0.4)
    >>> prediction = study.predict(120_000)
    >>> float(prediction.estimate[0].round(3)), prediction.supported
    (0.101, True)

    `print(study)` shows the parameters with their intervals, the error on held-out larger scales
    and the verdicts; `study.result` has all numbers, `study.figures()` the figures.

    Args:
      table: a .csv or .parquet file with a row for each run, or columns by name: a dict of
        sequences, or a pandas.DataFrame.
      law: power, power_floor, m3, m4, bnsl, frontier (of x), chinchilla (of n and d),
        chinchilla_repeat (and u), shape (of x and t), isoflop (of x and t), or auto: the law of x
        that best predicts held-out larger scales.
      y: the column of errors or losses, or an expression such as "1-top1".
      x: the column, or an expression, of the input x; None: `columns.COLUMNS`.
      n: that of the number of parameters.
      d: that of the number of examples.
      u: that of the number of different examples.
      t: that of the compute.
      weights: the column of the rows' weights; "": equal weights.
      huber_delta: the log residual at which Huber's loss changes from squares to absolute values,
        such as .001 (Hoffmann et al. 2022). None: 1.345 robust standard deviations; math.inf: least
        squares.
      bounds: (lowest, highest) value by parameter, in the units of the law; equal ones, or a
        number, fix it.
      starts: initial values by parameter, every combination of which is tried.
      level: coverage of the intervals.
      **selection: further attributes of `question.Question`: group, where, hold_back, frontier,
        chosen_by, budgets and predict.

    Returns:
      The fitted laws: `params()` and `predict(...)` of the law, or of a group's; see `study.Study`.

    Raises:
      ConfigError: the law, a column, a parameter or a condition does not exist, or does not fit.
      DataError: the table cannot be read, or no law can be fitted to its rows.
    """
    columns = {"x": x, "n": n, "d": d, "u": u, "t": t}
    for key, value in selection.items():  # A single one needs no brackets.
        if isinstance(value, str | int | float) and key not in ("frontier", "chosen_by"):
            selection[key] = (value,)
    question = Question(
        law=law,
        y=y,
        columns={role: name for role, name in columns.items() if name},
        weights=weights,
        method=Method(delta=huber_delta, bounds=_pairs(bounds or {}), starts=dict(starts or {})),
        level=level,
        **selection,
    )
    if isinstance(table, str | os.PathLike):
        return study(read_runs(table), question, runs=str(table))
    return study(_read_columns(table), question, runs="columns")


def _pairs(bounds: Mapping[str, Any]) -> dict[str, tuple[float | int, float | int]]:
    """Returns bounds as pairs; a number fixes its parameter."""
    pairs = {}
    for name, given in bounds.items():
        values = np.asarray([given, given] if np.isscalar(given) else given)
        if values.shape != (2,) or values.dtype.kind not in "iuf":
            raise ConfigError(
                f"bounds of {name}: {given!r} is neither a number nor two: write "
                "(lowest, highest), such as (0, 1), or a number to fix it."
            )
        pairs[name] = (float(values[0]), float(values[1]))
    return pairs


def write(answered: Study, out: epath.PathLike, *, command: str) -> str:
    """Writes fit.json, report.html and the figures.

    Args:
      answered: the result of `fit_law`.
      out: folder of the results; created if it does not exist.
      command: the command line, shown in the report.

    Returns:
      A summary for the terminal.

    Raises:
      ConfigError: `out` cannot be written.
    """
    import matplotlib

    from vit_jax.analysis import figures

    out, result, plots = epath.Path(out), answered.result, answered.figures()
    with matplotlib.rc_context(figures.STYLE):  # It has the PNG's resolution.
        svgs = {name: figures.rendered(figure, "svg") for name, figure in plots.items()}
        pngs = {name: figures.rendered(figure, "png") for name, figure in plots.items()}
    page = pages.page(result, {name: svg.decode() for name, svg in svgs.items()}, command=command)
    with storage.reported(ConfigError, f"--out={out} cannot be written"):
        storage.make_folder(out)
        replaced = _replaced(out, result)
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        storage.write_bytes(out / "fit.json", text.encode())
        storage.write_bytes(out / "report.html", page.encode())
        for name in plots:
            storage.write_bytes(out / f"{name}.svg", svgs[name])
            storage.write_bytes(out / f"{name}.png", pngs[name])
    figures_written = ", ".join(f"{name}.png" for name in plots)
    return f"{answered}\n\nIn {out}: fit.json, report.html, {figures_written} (and .svg).{replaced}"


def _replaced(out: epath.Path, result: Mapping[str, Any]) -> str:
    """Returns a note if the folder has the report of another question, else ""."""
    try:
        earlier = json.loads((out / "fit.json").read_text())
        title, runs, question = (earlier.get(key) for key in ("title", "runs", "question"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError):
        return "\nReplaces a fit.json that was not written by vit-jax fit."
    if (runs, question) == (result["runs"], result["question"]):
        return ""
    return f"\nReplaces the report of another question: {title}, of {runs}."


def check_folder(out: epath.PathLike) -> None:
    """Checks, before the computation, that results can have this folder.

    Raises:
      ConfigError: it is a file.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise ConfigError(f"--out={out} is a file: choose a folder.")


def _read_columns(table: Columns) -> dict[str, np.ndarray]:
    """Returns columns as arrays of one length, as `table.read_runs` does."""
    columns = {str(name): _as_array(str(name), cells) for name, cells in dict(table).items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len({*lengths.values()}) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"Columns of a table must be of one length, but have these: {counts}.")
    return columns


def _as_array(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f'The column "{name}" has {array.ndim} dimensions instead of one.')
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    if array.dtype.kind in "bU":
        return array
    cells = array.tolist()
    if all(cell is None or isinstance(cell, int | float) for cell in cells):
        return np.array([np.nan if cell is None else cell for cell in cells], np.float64)
    return np.array(["" if cell is None else str(cell) for cell in cells])
