"""Patch features on their first three principal components, as colours."""

import dataclasses
from typing import ClassVar

import matplotlib
import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Float64, UInt8
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures import pictures
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.encoder import Measured, measured
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, ImageStream, open_images
from vit_jax.analysis.measures.patch_tokens import check_layer, describe_layer, patch_tokens
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.pretrained.consistency import raise_non_finite
from vit_jax.pretrained.model import Pretrained

NUM_SHOWN = 8
_COMPONENTS = 3
_RANGE = (1.0, 99.0)  # Percentiles of a component that become the darkest and brightest colour.
_GREY = 0.9  # Of the background.


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class FeaturePca(Result):
    """The result of `feature_pca`.

    Attributes:
      features: which features: the layer.
      scores: coordinates of the patches of the shown images; NaN of the background.
      colours: red, green and blue from 0 to 1: the scaled scores; NaN of the background.
      explained: share of the variance of the patches that each component explains.
      components: unit vectors.
      center: mean of the features, which is subtracted.
      separating: first component of all patches, which separates foreground and background.
      foreground: the patches of the shown images that are not background.
      foreground_share: share of the foreground in the patches of all images.
      pictures: the shown images.
    """

    features: str
    scores: Float64[np.ndarray, "image row column 3"]
    colours: Float64[np.ndarray, "image row column 3"]
    explained: Float64[np.ndarray, " 3"]
    components: Float64[np.ndarray, "3 width"]
    center: Float64[np.ndarray, " width"]
    separating: Float64[np.ndarray, "image row column"]
    foreground: Bool[np.ndarray, "image row column"]
    foreground_share: float
    pictures: UInt8[np.ndarray, "image height_pixels width_pixels channels"]

    name: ClassVar[str] = "feature_pca"
    title: ClassVar[str] = "Principal components of patch features"
    shows: ClassVar[str] = (
        "Features of patches as colours: equal colours are equal features, in all images."
    )
    definition: ClassVar[str] = (
        "Features of the patches of all images, without prefix tokens (class, distillation, "
        "registers), minus their mean, on the first three eigenvectors of their covariance, which "
        "is summed in float64. Sign: the largest element of each eigenvector, by magnitude, is "
        "positive. Colours: red, green and blue are the three components, each from its 1st to its "
        "99th percentile over all shown patches, so that equal colours are equal features in all "
        "images; what is beyond is clipped. All patches are shown, or with foreground=True those "
        "of the foreground: the patches are divided at zero of the first component; the side with "
        "fewer of the patches at the borders of the images is the foreground (with equally many, "
        "the positive one), and the components are those of its patches alone. explained: share "
        "of the variance of these patches."
    )
    source: ClassVar[str] = "Oquab et al. 2023 (DINOv2), arXiv 2304.07193, figure 1"

    def arrays(self) -> dict[str, NamedArray]:
        """Returns scores and colours [image, row, column, component], and the components."""
        axes = ("image", "row", "column", "component")
        return {
            "scores": NamedArray(self.scores, axes, "", "coordinates; NaN: background"),
            "colours": NamedArray(self.colours, axes, "", "scores from 0 to 1"),
            "explained": NamedArray(self.explained, axes[3:], "", "share of the variance"),
            "separating": NamedArray(
                self.separating, axes[:3], "", "first component of all patches"
            ),
            "foreground": NamedArray(self.foreground, axes[:3], "", "whether it is foreground"),
            "components": NamedArray(self.components, ("component", "feature"), "", "unit vectors"),
            "center": NamedArray(self.center, ("feature",), "", "mean of the features"),
        }

    def plot(self) -> Figure:
        """Draws each image, and below it the colours of its patches."""
        count, size = len(self.pictures), self.pictures.shape[1:3]
        with matplotlib.rc_context(figures.STYLE):
            figure, grid = pictures.panels(2, count, image_size=size, margin=0.05)
            for (top, bottom), pixels, colours in zip(
                grid.T, self.pictures, self.colours, strict=True
            ):
                pictures.draw_image(top, pixels)
                pictures.draw_map(bottom, np.where(np.isnan(colours), _GREY, colours), size)
            shares = " + ".join(f"{share:.0%}" for share in self.explained)
            figure.suptitle(
                f"{self.features}\nred + green + blue explain {shares} of the variance",
                x=0.01, ha="left", fontsize=9,
            )  # fmt: skip
        return figure


