"""How faithful maps of what a model looked at are: deletion and insertion curves over images."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

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
from vit_jax.analysis.measures.explanations import image_maps, target_class
from vit_jax.analysis.measures.images import Images, open_images
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.pretrained.model import Pretrained
from vit_jax.telemetry.progress import format_count

RANDOM = "random"
BATCH_SIZE = 4  # An image takes so many forward passes that larger ones only delay the progress.
_FEWEST_IMAGES = 20  # With fewer a bootstrap interval is too narrow for a statement.
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
    shows: ClassVar[str] = (
        "Whether the predicted class depends on the patches that each method names as "
        "important, more than on random ones."
    )
    definition: ClassVar[str] = (
        f"{deletion.DEFINITION} The target is the predicted class of the whole image, unless one "
        "was named. Intervals: bootstrap over images, 95%. The maps: "
        + " ".join(f"{method}: {text}." for method, (text, _) in DEFINITIONS.items())
    )
    source: ClassVar[str] = deletion.SOURCE
    summary_units: ClassVar[dict[str, str]] = {
        f"{curve}_gain_{method}": "probability" for method in METHODS for curve in deletion.CURVES
    }

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the areas of each method, then the curves, each with the ends of its interval."""
        arrays = {}
        curves = {curve: f"probability of the target, {curve} curve" for curve in deletion.CURVES}
        for quantity, meaning in (AREAS | curves).items():
            axes = ("method",) if quantity in AREAS else ("method", "step")
            low, high = self.interval[quantity]
            for name, values, text in (
                (quantity, self.mean[quantity], meaning),
                (f"{quantity}_low", low, f"low end of the 95% interval: {meaning}"),
                (f"{quantity}_high", high, f"high end of the 95% interval: {meaning}"),
            ):
                arrays[name] = NamedArray(values, axes, "", text)
        arrays["removed"] = NamedArray(self.removed, ("step",), "", "share of the patches")
        return arrays

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns the names of the methods."""
        return super().coordinates() | {"method": self.methods}

    def summary(self) -> dict[str, float]:
        """Returns what each method gains over random orders, in the mean over images."""
        return {
            f"{curve}_gain_{method}": float(self.mean[f"{curve}_gain"][i])
            for i, method in enumerate(self.methods[:-1])
            for curve in deletion.CURVES
        }

    def plot(self) -> Figure:
        """Draws the mean curves, and what each method gains over random orders, with intervals."""
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.InlineFigure(figsize=(11.5, 3.7), layout="constrained")
            first, second, gains = figure.subplots(1, 3)
            self._draw_curves(first, "deletion", "smaller")
            self._draw_curves(second, "insertion", "larger")
            second.sharey(first)
            first.set_ylim(0, 1.05 * max(self.mean[curve].max() for curve in deletion.CURVES))
            first.set_ylabel("mean probability of the target")
            self._draw_gains(gains)
            handles, labels = first.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower left", ncols=5, fontsize=8)
        return figure

    def _draw_curves(self, axes: Axes, curve: str, better: str) -> None:
        for i, method in enumerate(self.methods):
            is_random = method == RANDOM
            colour = figures.GREY if is_random else figures.COLOURS[METHODS.index(method)]
            axes.plot(
                self.removed, self.mean[curve][i], color=colour, linewidth=1.5,
                linestyle="--" if is_random else "-",
                label=f"{method} orders" if is_random else method,
            )  # fmt: skip
        title = f"{curve.capitalize()}: {better} areas are better"
        verb = "removed" if curve == "deletion" else "put back"
        axes.set(title=title, xlabel=f"patches {verb}", xlim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))

    def _draw_gains(self, axes: Axes) -> None:
        """Draws the gains of each method: deletion above insertion."""
        methods = self.methods[:-1]
        for i, method in enumerate(methods):
            colour = figures.COLOURS[METHODS.index(method)]
            for curve, marker, y in (("deletion", "o", i - 0.14), ("insertion", "D", i + 0.14)):
                quantity = f"{curve}_gain"
                low, high = self.interval[quantity][:, i]
                axes.plot([low, high], [y, y], color=colour, linewidth=2)
                axes.plot(
                    self.mean[quantity][i], y, marker, color=colour, markersize=5,
                    markerfacecolor=colour if curve == "deletion" else "white",
                )  # fmt: skip
        axes.axvline(0, color=figures.GREY, linestyle="--")
        axes.set_yticks(range(len(methods)), methods)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set(title="Gain over random orders", xlabel="difference of areas, 95% interval")
        for curve, marker, face in (("deletion", "o", figures.GREY), ("insertion", "D", "white")):
            axes.plot(
                [], [], marker, color=figures.GREY, markerfacecolor=face, markersize=5, label=curve
            )
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, -0.36), ncols=2, fontsize=8)


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
    chosen = target_class(model, pretrained, target)
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
    elif number < _FEWEST_IMAGES:
        counted = format_count(number, "image")
        notes.append(
            f"{counted}, fewer than {_FEWEST_IMAGES}: too few to tell whether a method is better "
            "than random orders"
        )
    else:
        notes += _verdicts(kept, means)
    return Faithfulness(
        checkpoint=model.name,
        num_images=number,
        notes=tuple(notes),
        methods=(*kept, RANDOM),
        removed=shares,
        mean={name: mean.mean for name, mean in means.items()},
        interval={name: mean.interval for name, mean in means.items()},
    )


def _verdicts(methods: Sequence[str], means: Mapping[str, MeanOverImages]) -> Iterator[str]:
    """Yields for each method whether its gains over random orders differ from zero."""
    for i, method in enumerate(methods):
        verdicts = []
        for curve in deletion.CURVES:
            low, high = means[f"{curve}_gain"].interval[:, i]
            kind = "better than" if low > 0 else "worse than" if high < 0 else "not better than"
            verdicts.append(f"{kind} random in {curve}")
        yield f"{method}: {', '.join(verdicts)}"


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
