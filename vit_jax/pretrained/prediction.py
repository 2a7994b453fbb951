"""The classes that a model predicts for images."""

import dataclasses
import html
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from vit_jax.errors import printable

_MOST_SHOWN = 20  # Images of a table.


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """The model's prediction for one image.

    Attributes:
      path: the path as given, or as found in a folder; "image 0", ... of images in memory.
      classes: names of the most probable classes, the most probable first; () without a head.
      probabilities: probabilities of `classes`.
      error: why the file has no prediction; "" if it has one.
      features: the input of the model's head (`pre_logits`); None if the file has no prediction.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    features: Float32[np.ndarray, " d"] | None = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        """Returns the path with classes and the number of features, or with the error."""
        if self.error:
            return f"Prediction(path={self.path!r}, error={self.error!r})"
        parts = [f"path={self.path!r}"]
        if self.classes:
            shares = ", ".join(f"{share:.3f}" for share in self.probabilities)
            parts += [f"classes={self.classes!r}", f"probabilities=({shares})"]
        if self.features is not None:
            parts.append(f"features={self.features.dtype}[{len(self.features)}]")
        return f"Prediction({', '.join(parts)})"

    def text(self) -> str:
        """Returns a line for the terminal."""
        if self.error:
            return f"{self.path}: cannot be predicted: {self.error}"
        if not self.classes:
            assert self.features is not None  # Of every file that has no error.
            return f"{self.path}: {len(self.features)} features"
        pairs = zip(self.classes, self.probabilities, strict=True)
        return f"{self.path}: " + ", ".join(f"{name} {share:.1%}" for name, share in pairs)


class Predictions(tuple[Prediction, ...]):
    """The predictions for several images, shown as a table of the first 20."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Returns the table: a line for each class, below each other for each image."""
        rows = [("image", "probability", "class"), *self._rows()]
        width = max(len(image) for image, _, _ in rows)
        lines = [f"{image:{width}}  {share:>11}  {name}".rstrip() for image, share, name in rows]
        return "\n".join([*lines, *self._rest()])

    def _repr_html_(self) -> str:
        """Returns the table for a notebook."""
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in self._rows()
        )
        rest = "".join(f"<p>{text}</p>" for text in self._rest())
        header = "<tr><th>image</th><th>probability</th><th>class</th></tr>"
        return f"<table><thead>{header}</thead><tbody>{rows}</tbody></table>{rest}"

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Yields image, probability and class; the image's name only with its first class."""
        for prediction in self[:_MOST_SHOWN]:
            image = printable(prediction.path).replace("\n", " ")
            for name, share in zip(prediction.classes, prediction.probabilities, strict=True):
                yield image, f"{share:.1%}", printable(name).replace("\n", " ")
                image = ""

    def _rest(self) -> list[str]:
        more = len(self) - _MOST_SHOWN
        return [f"... and {more:,} more"] if more > 0 else []
