"""A prediction for one file."""

import dataclasses

import numpy as np
from jaxtyping import Float32


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """The model's prediction for one file.

    Attributes:
      path: the path as given, or as found in a folder.
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