def feature_pca(
    pretrained: Pretrained,
    images: Images,
    *,
    num_images: int | None = None,
    num_shown: int = NUM_SHOWN,
    layer: int | None = None,
    foreground: bool = False,
    batch_size: int = BATCH_SIZE,
) -> FeaturePca:
    """Shows the features of patches as colours: equal colours are equal features in all images.

    The components are those of all images, of which the first ones are shown. The images are gone
    over once, and with `foreground` twice; a covariance matrix is kept, and the features of the
    shown images.

    Args:
      pretrained: a ViT, hybrid, Mixer or ResNet (whose patches are the points of its last feature
        map).
      images: see `vit_jax.analysis.measures.images.open_images`.
      num_images: a random choice of this many; None: all.
      num_shown: number of images that are shown.
      layer: a block, from 0, for its output; None: the tokens after the final norm.
      foreground: whether the background is left out, by the rule in `FeaturePca.definition`. It
        suits self-supervised features of images of an object each; of a classifier's, whole images
        may be on one side.
      batch_size: images at a time.

    Raises:
      ConfigError: there is no such layer, or a number is below 1.
      NotApplicableError: `layer` of a ResNet.

    Example:
      >>> model = create("mu/16", image_size=32)
      >>> result = analysis.feature_pca(model, "digits:test[:8]", num_shown=2)
      >>> result.colours.shape  # Images, rows, columns; red, green and blue.
      (2, 2, 2, 3)
    """
    num_shown = whole_number("num_shown", num_shown)
    model = measured(pretrained)
    check_layer(model, layer)
    features = _Features(model, open_images(pretrained, images, num_images=num_images), layer)
    everything, tokens, pixels = features.summed(batch_size, num_shown)
    if not np.isfinite(everything.outer).all():
        raise_non_finite(pretrained.params, model.config, name=model.name)
    first, notes = everything.components(), ()
    separating = (tokens - first.center) @ first.vectors[0]
    chosen, is_foreground, share = first, np.ones(separating.shape, bool), 1.0
    if foreground:
        sums, sign = features.foreground(batch_size, first, everything)
        if sums.count > _COMPONENTS:
            chosen, is_foreground = sums.components(), separating * sign > 0
            share = sums.count / everything.count
        else:
            notes = ("The foreground has too few patches for components: all patches are shown.",)
    scores = np.where(is_foreground[..., None], (tokens - chosen.center) @ chosen.vectors.T, np.nan)
    return FeaturePca(
        checkpoint=model.name,
        num_images=everything.images,
        notes=notes,
        features=describe_layer(model, layer),
        scores=scores,
        colours=_scaled(scores),
        explained=chosen.explained,
        components=chosen.vectors,
        center=chosen.center,
        separating=separating,
        foreground=is_foreground,
        foreground_share=share,
        pictures=pretrained.preprocess.restored(pixels),
    )


@dataclasses.dataclass(frozen=True)
class _Components:
    """The mean of features, their first principal components, and the variance they explain."""

    center: Float64[np.ndarray, " width"]
    vectors: Float64[np.ndarray, "3 width"]
    explained: Float64[np.ndarray, " 3"]


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Sums over patches, from which a covariance follows; they are added with `+`."""

    images: int
    count: int
    total: Float64[np.ndarray, " width"]
    outer: Float64[np.ndarray, "width width"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "patches width"], images: int) -> "_Sums":
        features = features.astype(np.float64)
        return cls(images, len(features), features.sum(axis=0), features.T @ features)

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.images + other.images,
            self.count + other.count,
            self.total + other.total,
            self.outer + other.outer,
        )

    def __sub__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.images - other.images,
            self.count - other.count,
            self.total - other.total,
            self.outer - other.outer,
        )

    def components(self) -> _Components:
        """Returns the eigenvectors of the largest eigenvalues of the covariance."""
        center = self.total / self.count
        covariance = self.outer / self.count - np.outer(center, center)
        width = len(center)
        values, vectors = scipy.linalg.eigh(
            covariance, subset_by_index=[width - _COMPONENTS, width - 1]
        )
        vectors = vectors.T[::-1]  # The largest eigenvalue first.
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
        explained = values[::-1] / max(float(np.trace(covariance)), 1e-300)
        return _Components(center, vectors * np.sign(largest), explained)


@dataclasses.dataclass(frozen=True)
class _Features:
    """The features of the patches of a stream of images."""

    model: Measured
    stream: ImageStream
    layer: int | None

    def batches(self, batch_size: int):
        """Yields features [n, row, column, width] and prepared images, both of readable ones."""
        for batch in self.stream.batches(batch_size):
            tokens = patch_tokens(self.model.model, self.model.variables, batch.images, self.layer)
            yield np.asarray(tokens)[batch.good], np.asarray(batch.images)[batch.good]

    def summed(self, batch_size: int, num_shown: int):
        """Returns the sums over all patches, and float64 features and images of the first."""
        sums: _Sums | None = None
        shown, pixels = [], []
        for tokens, images in self.batches(batch_size):
            missing = max(0, num_shown - sum(map(len, shown)))
            shown.append(tokens[:missing].astype(np.float64))
            pixels.append(images[:missing])
            new = _Sums.of(tokens.reshape(-1, tokens.shape[-1]), len(images))
            sums = new if sums is None else sums + new
        assert sums is not None  # A stream has an image or raises.
        return sums, np.concatenate(shown), np.concatenate(pixels)

    def foreground(
        self, batch_size: int, first: _Components, everything: _Sums
    ) -> tuple[_Sums, int]:
        """Returns the sums over the patches of the foreground, and the sign of its side."""
        positive = _Sums.of(np.zeros((0, len(first.center)), np.float32), 0)
        at_border = 0  # Patches at borders on the positive side, less those on the other.
        for tokens, images in self.batches(batch_size):
            is_positive = (tokens - first.center) @ first.vectors[0] > 0
            positive += _Sums.of(tokens[is_positive], len(images))
            border = np.ones(tokens.shape[1:3], bool)
            border[1:-1, 1:-1] = False
            on_border = is_positive[:, border]
            at_border += int(on_border.sum()) - int((~on_border).sum())
        return (positive, 1) if at_border <= 0 else (everything - positive, -1)


def _scaled(
    scores: Float64[np.ndarray, "image row column 3"],
) -> Float64[np.ndarray, "image row column 3"]:
    """Returns scores from 0 to 1, over all images; NaN stays NaN."""
    if np.isnan(scores).all():  # No foreground in the shown images.
        return scores
    low, high = np.nanpercentile(scores, _RANGE, axis=(0, 1, 2))
    return np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
