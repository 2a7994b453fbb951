"""Principal components of the filters of a patch embedding, or of a ResNet's first convolution."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullFormatter

from vit_jax.analysis import figures
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.config.model import ModelConfig, ResnetConfig, VitConfig
from vit_jax.models.resnet import standardised_kernel
from vit_jax.pretrained.model import Pretrained

_COLUMNS = 7  # Of the components in the figure, as in the paper.
_FEW = 16  # Components, whose number has a linear axis.
_MOST_FILTERS = 64  # In the figure, of a first convolution.


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class EmbeddingFilters(Result):
    """The result of `embedding_filters`.

    Attributes:
      filters: those of the first linear layer, as the forward pass applies them to prepared pixels.
      components: unit vectors, the first principal components.
      explained: share of the variance, of all components.
      mean_share: the mean filter's share of the filters' sum of squares, which centring removes.
      is_convolution: whether the filters are those of a convolution, of a ResNet or a hybrid.
    """

    filters: Float[np.ndarray, "filter row column channel"]
    components: Float[np.ndarray, "drawn row column channel"]
    explained: Float[np.ndarray, " component"]
    mean_share: float
    is_convolution: bool

    name: ClassVar[str] = "embedding_filters"
    title: ClassVar[str] = "Filters of the embedding"
    shows: ClassVar[str] = (
        "The patterns of pixels that the patch embedding, or a ResNet's first convolution, "
        "responds to."
    )
    definition: ClassVar[str] = (
        "The kernel of the patch embedding is one filter of patch height x patch width x channels "
        "for each feature of a token. The principal components are those of the filters as "
        "examples and their entries as variables, centred: the mean filter is subtracted, and its "
        "share of the sum of squares is given. The first convolution of a ResNet or a hybrid is "
        "treated alike, with the kernel that the forward pass uses: standardised to mean 0 and "
        "variance 1 for each output channel. Each component has length 1 and the sign that makes "
        "its largest absolute entry positive. Images show a component, or a filter of a "
        "convolution, divided by its largest absolute entry: -1 is black, 0 is grey, 1 is full "
        "intensity, in RGB or in grey. With other than 1 or 3 channels they show the norm over "
        "channels instead, from 0 (black). Filters act on prepared pixels, so each channel has the "
        "scale of the preprocessing. filters_components_90: the number of components that explain "
        "90% of the variance."
    )
    source: ClassVar[str] = "Dosovitskiy et al. 2020, arXiv 2010.11929, figure 7 (left)"
    summary_units: ClassVar[dict[str, str]] = {
        "filters_mean_share": "share of the squares",
        "filters_components_90": "components",
    }

    @property
    def cumulative(self) -> Float[np.ndarray, " component"]:
        """Share of the variance of a component and all before it."""
        return np.cumsum(self.explained)

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the shares, the components to draw, and the filters of a convolution."""
        image = ("row", "column", "channel")
        arrays = {
            "explained": NamedArray(self.explained, ("component",), "", "share of the variance"),
            "cumulative": NamedArray(
                self.cumulative, ("component",), "", "share of a component and all before it"
            ),
            "components": NamedArray(
                self.components, ("drawn component", *image), "", "unit vectors"
            ),
            "mean_share": NamedArray(
                np.asarray(self.mean_share), (), "", "share of the mean filter in the squares"
            ),
        }
        if self.is_convolution:
            arrays["filters"] = NamedArray(self.filters, ("filter", *image), "", "standardised")
        return arrays

    def summary(self) -> dict[str, float]:
        """Returns the mean filter's share, and the components that explain 90% of the variance."""
        return {
            "filters_mean_share": self.mean_share,
            "filters_components_90": float(np.searchsorted(self.cumulative, 0.9) + 1),
        }

    def plot(self) -> Figure:
        """Draws the components, their shares, and the filters of a convolution one by one."""
        count = len(self.components)
        # Few components fill the height of the curve beside them.
        rows, columns = _grid(count, _COLUMNS if count > 9 else math.ceil(math.sqrt(count)))
        height, width = self.components.shape[1:3]
        side = max(0.75, min(1.4, 2.6 / rows))
        panel = side, max(0.3, side * height / width)
        sizes = [max(2.8, panel[0] * columns + 0.3), 3.4]
        if self.is_convolution:
            sizes.insert(1, 4.2)
        tall = max(3.2, (panel[1] + 0.25) * rows + 0.6)
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.InlineFigure(figsize=(sum(sizes), tall), layout="constrained")
            parts = figure.subfigures(1, len(sizes), width_ratios=sizes, squeeze=False)[0]
            self._draw_components(parts[0], rows, columns)
            if self.is_convolution:
                self._draw_filters(parts[1].subplots())
            self._draw_shares(parts[-1].subplots())
        return figure

    def _draw_components(self, part: SubFigure, rows: int, columns: int) -> None:
        part.suptitle("Principal components (share)", x=0.02, ha="left", weight="bold", size=10)
        grid = part.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
            axes.set(xticks=[], yticks=[])
        for i, (axes, image) in enumerate(zip(grid, filter_images(self.components), strict=False)):
            axes.imshow(image, interpolation="nearest", cmap="gray", vmin=0, vmax=1)
            axes.set_axis_on()
            axes.spines[:].set(visible=True, linewidth=0.5)  # Components may be white.
            share = f"{i + 1}: {100 * self.explained[i]:.2g}%"
            axes.set_title(share, fontsize=7, fontweight="normal", loc="center", pad=2)

    def _draw_filters(self, axes: Axes) -> None:
        shown = filter_images(self.filters[:_MOST_FILTERS])
        count, height, width = shown.shape[:3]
        rows, columns = _grid(count, 8)
        # A white line of one pixel between the filters.
        canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, *shown.shape[3:]))
        for i, image in enumerate(shown):
            top, left = i // columns * (height + 1), i % columns * (width + 1)
            canvas[top : top + height, left : left + width] = image
        axes.imshow(canvas, interpolation="nearest", cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        total = len(self.filters)
        first = f"The first {count} of {total} filters" if total > count else f"All {total} filters"
        axes.set_title(first)

    def _draw_shares(self, axes: Axes) -> None:
        shares = self.cumulative
        axes.plot(np.arange(1, len(shares) + 1), shares, color=figures.BLUE, clip_on=False)
        drawn = len(self.components)
        axes.plot(drawn, shares[drawn - 1], "o", color=figures.VERMILLION, clip_on=False)
        axes.annotate(
            f"{drawn} drawn: {shares[drawn - 1]:.1%}", (drawn, shares[drawn - 1]),
            xytext=(0.97, 0.06), textcoords="axes fraction", ha="right", fontsize=8,
            color=figures.VERMILLION,
        )  # fmt: skip
        axes.set(title="Cumulative share of the variance", xlabel="number of components")
        axes.set(ylim=(0, 1.01), xlim=(1, max(len(shares), 2)))
        if len(shares) <= _FEW:
            figures.whole_numbers(axes.xaxis)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)


