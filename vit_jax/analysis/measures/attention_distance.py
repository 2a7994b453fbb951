"""Attention distance, entropy, and the share of attention on prefix tokens, of each head."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures.bootstrap import MeanOverImages
from vit_jax.analysis.measures.encoder import Captured, measure_blocks, measured
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, open_images
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.pretrained.model import Pretrained

# Quantity -> unit and meaning.
QUANTITIES = {
    "distance": ("pixels", "mean distance of the attended patches, weights renormalised"),
    "distance_published": ("pixels", "the same with weights as they are, which sum to less than 1"),
    "entropy": ("nats", "entropy of the weights over all tokens, mean over the patches' queries"),
    "prefix_share": ("", "share of the patches' attention on prefix tokens"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AttentionDistance(Result):
    """The result of `attention_distance`.

    Attributes:
      mean: {quantity: [layer, head]}, the quantities of `QUANTITIES`, means over images.
      interval: {quantity: [2, layer, head]}, ends of the 95% interval.
      uniform_distance: distance of attention that is equal on all patches, in pixels.
      num_prefix: number of prefix tokens.
      uniform_entropy: entropy of attention that is equal on all tokens, in nats.
    """

    mean: dict[str, Float[np.ndarray, "layer head"]]
    interval: dict[str, Float[np.ndarray, "2 layer head"]]
    uniform_distance: float
    num_prefix: int
    uniform_entropy: float

    name: ClassVar[str] = "attention_distance"
    title: ClassVar[str] = "Attention distance"
    shows: ClassVar[str] = (
        "How far each head looks, in pixels: a dot is a head, with its 95% interval. The heads of "
        "a layer stand beside each other in the order of their values, in each panel."
    )
    definition: ClassVar[str] = (
        "For each patch's query, the distances from its centre to the centres of all patches, "
        "weighted by attention; then the mean over queries and images. Queries and keys of prefix "
        "tokens (class, distillation, registers) are left out; the remaining weights are "
        "renormalised to sum to 1 (distance), or not, as in the published code "
        "(distance_published), whose distances are too small by the share of attention on prefix "
        "tokens. The entropy is that of a patch's weights over all tokens. Intervals: bootstrap "
        "over images, 95%. Layers are the blocks, counted from 1 in tables and "
        "figures and from 0 in arrays."
    )
    source: ClassVar[str] = "Dosovitskiy et al. 2020, arXiv 2010.11929, figure 7 and appendix D.7"
    summary_units: ClassVar[dict[str, str]] = {
        "attention_distance_first_layer": "pixels",
        "attention_distance_last_layer": "pixels",
        "attention_entropy_first_layer": "nats",
        "attention_entropy_last_layer": "nats",
    }

    def arrays(self) -> dict[str, NamedArray]:
        """Returns each quantity with the ends of its interval: [layer, head]."""
        arrays = {}
        for name, (unit, meaning) in QUANTITIES.items():
            arrays[name] = NamedArray(self.mean[name], ("layer", "head"), unit, meaning)
        for name, (unit, meaning) in QUANTITIES.items():
            for end, values in zip(("low", "high"), self.interval[name], strict=True):
                text = f"{end} end of the 95% interval: {meaning}"
                arrays[f"{name}_{end}"] = NamedArray(values, ("layer", "head"), unit, text)
        return arrays

    def summary(self) -> dict[str, float]:
        """Returns distance (pixels) and entropy (nats), means of the heads of two layers."""
        return {
            f"attention_{name}_{layer}_layer": float(self.mean[name][index].mean())
            for name in ("distance", "entropy")
            for layer, index in (("first", 0), ("last", -1))
        }

    def plot(self) -> Figure:
        """Draws the heads of each layer: from local to global attention over the depth."""
        panels = ["distance", "entropy"] + (["prefix_share"] if self.num_prefix else [])
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.InlineFigure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
            all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
            for axes, name in zip(all_axes, panels, strict=True):
                self._draw_heads(axes, name)
            for axes, uniform in zip(
                all_axes, (self.uniform_distance, self.uniform_entropy), strict=False
            ):
                axes.axhline(uniform, color=figures.GREY, linestyle="--", label="uniform attention")
            handles, labels = all_axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=8)
        return figure

    def _draw_heads(self, axes: Axes, name: str) -> None:
        values, (low, high) = self.mean[name], self.interval[name]
        depth, heads = values.shape
        layers = np.arange(1, depth + 1)
        # The heads of a layer beside each other, in the order of their values.
        order = np.argsort(values, axis=1)
        offsets = (np.arange(heads) - (heads - 1) / 2) * 0.6 / max(heads, 2)
        for rank in range(heads):
            chosen = (np.arange(depth), order[:, rank])
            x = layers + offsets[rank]
            axes.vlines(x, low[chosen], high[chosen], color=figures.SKY, linewidth=1)
            label = "a head" if rank == 0 else None
            axes.plot(x, values[chosen], ".", color=figures.BLUE, markersize=4, label=label)
        axes.plot(layers, values.mean(axis=1), color=figures.VERMILLION, label="mean of the heads")
        labels = {
            "distance": "distance (pixels)", "entropy": "entropy (nats)",
            "prefix_share": "share on prefix tokens",
        }  # fmt: skip
        axes.set(title=labels[name], xlabel="layer")
        top = np.nanmax([values, high, low])
        uniform = {"distance": self.uniform_distance, "entropy": self.uniform_entropy}
        top = max(top, uniform.get(name, top))
        axes.set_ylim(0, 1.05 * top if top > 0 else 1)
        axes.set_xlim(0.5, depth + 0.5)
        figures.whole_numbers(axes.xaxis)


def attention_distance(
    pretrained: Pretrained,
    images: Images,
    *,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> AttentionDistance:
    """Measures how far the heads of each layer look.

    Args:
      pretrained: a ViT or hybrid.
      images: see `vit_jax.analysis.measures.images.open_images`.
      num_images: a random choice of this many; None: all.
      batch_size: images at a time.

    Raises:
      NotApplicableError: the model has no attention.

    Example:
      >>> result = analysis.attention_distance(create("mu/16", image_size=32), "digits:test[:8]")
      >>> result.mean["distance"].shape  # Layers and heads.
      (1, 2)
      >>> bool((result.mean["distance_published"] < result.mean["distance"]).all())
      True
    """
    model = measured(pretrained)
    config = model.vit
    stream = open_images(pretrained, images, num_images=num_images)
    means = {name: MeanOverImages() for name in QUANTITIES}
    measure = _measure_of(config.grid, config.stride, config.num_prefix)
    for batch in stream.batches(batch_size):
        values = measure_blocks(model.model, model.variables, batch.images, measure, ("attention",))
        for name, value in jax.device_get(values).items():
            means[name].add(value.swapaxes(0, 1)[batch.good])
    distances = patch_distances(config.grid, config.stride)
    return AttentionDistance(
        checkpoint=model.name,
        num_images=means["distance"].count,
        mean={name: mean.mean for name, mean in means.items()},
        interval={name: mean.interval for name, mean in means.items()},
        uniform_distance=float(distances.mean()),
        num_prefix=config.num_prefix,
        uniform_entropy=math.log(config.num_tokens),
    )


def patch_distances(
    grid: tuple[int, int], stride: tuple[int, int]
) -> Float[np.ndarray, "patches patches"]:
    """Returns the distances between the centres of all patches, in pixels of the prepared image.

    Args:
      grid: rows and columns of patches, in row-major order.
      stride: height and width of a patch.
    """
    y, x = np.mgrid[: grid[0], : grid[1]]
    y, x = y.ravel() * float(stride[0]), x.ravel() * float(stride[1])
    return np.hypot(y[:, None] - y, x[:, None] - x)


@functools.cache  # The program is compiled for the function that this returns.
def _measure_of(grid: tuple[int, int], stride: tuple[int, int], num_prefix: int):
    distances = patch_distances(grid, stride).astype(np.float32)

    def measure(captured: Captured) -> dict[str, Float[Array, "b heads"]]:
        return attention_quantities(captured["attention"], distances, num_prefix)

    return measure


def attention_quantities(
    attention: Float[Array, "b heads n n"],
    distances: Float[np.ndarray, "patches patches"],
    num_prefix: int,
) -> dict[str, Float[Array, "b heads"]]:
    """Returns the quantities of each image and head, means over the queries of patches."""
    rows = attention[:, :, num_prefix:]
    patches = rows[..., num_prefix:]
    weighted = (patches * distances).sum(axis=-1)
    on_patches = patches.sum(axis=-1)
    return {
        # Attention that is entirely on prefix tokens has no distance; its share of rows is nil.
        "distance": (weighted / jnp.maximum(on_patches, 1e-30)).mean(axis=-1),
        "distance_published": weighted.mean(axis=-1),
        "entropy": jax.scipy.special.entr(rows).sum(axis=-1).mean(axis=-1),
        "prefix_share": rows[..., :num_prefix].sum(axis=-1).mean(axis=-1),
    }
