"""Norms of tokens at the output of each block: their distribution, and outliers among patches."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.analysis import figures
from vit_jax.analysis.measures.arguments import positive_norm
from vit_jax.analysis.measures.bootstrap import MeanOverImages
from vit_jax.analysis.measures.encoder import Captured, Measured, measure_blocks, measured
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, ImageStream, open_images
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.config.model import ModelConfig, VitConfig
from vit_jax.errors import NonFiniteError
from vit_jax.pretrained.model import Pretrained

OUTLIER_RATIO = 4.0  # Of the relative rule: above this many times the layer's median.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# 50 bins a decade: a bin's upper edge is 4.7% above its lower one.
EDGES = 10.0 ** np.linspace(-4, 6, 501)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class TokenNorms(Result):
    """The result of `token_norms`.

    Attributes:
      histogram: number of patch tokens in each bin. The first bin is of norms below `EDGES[0]`,
        the last one of norms from `EDGES[-1]` on.
      mean: of the patch tokens, with `std`, `minimum` and `maximum`: exact.
      quantiles: the quantiles `QUANTILES`, interpolated in the histogram.
      prefix_mean: mean over images of the norm of each prefix token.
      prefix_names: what these tokens are.
      threshold: a patch token with a larger norm is an outlier.
      outlier_share: share of the patch tokens that are outliers.
      outlier_interval: ends of its 95% interval.
      outlier_map: share of the images in which the patch at this position is an outlier.
    """

    histogram: Int[np.ndarray, "layer bin"]
    mean: Float[np.ndarray, " layer"]
    std: Float[np.ndarray, " layer"]
    minimum: Float[np.ndarray, " layer"]
    maximum: Float[np.ndarray, " layer"]
    quantiles: Float[np.ndarray, "quantile layer"]
    prefix_mean: Float[np.ndarray, "layer token"]
    prefix_names: tuple[str, ...]
    threshold: Float[np.ndarray, " layer"]
    outlier_share: Float[np.ndarray, " layer"]
    outlier_interval: Float[np.ndarray, "2 layer"]
    outlier_map: Float[np.ndarray, "layer row column"]

    name: ClassVar[str] = "token_norms"
    title: ClassVar[str] = "Norms of the tokens"
    shows: ClassVar[str] = (
        "Norms of the tokens at the output of each layer, and where patches have outlying ones."
    )
    definition: ClassVar[str] = (
        "L2 norms of the tokens at the output of each block, after both residual branches and "
        "before the model's final norm, which would hide outliers. The histogram, the moments and "
        "the outliers are of patch tokens; prefix tokens (class, distillation, registers) are "
        "left out there and have means of their own. Bins: 50 a decade from 1e-4 to 1e6, and one "
        "on either side. A patch token is an outlier of a layer if its norm is above the "
        f"threshold: {OUTLIER_RATIO:g} times the median of the layer's patch tokens over all "
        "images (from the histogram, so to 5%; the images are gone over a second time for it), or "
        "the given number. Four times the median is a rule of this library; Darcet et al. read a "
        "limit off the histogram, 150 for DINOv2-g. Interval of the share: bootstrap over images "
        "at this threshold, 95%. Layers are the blocks, counted from 1 in tables and "
        "figures and from 0 in arrays."
    )
    source: ClassVar[str] = "Darcet et al. 2023, arXiv 2309.16588, section 2.1"
    summary_units: ClassVar[dict[str, str]] = {"outlier_share": "share of patch tokens"}

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the statistics of each layer, the histogram, prefix tokens and the map."""
        layer = ("layer",)
        arrays = {
            "mean": NamedArray(self.mean, layer, "", "mean norm of the patch tokens"),
            "std": NamedArray(self.std, layer, "", "standard deviation of these norms"),
            "minimum": NamedArray(self.minimum, layer, "", "smallest norm of a patch token"),
            "maximum": NamedArray(self.maximum, layer, "", "largest norm of a patch token"),
        }
        for quantile, values in zip(QUANTILES, self.quantiles, strict=True):
            meaning = f"{quantile:.0%} of the patch tokens have a smaller norm"
            arrays[f"quantile_{round(100 * quantile)}"] = NamedArray(values, layer, "", meaning)
        meaning = "share of the patch tokens that are outliers"
        arrays |= {
            "threshold": NamedArray(
                self.threshold, layer, "", "norm above which one is an outlier"
            ),
            "outlier_share": NamedArray(self.outlier_share, layer, "", meaning),
        }
        for end, values in zip(("low", "high"), self.outlier_interval, strict=True):
            text = f"{end} end of the 95% interval: {meaning}"
            arrays[f"outlier_share_{end}"] = NamedArray(values, layer, "", text)
        position = ("layer", "row", "column")
        meaning = "share of the images in which this patch is an outlier"
        arrays |= {
            "outlier_map": NamedArray(self.outlier_map, position, "", meaning),
            "histogram": NamedArray(
                self.histogram, ("layer", "bin"), "", "number of patch tokens; bins between edges"
            ),
            "edges": NamedArray(EDGES, ("edge",), "", "norms between the bins of the histogram"),
        }
        if self.prefix_names:
            meaning = "mean norm of the prefix tokens"
            arrays["prefix_mean"] = NamedArray(self.prefix_mean, ("layer", "token"), "", meaning)
        return arrays

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns the layers from 1, and the names of the prefix tokens."""
        tokens = {"token": self.prefix_names} if self.prefix_names else {}
        return super().coordinates() | tokens

    def summary(self) -> dict[str, float]:
        """Returns the largest share of outliers of a layer, and the last layer's mean norm."""
        return {
            "outlier_share": float(self.outlier_share.max()),
            "token_norm_last_layer": float(self.mean[-1]),
        }

    def plot(self) -> Figure:
        """Draws the distribution over the layers, the share of outliers, and where they are."""
        with matplotlib.rc_context(figures.STYLE):
            if not self.outlier_share.any():
                figure = figures.InlineFigure(figsize=(6, 3.8), layout="constrained")
                axes = figure.subplots()
                self._draw_histogram(figure, axes)
                axes.set_title("norms of patch tokens: no outliers in any layer")
                return figure
            figure = figures.InlineFigure(figsize=(11.5, 3.6), layout="constrained")
            norms, share, places = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
            self._draw_histogram(figure, norms)
            self._draw_shares(share)
            self._draw_places(figure, places)
        return figure

    def _draw_shares(self, axes: Axes) -> None:
        layers, (low, high) = np.arange(1, len(self.mean) + 1), self.outlier_interval
        axes.fill_between(layers, low, high, color=figures.SKY, alpha=0.4, linewidth=0)
        axes.plot(layers, self.outlier_share, ".-", color=figures.BLUE)
        axes.set(title="share of outliers", xlabel="layer", xlim=(0.5, len(layers) + 0.5))
        axes.set_ylim(0, 1.1 * float(np.nanmax([high, self.outlier_share])))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        figures.whole_numbers(axes.xaxis)

    def _draw_places(self, figure: Figure, axes: Axes) -> None:
        """Draws where outliers are in the layer with the most; rows and columns from 1."""
        chosen = int(self.outlier_share.argmax())
        shares = self.outlier_map[chosen]
        rows, columns = shares.shape
        drawn = axes.imshow(
            shares, cmap="viridis", vmin=0, vmax=shares.max(),
            extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
        )  # fmt: skip
        title = f"where, in layer {chosen + 1}"
        axes.set(title=title, xlabel="column of patches", ylabel="row of patches")
        for axis in (axes.xaxis, axes.yaxis):
            figures.whole_numbers(axis)
        figure.colorbar(
            drawn, ax=axes, label="share of images", shrink=0.8, format=PercentFormatter(1)
        )

    def _draw_histogram(self, figure: Figure, axes: Axes) -> None:
        depth = len(self.mean)
        inner = self.histogram[:, 1:-1]
        lines = np.concatenate([self.prefix_mean.ravel(), self.threshold])
        smallest = min(float(self.minimum.min()), float(lines.min()))
        largest = max(float(self.maximum.max()), float(lines.max()))
        shares = np.where(inner > 0, inner / self.histogram.sum(axis=1, keepdims=True), np.nan)
        if np.isfinite(shares).any():
            drawn = axes.pcolormesh(
                np.arange(depth + 1) + 0.5, EDGES, shares.T, cmap="Blues", rasterized=True,
                norm=LogNorm(np.nanmin(shares) / 3, np.nanmax(shares)),
            )  # fmt: skip
            figure.colorbar(drawn, ax=axes, label="share of patch tokens", shrink=0.8)
        layers = np.arange(1, depth + 1)
        # The lines of all registers would hide each other: one for their mean.
        for name, colour in zip(
            dict.fromkeys(map(_kind, self.prefix_names)), figures.COLOURS[1:], strict=False
        ):
            tokens = [i for i, token in enumerate(self.prefix_names) if _kind(token) == name]
            mean = self.prefix_mean[:, tokens].mean(axis=1)
            axes.plot(layers, mean, ".-", color=colour, label=f"{name} (mean)")
        axes.plot(layers, self.threshold, "--", color=figures.GREY, label="outliers: above this")
        figures.use_log_scale(
            axes, smallest=max(smallest, EDGES[0]), largest=min(largest, EDGES[-1])
        )
        axes.set(title="norms of patch tokens", xlabel="layer", ylabel="norm")
        figures.whole_numbers(axes.xaxis)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=8, ncols=2)


