"""The base class of the results of measures: arrays with named axes, a figure, a table, files."""

import abc
import dataclasses
import io
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError, DataError
from vit_jax.telemetry.progress import format_count

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

# Axes whose positions are counted from 1 in tables, as in figures.
_COUNTED_FROM_1 = ("layer", "head", "component", "row", "column", "image", "query", "rank")
_MOST_IN_JSON = 20_000  # Values of an array; larger ones are in the .npz only.


class NotApplicableError(ConfigError):
    """A measure that a model has not, such as the attention of a ResNet; the message says why."""


class NamedArray(NamedTuple):
    """An array of a result.

    Attributes:
      values: numbers.
      axes: the name of each axis, such as ("layer", "head").
      unit: such as "pixels"; "": none.
      meaning: what the numbers are.
    """

    values: np.ndarray
    axes: tuple[str, ...]
    unit: str
    meaning: str


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result(abc.ABC):
    """The result of a measure.

    Attributes:
      name: of the measure, and of its files.
      title: of its figure.
      shows: what a reader sees in the figure, in a sentence.
      definition: how it is computed, in sentences: the tokens that are left out, whether weights
        are renormalised, the interval.
      source: the publication of the formula.
      summary_units: units of the numbers of `summary`; of others there is none.
      checkpoint: what was measured.
      num_images: number of images.
      notes: what a reader must know beside the definition.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    shows: ClassVar[str]
    definition: ClassVar[str]
    source: ClassVar[str]
    summary_units: ClassVar[Mapping[str, str]] = {}
    checkpoint: str
    num_images: int
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def arrays(self) -> dict[str, NamedArray]:
        """Returns the arrays by name; the first ones with equal axes are the table."""

    @abc.abstractmethod
    def plot(self) -> "matplotlib.figure.Figure":
        """Returns the figure, which a notebook shows."""

    def summary(self) -> dict[str, float]:
        """Returns a few numbers that compare models or steps of a run, by names of metrics."""
        return {}

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns {axis: what its positions are, such as names of methods}.

        Tables count layers and the other axes of `_COUNTED_FROM_1` from 1, as figures do: block i
        of n is layer i, and 0 is the embedding, in the measures that have it. So tables of
        different measures can be joined on the layer. Arrays and arguments count from 0.
        """
        sizes: dict[str, int] = {}
        for array in self.arrays().values():
            for axis, size in zip(array.axes, array.values.shape, strict=True):
                if axis in _COUNTED_FROM_1:
                    sizes[axis] = max(size, sizes.get(axis, 0))
        return {axis: tuple(range(1, size + 1)) for axis, size in sizes.items()}

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns the table: a column for each axis of the first array, and for each such array.

        The columns of axes have the values of `coordinates`; others count from 0.

        Raises:
          ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigError(
                "A table needs pandas, which is not installed: pip install pandas. arrays() has "
                "the numbers."
            ) from error
        arrays = self.arrays()
        axes = next(iter(arrays.values())).axes
        columns = {name: array for name, array in arrays.items() if array.axes == axes}
        shape = next(iter(columns.values())).values.shape
        names = self.coordinates()
        positions = (
            [names[axis][i] for i in index.ravel()] if axis in names else index.ravel()
            for axis, index in zip(axes, np.indices(shape), strict=True)
        )  # fmt: skip
        return pandas.DataFrame(
            dict(zip(axes, positions, strict=True))
            | {name: array.values.ravel() for name, array in columns.items()}
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the description and the numbers; of arrays above 20,000 values only the shape."""
        return {
            "measure": self.name,
            "title": self.title,
            "shows": self.shows,
            "definition": self.definition,
            "source": self.source,
            "checkpoint": self.checkpoint,
            "num_images": self.num_images,
            "notes": list(self.notes),
            "summary": {name: _json(np.float64(x)) for name, x in self.summary().items()},
            "summary_units": dict(self.summary_units),
            "coordinates": {axis: list(names) for axis, names in self.coordinates().items()},
            "arrays": {
                name: {
                    "axes": list(array.axes),
                    "shape": list(array.values.shape),
                    "unit": array.unit,
                    "meaning": array.meaning,
                }
                | ({"values": _json(array.values)} if array.values.size <= _MOST_IN_JSON else {})
                for name, array in self.arrays().items()
            },
        }

    def save(self, folder: epath.PathLike) -> list[epath.Path]:
        """Writes NAME.png, NAME.svg, NAME.json and NAME.npz into a folder; returns their paths.

        A file that exists is replaced when the new one is complete.

        Raises:
          DataError: a file cannot be written.
        """
        from vit_jax.analysis import figures

        folder = storage.as_path(folder, name="folder")
        figure, arrays = self.plot(), io.BytesIO()
        values: dict[str, Any] = {name: array.values for name, array in self.arrays().items()}
        np.savez_compressed(arrays, **values)
        contents = {
            ".png": figures.rendered(figure, "png"),
            ".svg": figures.rendered(figure, "svg"),
            ".json": json.dumps(self.to_json(), indent=1, allow_nan=False).encode(),
            ".npz": arrays.getvalue(),
        }
        paths = []
        with storage.reported(DataError, f"{folder} cannot be written"):
            storage.make_folder(folder)
            for ending, content in contents.items():
                paths.append(folder / f"{self.name}{ending}")
                storage.write_bytes(paths[-1], content)
        return paths

    def __repr__(self) -> str:
        """Returns a few lines: the title, what was measured, and the arrays."""
        images = f", {format_count(self.num_images, 'image')}" if self.num_images else ""
        lines = [
            f"{array_name} [{', '.join(array.axes)}] {array.values.shape}"
            + (f" in {array.unit}" if array.unit else "")
            for array_name, array in self.arrays().items()
        ]
        return "\n".join([f"{self.title}: {self.checkpoint}{images}", *lines, *self.notes])


def _json(values: np.ndarray | np.floating) -> Any:
    """Returns nested lists with null for what is not finite, which JSON has no number for."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values.tolist()
    return json.loads(re.sub(r"-?\b(NaN|Infinity)\b", "null", json.dumps(values.tolist())))