def embedding_filters(pretrained: Pretrained, *, num_components: int = 28) -> EmbeddingFilters:
    """Measures which patterns of pixels the first linear layer responds to.

    Args:
      pretrained: any model. Of a ViT or a Mixer the patch embedding is measured; of a ResNet or a
        hybrid the first convolution (a hybrid's patch embedding is of features, not of pixels).
      num_components: number of principal components to keep and draw; of filters that have fewer,
        all.

    Raises:
      ConfigError: `num_components` is not positive.

    Example:
      >>> result = analysis.embedding_filters(create("mu/16", image_size=32))
      >>> result.components.shape  # Components, patch height and width, channels.
      (28, 16, 16, 3)
      >>> result.explained.shape  # 32 centred filters have 31 components.
      (31,)
    """
    num_components = whole_number("num_components", num_components)
    model = measured(pretrained)
    config = model.config
    kernel, is_convolution = _first_kernel(config, model.variables["params"])
    filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
    components, explained, mean_share = _principal_components(filters.reshape(len(filters), -1))
    notes = () if config.channels in (1, 3) else (
        f"The images have {config.channels} channels: drawn is the norm over channels.",
    )  # fmt: skip
    return EmbeddingFilters(
        checkpoint=model.name,
        num_images=0,
        notes=notes,
        filters=filters,
        components=components[:num_components].reshape(-1, *filters.shape[1:]),
        explained=explained,
        mean_share=mean_share,
        is_convolution=is_convolution,
    )


def _first_kernel(
    config: ModelConfig, params: PyTree
) -> tuple[Float[Array | np.ndarray, "row column channel filter"], bool]:
    """Returns the kernel that acts on pixels, and whether it is that of a convolution."""
    if isinstance(config, ResnetConfig):
        stem, root = config, params["root"]
    elif isinstance(config, VitConfig) and config.stem is not None:
        stem, root = config.stem, params["stem"]["root"]
    else:
        return params["embedding"]["kernel"], False
    return standardised_kernel(jnp.asarray(root["conv"]["kernel"]), stem), True


def _principal_components(
    filters: Float[np.ndarray, "filters entries"],
) -> tuple[Float[np.ndarray, "components entries"], Float[np.ndarray, " components"], float]:
    """Returns the components, their shares of the variance, and the mean's share of the squares."""
    mean = filters.mean(axis=0)
    _, singular, components = np.linalg.svd(filters - mean, full_matrices=False)
    rank = max(min(len(filters) - 1, filters.shape[1]), 1)  # The mean is taken from the filters.
    singular, components = singular[:rank], components[:rank]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    squares = singular**2
    total = np.square(filters).sum()
    return (
        components * np.sign(largest),
        squares / max(squares.sum(), np.finfo(np.float64).tiny),
        float(len(filters) * np.square(mean).sum() / max(total, np.finfo(np.float64).tiny)),
    )


def filter_images(filters: Float[np.ndarray, "n row column channel"]) -> Float[np.ndarray, "n ..."]:
    """Returns filters as images from 0 to 1: [n, row, column, 3], or without channels if grey.

    Each is divided by its largest absolute entry: 0 is drawn as 0.5. With other than 1 or 3
    channels, the norm over channels is divided by its maximum.
    """
    is_signed = filters.shape[-1] in (1, 3)
    values = filters if is_signed else np.linalg.norm(filters, axis=-1, keepdims=True)
    scale = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    values = values / np.maximum(scale, np.finfo(np.float64).tiny)
    values = (values + 1) / 2 if is_signed else values
    return values if filters.shape[-1] == 3 else values[..., 0]


def _grid(count: int, most_columns: int) -> tuple[int, int]:
    """Returns rows and columns of `count` panels."""
    columns = min(count, most_columns)
    return -(-count // columns), columns
