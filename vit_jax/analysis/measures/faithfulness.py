"""How faithful maps of what a model looked at are: deletion and insertion curves over images."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.analysis import figures
from vit_jax.analysis.measures import deletion
from vit_jax.analysis.measures.bootstrap import MeanOverImages
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.explanation_maps import (
    DEFINITIONS,
    METHODS,
    applicable,
    no_classes,
    predicted_classes,
)
from vit_jax.analysis.measures.explanations import class_number, image_maps
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, open_images
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.pretrained.model import Pretrained

if TYPE_CHECKING:
    import pandas

RANDOM = "random"
_FLAT = 1e-6  # Float32 rounding of a probability.
# Quantity of each method -> meaning.
AREAS = {
    "deletion_area": "area under the deletion curve: small if the map is faithful",
    "insertion_area": "area under the insertion curve: large if the map is faithful",
    "deletion_gain": "random's deletion area minus the method's, paired by image",
    "insertion_gain": "the method's insertion area minus random's, paired by image",
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Faithfulness(Result):
    """The result of `faithfulness`.

    Attributes:
      methods: the axis of all arrays; the last one is "random".
      removed: share of the patches that are removed, or put back, at each step.
      mean: {"deletion" or "insertion": [method, step]}, the mean probability of the target, and the
        quantities of `AREAS`, [method].
      interval: the ends of the 95% intervals, [2, ...].
    """

    methods: tuple[str, ...]
    removed: Float[np.ndarray, " step"]
    mean: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]

    name: ClassVar[str] = "faithfulness"
    title: ClassVar[str] = "Faithfulness of explanations"
    definition: ClassVar[str] = (
        f"{deletion.DEFINITION} The target is the predicted class of the whole image, unless one "
        "was named. Intervals: bootstrap over images, 95%. The maps: "
        + " ".join(f"{method}: {text}." for method, (text, _) in DEFINITIONS.items())
    )
    source: ClassVar[str] = deletion.SOURCE

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the areas of each method, then the curves, each with the ends of its interval."""
        arrays, names = {}, f"methods: {', '.join(self.methods)}"
        curves = {curve: f"probability of the target, {curve} curve" for curve in deletion.CURVES}
        for quantity, meaning in (AREAS | curves).items():
            axes = ("method",) if quantity in AREAS else ("method", "step")
            low, high = self.interval[quantity]
            for name, values, text in (
                (quantity, self.mean[quantity], meaning),
                (f"{quantity}_low", low, f"low end of the 95% interval: {meaning}"),
                (f"{quantity}_high", high, f"high end of the 95% interval: {meaning}"),
            ):
                arrays[name] = NamedArray(values, axes, "", f"{text}; {names}")
        arrays["removed"] = NamedArray(self.removed, ("step",), "", "share of the patches")
        return arrays

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns the areas of each method by its name, see `Result.to_dataframe`."""
        table = super().to_dataframe()
        return table.assign(method=[self.methods[i] for i in table["method"]])

    def plot(self) -> Figure:
        """Draws the deletion and insertion curves with their intervals and areas."""
        with matplotlib.rc_context(figures.STYLE):
            size = (8.4, 3.6 + 0.17 * len(self.methods))
            figure = figures.InlineFigure(figsize=size, layout="constrained")
            panels = figure.subplots(1, 2, sharey=True)
            for axes, curve, better in zip(
                panels, deletion.CURVES, ("smaller", "larger"), strict=True
            ):
                self._draw_curves(axes, curve, better)
            panels[0].set_ylabel("mean probability of the target")
        return figure

    def _draw_curves(self, axes: Axes, curve: str, better: str) -> None:
        low, high = self.interval[curve]
        for i, method in enumerate(self.methods):
            is_random = method == RANDOM
            colour = figures.GREY if is_random else figures.COLOURS[METHODS.index(method)]
            axes.fill_between(self.removed, low[i], high[i], color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                self.removed, self.mean[curve][i], color=colour, linewidth=1.5,
                linestyle="--" if is_random else "-",
                label=f"{method}: {self._area_text(curve, i)}",
            )  # fmt: skip
        title = f"{curve.capitalize()}: {better} areas are better"
        verb = "removed" if curve == "deletion" else "put back"
        axes.set(title=title, xlabel=f"patches {verb}", xlim=(0, 1), ylim=(0, None))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(
            title="area (95% interval)", alignment="left", loc="upper left",
            bbox_to_anchor=(0, -0.16), fontsize=8, title_fontsize=8,
        )  # fmt: skip

    def _area_text(self, curve: str, method: int) -> str:
        mean = self.mean[f"{curve}_area"][method]
        low, high = self.interval[f"{curve}_area"][:, method]
        return f"{mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")


def faithfulness(
    pretrained: Pretrained,
    images: Images,
    *,
    methods: Sequence[str] = METHODS,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
    target: int | str | None = None,
) -> Faithfulness:
    """Tests maps of what a model looked at: does the class depend on the patches that they name?

    An image takes up to 2 x 17 forward passes for each method, and three times as many for the
    random orders.

    Args:
      pretrained: a classifier; methods that it does not have are named in the notes.
      images: see `vit_jax.analysis.measures.images.open_images`.
      methods: some of "attention", "rollout", "relevance", "grad_cam".
      num_images: a random choice of this many; None: all.
      batch_size: images that are read at a time.
      target: the class whose probability is followed, by number or name; None: that which is
        predicted for each image.

    Raises:
      ConfigError: there is no such method or class.
      NotApplicableError: the model's outputs are not of classes, or it has none of the methods.

    Example:
      >>> model = create("mu/16", image_size=32, num_classes=10)
      >>> result = analysis.faithfulness(model, "digits:test[:2]", methods=("rollout",))
      >>> result.methods
      ('rollout', 'random')
      >>> result.mean["deletion"].shape  # Methods and steps.
      (2, 5)
    """
    model = measured(pretrained)
    if reason := no_classes(model, loss=pretrained.loss):
        raise NotApplicableError(
            f"{model.name}: {reason}, so there is no class whose probability could change."
        )
    kept, reasons = applicable(model, methods, loss=pretrained.loss)
    chosen = class_number(pretrained, target)
    stream = open_images(pretrained, images, num_images=num_images)
    means = {name: MeanOverImages() for name in (*deletion.CURVES, *AREAS)}
    shares, number = np.zeros(0), 0
    for batch in stream.batches(batch_size):
        predicted = np.asarray(predicted_classes(model.model, model.variables, batch.images))
        prepared = np.asarray(batch.images)
        for i in np.flatnonzero(batch.good):
            goal = int(predicted[i]) if chosen is None else chosen
            maps = image_maps(model, prepared[i], goal, kept)
            counts = deletion.removed_counts(maps[0].size)
            shares = counts / counts[-1]
            curves = deletion.image_curves(
                model, prepared[i], maps, target=goal, number=number, loss=pretrained.loss
            )
            for name, values in _quantities(curves, shares).items():
                means[name].add(values[None])
            number += 1
    notes = [f"{method} does not apply: {reason}" for method, reason in reasons.items()]
    if np.ptp(means["deletion"].mean) <= _FLAT:
        notes.append(
            "the probability of the target is the same whatever is removed: the outputs do not "
            "depend on the images, as those of a new head of zeros"
        )
    return Faithfulness(
        checkpoint=model.name,
        num_images=number,
        notes=tuple(notes),
        methods=(*kept, RANDOM),
        removed=shares,
        mean={name: mean.mean for name, mean in means.items()},
        interval={name: mean.interval for name, mean in means.items()},
    )


def _quantities(
    curves: Float[np.ndarray, "2 method step"], shares: Float[np.ndarray, " step"]
) -> dict[str, np.ndarray]:
    """Returns an image's curves, areas, and what each method gains over random orders."""
    deleted, inserted = deletion.area(curves, shares)
    return {
        "deletion": curves[0],
        "insertion": curves[1],
        "deletion_area": deleted,
        "insertion_area": inserted,
        "deletion_gain": deleted[-1] - deleted,
        "insertion_gain": inserted - inserted[-1],
    }
