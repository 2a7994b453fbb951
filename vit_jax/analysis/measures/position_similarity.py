"""Similarity of the positions of patches: of position embeddings, and of rotary angles."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures.encoder import Measured, measured
from vit_jax.analysis.measures.position_structure import (
    NUMBERS,
    PROFILES,
    PositionStructure,
    correlate,
    describe_similarity,
    embedding_variance,
)
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.config.model import MixerConfig, VitConfig
from vit_jax.models.positions import Rotation, rotation, sincos2d
from vit_jax.models.resize import resize_posemb
from vit_jax.models.section import image_size as as_size
from vit_jax.pretrained.model import Pretrained

_MOST_PANELS = 14  # Queries in a row or a column of the figure.


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class PositionSimilarity(Result):
    """The result of `position_similarity`.

    Attributes:
      parts: {"learned", "sincos2d" or "rotary": similarities}; a model may have an embedding and a
        rotation.
      resized: the same at the other image size; {} without one.
      correlation: {part: correlation of both}; {} without another image size.
      variance: {part: {"row", "column", "interaction": share of the embedding's variance}}, of
        embeddings alone.
      patch_size: height and width of a patch in pixels.
    """

    parts: dict[str, PositionStructure]
    resized: dict[str, PositionStructure]
    correlation: dict[str, float]
    variance: dict[str, dict[str, float]]
    patch_size: tuple[int, int]

    name: ClassVar[str] = "position_similarity"
    title: ClassVar[str] = "Similarity of positions"
    shows: ClassVar[str] = (
        "How similar the positions of patches are to the model: each panel is one patch's "
        "similarity with all patches."
    )
    definition: ClassVar[str] = (
        "learned, sincos2d: cosine similarity of the position embeddings (not centred) of all "
        "pairs of patches; a zero vector has similarity 0. rotary: mean of the cosine of the "
        "difference of both angles over the rotated pairs of a head's components, which is q.k / "
        "(|q| |k|) of queries and keys of equal content, averaged over all directions of it. "
        "Prefix tokens (class, distillation, registers) are left out. Profiles: mean similarity of "
        "pairs in the same row, in the same column, or neither, at each distance in patches "
        "(rounded). difference_r2: R^2 of the mean over all pairs with equal signed differences of "
        "rows and columns; additive_r2: R^2 of the least-squares fit of f(|row difference|) + "
        "g(|column difference|); both over ordered pairs of different patches. neighbour_accuracy: "
        "share of patches whose most similar other patch shares an edge; neighbour_chance: the "
        "same for random similarities. Variance: shares of row, column and interaction in the "
        "embedding's sum of squares around its mean. Resized: positions at another image size, a "
        "learned embedding by the model's own kernel. correlation: Pearson's, over ordered pairs "
        "of different patches, both resized bilinearly to the smaller number of rows and columns."
    )
    source: ClassVar[str] = (
        "Dosovitskiy et al. 2020, arXiv 2010.11929, figure 7 (centre); rotary: Su et al. 2021, "
        "arXiv 2104.09864"
    )
    summary_units: ClassVar[dict[str, str]] = {
        f"neighbour_accuracy_{part}": "share of patches"
        for part in ("learned", "sincos2d", "rotary")
    }

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the profiles, numbers and similarities of each part, before and after."""
        arrays = {}
        states = [("", self.parts)] + ([("resized_", self.resized)] if self.resized else [])
        for state, parts in states:
            # Another grid has another number of distances: an axis of its own.
            axis = (state.replace("_", " ") + "distance",)
            for part, structure in parts.items():
                for name, meaning in PROFILES.items():
                    arrays[f"{part}_{state}{name}"] = NamedArray(
                        structure.profiles[name], axis, "", f"mean similarity of {meaning}"
                    )
        for state, parts in states:
            prefix = state.replace("_", " ")
            axes = tuple(f"{prefix}{axis}" for axis in ("row", "column", "row2", "column2"))
            for part, structure in parts.items():
                for name, meaning in NUMBERS.items():
                    value = np.asarray(structure.numbers[name])
                    arrays[f"{part}_{state}{name}"] = NamedArray(value, (), "", meaning)
                arrays[f"{part}_{state}similarity"] = NamedArray(
                    structure.similarity, axes, "", "similarity of each patch with each patch"
                )
        for part, shares in self.variance.items():
            for name, share in shares.items():
                meaning = f"share of the embedding's variance: {name}"
                arrays[f"{part}_{name}_share"] = NamedArray(np.asarray(share), (), "", meaning)
        for part, value in self.correlation.items():
            meaning = "correlation of the similarities before and after the resize"
            arrays[f"{part}_correlation"] = NamedArray(np.asarray(value), (), "", meaning)
        return arrays

    def summary(self) -> dict[str, float]:
        """Returns the accuracy of neighbours of each part."""
        return {
            f"neighbour_accuracy_{part}": structure.numbers["neighbour_accuracy"]
            for part, structure in self.parts.items()
        }

    def plot(self) -> Figure:
        """Draws for each patch its similarity with all patches, and the means over distance."""
        columns = 3 if self.resized else 2
        widths = [4.6] * (columns - 1) + [3.8]
        heights = [self._height(structure) for structure in self.parts.values()]
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.InlineFigure(figsize=(sum(widths), sum(heights)), layout="constrained")
            all_axes = figure.subplots(
                len(heights), columns, squeeze=False, width_ratios=widths, height_ratios=heights
            )
            for (part, structure), row in zip(self.parts.items(), all_axes, strict=True):
                after = self.resized.get(part)
                shown = [structure] if after is None else [structure, after]
                low = min(0.9, *(each.similarity.min() for each in shown))
                for axes, each in zip(row[:-1], shown, strict=True):
                    self._draw_maps(axes, each, low)
                    size = "x".join(map(str, each.grid))
                    state = ", resized" if each is after else ""
                    axes.set_title(f"{part}: {size} patches{state}")
                figure.colorbar(row[-2].images[0], ax=row[-2], shrink=0.8)
                self._draw_profiles(row[-1], part)
        return figure

    def _height(self, structure: PositionStructure) -> float:
        """Returns the height of a part of the figure in inches."""
        rows, columns = (side * patch for side, patch in zip(
            structure.grid, self.patch_size, strict=True
        ))  # fmt: skip
        return float(np.clip(4.0 * rows / columns + 0.6, 3.9, 9))

    def _draw_maps(self, axes: Axes, structure: PositionStructure, low: float) -> None:
        """Draws a grid of the queries, each panel the grid of its similarities."""
        (rows, columns), (height, width) = structure.grid, self.patch_size
        queries = _queries(structure.grid, self.patch_size)
        gap = max(1, round(max(rows, columns) / 12))
        canvas = np.full([len(q) * (n + gap) - gap for q, n in zip(
            queries, structure.grid, strict=True
        )], np.nan)  # fmt: skip
        for i, row in enumerate(queries[0]):
            for j, column in enumerate(queries[1]):
                top, left = i * (rows + gap), j * (columns + gap)
                panel = structure.similarity[row, column]
                canvas[top : top + rows, left : left + columns] = panel
        axes.imshow(canvas, cmap="viridis", vmin=low, vmax=1, aspect=height / width)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for axis, chosen, side in (
            (axes.yaxis, queries[0], rows),
            (axes.xaxis, queries[1], columns),
        ):
            axis.set_ticks(
                [i * (side + gap) + (side - 1) / 2 for i in range(len(chosen))],
                [str(position + 1) for position in chosen],
            )
            axis.set_tick_params(length=0, labelsize=7)
        axes.set(xlabel="column of the query", ylabel="row of the query")

    def _draw_profiles(self, axes: Axes, part: str) -> None:
        """Draws mean similarity over distance, and the numbers below."""
        before, after = self.parts[part], self.resized.get(part)
        lines = [(before, "-")] + ([(after, "--")] if after else [])
        for structure, style in lines:
            # The lines of rows and columns are often equal: the first one is wider.
            for colour, linewidth, (name, values) in zip(
                (figures.SKY, figures.BLUE, figures.VERMILLION), (3.5, 1.5, 1.5),
                structure.profiles.items(), strict=True,
            ):  # fmt: skip
                label = name.replace("other", "neither").replace("_", " ")
                marker = "." if len(values) <= 20 else ""
                axes.plot(
                    values, style, color=colour, linewidth=linewidth, marker=marker,
                    label=label if structure is before else None,
                )  # fmt: skip
        if after:
            axes.plot([], "--", color=figures.GREY, label="resized")
        axes.set(title="Mean similarity of positions", xlabel="distance (patches)")
        figures.whole_numbers(axes.xaxis)
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=4, fontsize=7,
            handlelength=1.5, columnspacing=1,
        )  # fmt: skip
        axes.text(
            0, -0.26, "\n".join(self._captions(part)), fontsize=8, va="top",
            transform=axes.transAxes,
        )  # fmt: skip

    def _captions(self, part: str) -> list[str]:
        """Returns the numbers of a part as text; "before → after" if it was resized."""
        states = [self.parts[part]] + ([self.resized[part]] if self.resized else [])

        def text(name: str, form: str) -> str:
            return " → ".join(format(each.numbers[name], form) for each in states)

        lines = [
            f"R² of the differences: {text('difference_r2', '.3f')}",
            f"R² of row + column: {text('additive_r2', '.3f')}",
            f"most similar is adjacent: {text('neighbour_accuracy', '.0%')}"
            f" (chance {text('neighbour_chance', '.1%')})",
        ]
        if shares := self.variance.get(part):
            names = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            lines.append(f"variance: {names}")
        if part in self.correlation:
            lines.append(f"correlation with resized: {self.correlation[part]:.3f}")
        return lines


def position_similarity(
    pretrained: Pretrained, *, image_size: int | tuple[int, int] | None = None
) -> PositionSimilarity:
    """Measures how similar the positions of patches are to the model.

    The similarities of n patches are n^2 float64 numbers: 134 MB for a grid of 64x64.

    Args:
      pretrained: a ViT or hybrid.
      image_size: side, or (height, width), in pixels: also measures the positions at this size, a
        learned embedding resized with the model's own kernel (`config.posemb_resize`).

    Raises:
      NotApplicableError: the model has no position embedding.
      ConfigError: the patches do not divide the image size.

    Example:
      >>> result = analysis.position_similarity(create("mu/16", image_size=32), image_size=48)
      >>> result.parts["learned"].similarity.shape, result.resized["learned"].grid
      ((2, 2, 2, 2), (3, 3))
    """
    model = measured(pretrained)
    config = _vit(model)
    parts, variance = _measure(config, model, config)
    resized = {}
    if image_size is not None:
        size = as_size(
            tuple(image_size) if isinstance(image_size, list | tuple) else (image_size,),
            "image_size",
        )
        resized, _ = _measure(dataclasses.replace(config, image_size=size), model, config)
    return PositionSimilarity(
        checkpoint=model.name,
        num_images=0,
        notes=_notes(pretrained),
        parts=parts,
        resized=resized,
        correlation={
            part: correlate(parts[part].similarity, after.similarity)
            for part, after in resized.items()
        },
        variance=variance,
        patch_size=config.stride,
    )


def _vit(model: Measured) -> VitConfig:
    """Returns the config of a model that has positions."""
    config = model.config
    if isinstance(config, MixerConfig):
        raise NotApplicableError(
            f"{model.name} is a Mixer: it has no position embedding. Its MLPs over tokens have "
            "weights for each position."
        )
    if not isinstance(config, VitConfig):
        raise NotApplicableError(f"{model.name} is a Resnet: it has no position embedding.")
    if config.posemb == config.rope == "none":
        raise NotApplicableError(
            f"{model.name} has no position embedding: model.posemb and model.rope are none."
        )
    return config


def _notes(pretrained: Pretrained) -> tuple[str, ...]:
    """Returns a note if the embedding was resized already when the model was loaded."""
    config, published = pretrained.config, pretrained.published
    if not isinstance(config, VitConfig) or not isinstance(published, VitConfig):
        return ()
    if config.posemb != "learned" or config.grid == published.grid:
        return ()
    old, new = ("x".join(map(str, each.grid)) for each in (published, config))
    return (f"The position embedding was resized from {old} to {new} patches at loading.",)


def _measure(
    config: VitConfig, model: Measured, stored: VitConfig
) -> tuple[dict[str, PositionStructure], dict[str, dict[str, float]]]:
    """Returns the parts of a model at the image size of `config`, and variances of embeddings."""
    parts, variance, grid = {}, {}, config.grid
    embedding = None
    if config.posemb == "learned":
        rows = config.posemb_rows
        embedding = resize_posemb(
            jnp.asarray(model.variables["params"]["pos_embedding"]), old=stored.grid, new=grid,
            prefix=rows, kernel=config.posemb_resize,
        )[:, rows:]  # fmt: skip
    elif config.posemb == "sincos2d":
        embedding = sincos2d(grid, config.width)
    if embedding is not None:
        vectors = np.asarray(embedding[0], np.float64)
        parts[config.posemb] = _structure(cosine_similarity(vectors), grid)
        variance[config.posemb] = embedding_variance(vectors.reshape(*grid, -1))
    if (rotary := rotation(config)) is not None:
        parts["rotary"] = _structure(rotary_similarity(rotary), grid)
    return parts, variance


def _structure(
    similarity: Float[np.ndarray, "patches patches"], grid: tuple[int, int]
) -> PositionStructure:
    return describe_similarity(similarity.reshape(*grid, *grid))


def cosine_similarity(
    vectors: Float[np.ndarray, "patches width"],
) -> Float[np.ndarray, "patches patches"]:
    """Returns the cosine similarities of all pairs; a zero vector has similarity 0 with all."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.maximum(norms, np.finfo(np.float64).tiny)
    return directions @ directions.T


def rotary_similarity(rotary: Rotation) -> Float[np.ndarray, "patches patches"]:
    """Returns the mean of cos(angle_i - angle_j) over the pairs of components, of all positions.

    Let q = R_i x and k = R_j x with the same content x. If x has no preferred direction, the mean
    of x x^T / |x|^2 is I / d, so that of q.k / (|q| |k|) is trace(R_i^T R_j) / d. R_i^T R_j rotates
    each pair of components by angle_j - angle_i, and the trace of such a rotation is twice the
    cosine. `Rotation` has each angle twice: once for each component of a pair.
    """
    cos, sin = rotary.cos.astype(np.float64), rotary.sin.astype(np.float64)
    return (cos @ cos.T + sin @ sin.T) / cos.shape[1]


def _queries(grid: tuple[int, int], patch_size: tuple[int, int]) -> tuple[range, range]:
    """Returns regularly spaced rows and columns of the queries to draw, in the middle of the grid.

    There are at most `_MOST_PANELS` each, and fewer along a side that would make the figure more
    than twice as long as wide.
    """
    rows, columns = (_spaced(side, _MOST_PANELS) for side in grid)
    height, width = (side * patch for side, patch in zip(grid, patch_size, strict=True))
    return (
        _spaced(grid[0], min(len(rows), max(1, 2 * len(columns) * width // height))),
        _spaced(grid[1], min(len(columns), max(1, 2 * len(rows) * height // width))),
    )


def _spaced(side: int, most: int) -> range:
    step = -(-side // most)
    return range((side - 1) % step // 2, side, step)