def token_norms(
    pretrained: Pretrained,
    images: Images,
    *,
    threshold: int | float | None = None,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> TokenNorms:
    """Measures the norms of tokens over the layers, and finds patch tokens with outlying norms.

    Large models without registers use patches of uniform background to store global information:
    their norms are several times those of others.

    Args:
      pretrained: a ViT, hybrid or Mixer.
      images: see `vit_jax.analysis.measures.images.open_images`.
      threshold: a norm, the same for all layers, such as 150 for DINOv2-g (Darcet et al. 2023);
        None: 4 times the median of each layer, for which the images are gone over twice.
      num_images: a random choice of this many; None: all.
      batch_size: images at a time.

    Raises:
      ConfigError: the threshold is not positive.
      NonFiniteError: a token is not finite.
      NotApplicableError: the model has no tokens (a ResNet).

    Example:
      >>> result = analysis.token_norms(create("mu/16", image_size=32), "digits:test[:8]")
      >>> result.prefix_names, result.outlier_share.shape, result.outlier_map.shape
      (('class',), (1,), (1, 2, 2))
    """
    model = measured(pretrained)
    depth = model.blocks.depth
    positive_norm("threshold", threshold)
    stream = open_images(pretrained, images, num_images=num_images)
    thresholds = None if threshold is None else np.full(depth, float(threshold))
    return norms_of(model, stream, thresholds, batch_size)


def norms_of(
    model: Measured,
    stream: ImageStream,
    threshold: Float[np.ndarray, " layer"] | None,
    batch_size: int,
) -> TokenNorms:
    """Measures a model as `token_norms` does.

    Args:
      model: with blocks.
      stream: images.
      threshold: of each layer; None: by the relative rule.
      batch_size: images at a time.
    """
    distribution, outliers = _Distribution(model), _Outliers(model)
    for norms in _norms(model, stream, batch_size):
        distribution.add(norms)
        if threshold is not None:
            outliers.add(norms, threshold)
    limits = OUTLIER_RATIO * distribution.quantiles((0.5,))[0] if threshold is None else threshold
    if threshold is None:
        for norms in _norms(model, stream, batch_size):
            outliers.add(norms, limits)
    return TokenNorms(
        checkpoint=model.name,
        num_images=outliers.map.count,
        threshold=limits,
        outlier_share=outliers.share.mean,
        outlier_interval=outliers.share.interval,
        outlier_map=outliers.map.mean,
        quantiles=distribution.quantiles(QUANTILES),
        **distribution.statistics(),
    )


def num_prefix(config: ModelConfig) -> int:
    """Returns the number of tokens before the patches; a Mixer has none."""
    return config.num_prefix if isinstance(config, VitConfig) else 0


def prefix_names(config: ModelConfig) -> tuple[str, ...]:
    """Returns what the prefix tokens are: ("class", "register 1", "register 2")."""
    if not isinstance(config, VitConfig):
        return ()
    registers = (f"register {i + 1}" for i in range(config.registers))
    return (
        *["class"] * config.has_class_token, *["distillation"] * config.distilled, *registers,
    )  # fmt: skip


def _kind(token: str) -> str:
    return "registers" if token.startswith("register") else f"{token} token"


def token_norms_of_block(captured: Captured) -> Float[Array, "b n"]:
    """Returns the norms of the tokens at a block's output; for `measure_blocks`."""
    return jnp.linalg.norm(captured["blocks"], axis=-1)


def _norms(model: Measured, stream: ImageStream, batch_size: int):
    """Yields the norms of batches of readable images: float32 [images, layer, token]."""
    for batch in stream.batches(batch_size):
        norms = measure_blocks(
            model.model, model.variables, batch.images, token_norms_of_block, ("blocks",)
        )
        norms = np.asarray(jax.device_get(norms)).swapaxes(0, 1)[batch.good]
        if not np.isfinite(norms).all():
            layer = np.flatnonzero(~np.isfinite(norms).all(axis=(0, 2)))[0] + 1
            raise NonFiniteError(
                f"{model.name}: tokens of layer {layer} are NaN or infinite, so they have no "
                "norms. Look for such values among the parameters and the images."
            )
        yield norms


class _Distribution:
    """Sums over images from which the distribution of each layer's norms follows."""

    def __init__(self, model: Measured):
        config = model.blocks
        self._config, self._prefix = config, num_prefix(config)
        self._histogram = np.zeros((config.depth, len(EDGES) + 1), np.int64)
        self._moments = np.zeros((2, config.depth))
        self._prefix_sum = np.zeros((config.depth, self._prefix))
        self._minimum = np.full(config.depth, np.inf)
        self._maximum = np.full(config.depth, -np.inf)
        self._count = 0

    def add(self, norms: Float[np.ndarray, "images layer token"]) -> None:
        norms = norms.astype(np.float64)
        patches = norms[..., self._prefix :]
        # Bin 0 is below the first edge; bin i holds [edge i-1, edge i).
        bins = np.searchsorted(EDGES, patches, side="right")
        for layer, histogram in enumerate(self._histogram):
            histogram += np.bincount(bins[:, layer].ravel(), minlength=len(histogram))
        self._moments += [(patches**power).sum(axis=(0, 2)) for power in (1, 2)]
        self._prefix_sum += norms[..., : self._prefix].sum(axis=0)
        self._minimum = np.minimum(self._minimum, patches.min(axis=(0, 2)))
        self._maximum = np.maximum(self._maximum, patches.max(axis=(0, 2)))
        self._count += len(norms)

    def quantiles(self, levels: tuple[float, ...]) -> Float[np.ndarray, "quantile layer"]:
        """Returns quantiles: geometric interpolation in a bin, within the smallest and largest."""
        values = np.zeros((len(levels), len(self._histogram)))
        positions = np.log(EDGES)
        for layer, histogram in enumerate(self._histogram):
            below = np.cumsum(histogram)[:-1] / histogram.sum()  # Of each edge.
            # np.interp needs increasing positions: edges around empty bins are left out.
            keep = np.concatenate([[True], np.diff(below) > 0])
            keep |= np.concatenate([np.diff(below) > 0, [True]])
            values[:, layer] = np.exp(np.interp(levels, below[keep], positions[keep]))
        return np.clip(values, self._minimum, self._maximum)

    def statistics(self) -> dict:
        """Returns fields of `TokenNorms`."""
        mean, square = self._moments / self._histogram.sum(axis=1)
        return {
            "histogram": self._histogram,
            "mean": mean,
            "std": np.sqrt(np.maximum(square - mean**2, 0)),
            "minimum": self._minimum,
            "maximum": self._maximum,
            "prefix_mean": self._prefix_sum / self._count,
            "prefix_names": prefix_names(self._config),
        }


class _Outliers:
    """Share and positions of the patch tokens whose norms are above a threshold."""

    def __init__(self, model: Measured):
        self._grid, self._prefix = model.blocks.grid, num_prefix(model.config)
        self.share, self.map = MeanOverImages(), MeanWithoutInterval()

    def add(
        self,
        norms: Float[np.ndarray, "images layer token"],
        threshold: Float[np.ndarray, " layer"],
    ) -> None:
        outlying = norms[..., self._prefix :] > threshold[:, None]
        self.share.add(outlying.mean(axis=-1))
        self.map.add(outlying.reshape(*outlying.shape[:2], *self._grid))


class MeanWithoutInterval:
    """The mean of large arrays over images: an interval would need many replicates of them."""

    def __init__(self) -> None:
        self._total: np.ndarray | float = 0.0
        self.count = 0

    def add(self, values: np.ndarray) -> None:
        self._total = self._total + values.sum(axis=0, dtype=np.float64)
        self.count += len(values)

    @property
    def mean(self) -> np.ndarray:
        return np.asarray(self._total) / self.count
