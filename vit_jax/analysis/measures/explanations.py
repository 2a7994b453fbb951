"""What a model looked at in an image: maps by several methods, and how faithful each is."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures import deletion, heat_maps
from vit_jax.analysis.measures.classes import class_number
from vit_jax.analysis.measures.encoder import Measured, measured
from vit_jax.analysis.measures.explanation_maps import (
    DEFINITIONS,
    METHODS,
    applicable,
    explanation_maps,
    no_classes,
    predicted_classes,
)
from vit_jax.analysis.measures.images import Images, open_images
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.errors import ConfigError
from vit_jax.pretrained.model import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Explanations(Result):
    """The result of `explanations`.

    Attributes:
      methods: that apply to the model; the axis of `maps` and `areas`.
      maps: what each method gives; the maps of two methods have different units.
      areas: {"deletion" or "insertion": area under the curve of each method}; empty if the model's
        outputs are not of classes.
      random_areas: the same of random orders.
      target: the class that is explained; -1 if the outputs are not of classes.
      caption: its name or number, with its probability.
      image: the prepared image's pixels.
    """

    methods: tuple[str, ...]
    maps: Float[np.ndarray, "method row column"]
    areas: dict[str, Float[np.ndarray, " method"]]
    random_areas: dict[str, float]
    target: int
    caption: str
    image: UInt8[np.ndarray, "height width channels"]

    name: ClassVar[str] = "explanations"
    title: ClassVar[str] = "What the model looked at"
    shows: ClassVar[str] = (
        "What the model looked at in one image, by several methods, each tested by the removal of "
        "patches. One image can favour a method that is not better in the mean: see faithfulness."
    )
    definition: ClassVar[str] = (
        " ".join(f"{method}: {text}." for method, (text, _) in DEFINITIONS.items())
        + " Only patches are shown: prefix tokens (class, distillation, registers) are left out, "
        "and nothing is renormalised. A map is of one image and has no interval. "
        + deletion.DEFINITION
    )
    source: ClassVar[str] = "; ".join(
        [*(f"{method}: {source}" for method, (_, source) in DEFINITIONS.items()), deletion.SOURCE]
    )

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the maps, [method, row, column], and the areas of each method and of chance."""
        axes = ("method", "row", "column")
        arrays = {"map": NamedArray(self.maps, axes, "", "importance of each patch")}
        for curve, values in self.areas.items():
            meaning = f"area under the {curve} curve"
            arrays[f"{curve}_area"] = NamedArray(values, ("method",), "", meaning)
            chance = np.asarray(self.random_areas[curve])
            arrays[f"{curve}_area_random"] = NamedArray(chance, (), "", "the same of random orders")
        return arrays

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns the names of the methods, and rows and columns from 1."""
        return super().coordinates() | {"method": self.methods}

    def plot(self) -> Figure:
        """Draws the image, and each map over it."""
        titles = [(self.caption, self.image, None)]
        for i, method in enumerate(self.methods):
            lines = [
                f"{curve} {values[i]:.2f} (random {self.random_areas[curve]:.2f})"
                for curve, values in self.areas.items()
            ]
            titles.append(("\n".join([method, *lines]), self.image, self.maps[i]))
        with matplotlib.rc_context(figures.STYLE | figures.LITERAL_TEXT):
            return heat_maps.draw(
                titles, columns=len(titles), from_zero=False, opacity=0.7, size=2.4,
                scale=("each map's smallest value", "its largest value"),
            )  # fmt: skip


def explanations(
    pretrained: Pretrained,
    image: Images,
    *,
    target: int | str | None = None,
    methods: Sequence[str] = METHODS,
) -> Explanations:
    """Maps what a model looked at in an image, and tests each map by removing patches.

    Args:
      pretrained: any model; methods that it does not have are named in the notes.
      image: see `vit_jax.analysis.measures.images.open_images`; of several the first.
      target: the class to explain, by number, name, or a synonym in a name such as "tench, Tinca
        tinca"; None: the predicted one.
      methods: some of "attention", "rollout", "relevance", "grad_cam".

    Raises:
      ConfigError: there is no such method or class.
      NotApplicableError: the model has none of the methods.

    Example:
      >>> model = create("mu/16", image_size=32, num_classes=10)
      >>> result = analysis.explanations(model, "cat.png")
      >>> result.methods
      ('attention', 'rollout', 'relevance', 'grad_cam')
      >>> result.maps.shape
      (4, 2, 2)
    """
    model = measured(pretrained)
    kept, reasons = applicable(model, methods, loss=pretrained.loss)
    chosen = target_class(model, pretrained, target)
    prepared = open_images(pretrained, image).first(1)
    has_classes = not no_classes(model, loss=pretrained.loss)
    if chosen is None and has_classes:
        chosen = int(predicted_classes(model.model, model.variables, prepared)[0])
    maps = image_maps(model, prepared[0], chosen or 0, kept)
    areas, random_areas, caption = {}, {}, "image"
    if has_classes:
        assert chosen is not None
        curves = deletion.image_curves(
            model, prepared[0], maps, target=chosen, number=0, loss=pretrained.loss
        )
        counts = deletion.removed_counts(maps[0].size)
        for curve, values in zip(
            deletion.CURVES, deletion.area(curves, counts / counts[-1]), strict=True
        ):
            areas[curve], random_areas[curve] = values[:-1], float(values[-1])
        label = pretrained.labels[chosen] if pretrained.labels else f"class {chosen}"
        predicted = " (predicted)" if target is None else ""
        caption = f"target: {figures.shorten(label, 20)}{predicted}"
        caption += f"\nprobability {curves[0, -1, 0]:.1%}"
    return Explanations(
        checkpoint=model.name,
        num_images=1,
        notes=_notes(reasons, dict(zip(kept, maps, strict=True))),
        methods=kept,
        maps=maps,
        areas=areas,
        random_areas=random_areas,
        target=chosen if has_classes and chosen is not None else -1,
        caption=caption,
        image=pretrained.preprocess.restored(prepared)[0],
    )


def image_maps(
    model: Measured,
    image: Float[np.ndarray, "height width channels"],
    target: int,
    methods: tuple[str, ...],
) -> Float[np.ndarray, "method row column"]:
    """Returns the maps of a prepared image."""
    maps = explanation_maps(
        model.model, model.variables, image[None], np.asarray([target]), methods
    )
    return np.stack([np.asarray(maps[method][0]) for method in methods])


def target_class(model: Measured, pretrained: Pretrained, target: int | str | None) -> int | None:
    """Returns the number of the class to explain, None if the user has chosen none.

    Raises:
      ConfigError: there is no such class, or the outputs are not of classes.
    """
    if target is None:
        return None
    if reason := no_classes(model, loss=pretrained.loss):
        raise ConfigError(
            f"target is {target}: {reason}, so only attention and rollout apply, which do not "
            "depend on a class. Leave target out."
        )
    return class_number(
        "target", target, labels=pretrained.labels, num_classes=pretrained.config.num_classes
    )


def _notes(reasons: dict[str, str], maps: dict[str, np.ndarray]) -> tuple[str, ...]:
    notes = [f"{method} does not apply: {reason}" for method, reason in reasons.items()]
    notes += [
        f"{method} has the same value at all patches: it says nothing about this image"
        for method, values in maps.items()
        if np.ptp(values) <= 1e-6 * np.abs(values).max()
    ]
    return tuple(notes)
