"""Norms of the residual stream relative to what the attention and MLP branches add to it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures.bootstrap import MeanOverImages
from vit_jax.analysis.measures.encoder import Captured, measure_blocks, measured
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, open_images
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.pretrained.model import Pretrained

BRANCHES = ("attention", "mlp")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class BranchNorms(Result):
    """The result of `branch_norms`.

    Attributes:
      mean: {"attention_patches": [layer], "mlp_patches": [layer]}, and "attention_class" and
        "mlp_class" of a model with a class token: norm of the skip connection / norm of the
        branch.
      interval: {the same names: [2, layer]}, ends of the 95% interval.
    """

    mean: dict[str, Float[np.ndarray, " layer"]]
    interval: dict[str, Float[np.ndarray, "2 layer"]]

    name: ClassVar[str] = "branch_norms"
    title: ClassVar[str] = "Norms of skip connections and branches"
    shows: ClassVar[str] = (
        "How much each branch changes the tokens: norm of the skip connection relative to "
        "what is added to it."
    )
    definition: ClassVar[str] = (
        "For each token, the L2 norm of the skip connection divided by that of the branch that is "
        "added to it: ||z|| / ||f(z)||. Above 1, the token is mostly kept; below 1, mostly "
        "replaced. The branch includes its layer scale. The skip connection of attention is the "
        "block's input, that of the MLP is the stream after attention; in a parallel block it is "
        "the block's input for both. The mean over an image's patches, or the class token, then "
        "over images. Other prefix tokens (distillation, registers) are left out. Intervals: "
        "bootstrap over images, 95%. Layers are the blocks, counted from 1 in tables and figures "
        "and from 0 in arrays."
    )
    source: ClassVar[str] = "Raghu et al. 2021, arXiv 2108.08810, figure 8"
    summary_units: ClassVar[dict[str, str]] = {
        f"skip_to_{branch}_last_layer": "ratio" for branch in BRANCHES
    }

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the ratios with the ends of their intervals: [layer]."""
        arrays = {}
        for name, values in self.mean.items():
            branch, _, tokens = name.partition("_")
            meaning = f"norm of the skip connection / norm of the {branch} branch, {tokens}"
            arrays[name] = NamedArray(values, ("layer",), "", meaning)
            for end, bounds in zip(("low", "high"), self.interval[name], strict=True):
                text = f"{end} end of the 95% interval: {meaning}"
                arrays[f"{name}_{end}"] = NamedArray(bounds, ("layer",), "", text)
        return arrays

    def summary(self) -> dict[str, float]:
        """Returns the ratios of patches in the last layer."""
        return {
            f"skip_to_{branch}_last_layer": float(self.mean[f"{branch}_patches"][-1])
            for branch in BRANCHES
        }

    def plot(self) -> Figure:
        """Draws the ratios over the layers: a panel for each branch."""
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.InlineFigure(figsize=(7.6, 3.4), layout="constrained")
            all_axes = figure.subplots(1, 2, sharey=True)
            for axes, branch, title in zip(all_axes, BRANCHES, ("attention", "MLP"), strict=True):
                for tokens, label, colour in (
                    ("patches", "patches", figures.BLUE),
                    ("class", "class token", figures.VERMILLION),
                ):
                    name = f"{branch}_{tokens}"
                    if name not in self.mean:
                        continue
                    values, (low, high) = self.mean[name], self.interval[name]
                    layers = np.arange(1, len(values) + 1)
                    axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
                    axes.plot(layers, values, ".-", color=colour, label=label)
                    axes.set_xlim(0.5, len(values) + 0.5)
                axes.axhline(1, color=figures.GREY, linestyle="--", linewidth=1)
                axes.set(title=f"{title} branch", xlabel="layer", yscale="log")
                figures.whole_numbers(axes.xaxis)
            figures.use_log_scale(all_axes[0], **self._range())
            all_axes[0].set_ylabel("norm of skip / norm of branch")
            all_axes[1].legend(loc="best", fontsize=8)
        return figure

    def _range(self) -> dict[str, float]:
        """Returns the smallest and the largest value that the figure shows."""
        values = np.concatenate([*self.mean.values(), [1.0]])
        bounds = np.concatenate([values, *(ends.ravel() for ends in self.interval.values())])
        bounds = bounds[np.isfinite(bounds) & (bounds > 0)]
        return {"smallest": float(bounds.min()), "largest": float(bounds.max())}


def branch_norms(
    pretrained: Pretrained,
    images: Images,
    *,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> BranchNorms:
    """Measures how much each branch changes the tokens: norm of the skip / norm of the branch.

    Args:
      pretrained: a ViT or hybrid.
      images: see `vit_jax.analysis.measures.images.open_images`.
      num_images: a random choice of this many; None: all.
      batch_size: images at a time.

    Raises:
      NotApplicableError: the model has no attention branch (a Mixer or a ResNet).

    Example:
      >>> result = analysis.branch_norms(create("mu/16", image_size=32), "digits:test[:8]")
      >>> sorted(result.mean)
      ['attention_class', 'attention_patches', 'mlp_class', 'mlp_patches']
    """
    model = measured(pretrained)
    config = model.vit
    stream = open_images(pretrained, images, num_images=num_images)
    groups = {"patches": slice(config.num_prefix, None)}
    if config.has_class_token:
        groups["class"] = slice(0, 1)
    means = {f"{branch}_{group}": MeanOverImages() for branch in BRANCHES for group in groups}
    measure = _ratios_parallel if config.parallel else _ratios
    for batch in stream.batches(batch_size):
        ratios = measure_blocks(
            model.model, model.variables, batch.images, measure,
            ("attention_branch", "mlp_branch"),
        )  # fmt: skip
        for branch, values in jax.device_get(ratios).items():
            for group, tokens in groups.items():
                value = values[..., tokens].mean(axis=-1, dtype=np.float64)
                means[f"{branch}_{group}"].add(value.swapaxes(0, 1)[batch.good])
    return BranchNorms(
        checkpoint=model.name,
        num_images=means["mlp_patches"].count,
        mean={name: mean.mean for name, mean in means.items()},
        interval={name: mean.interval for name, mean in means.items()},
    )


def _ratios(captured: Captured) -> dict[str, Float[Array, "b n"]]:
    after_attention = captured["input"] + captured["attention_branch"]
    return {
        "attention": _ratio(captured["input"], captured["attention_branch"]),
        "mlp": _ratio(after_attention, captured["mlp_branch"]),
    }


def _ratios_parallel(captured: Captured) -> dict[str, Float[Array, "b n"]]:
    return {branch: _ratio(captured["input"], captured[f"{branch}_branch"]) for branch in BRANCHES}


def _ratio(skip: Float[Array, "b n width"], branch: Float[Array, "b n width"]):
    # A branch that adds nothing gives a very large ratio, not an infinite one.
    lengths = jnp.linalg.norm(branch, axis=-1)
    return jnp.linalg.norm(skip, axis=-1) / jnp.maximum(lengths, 1e-30)
