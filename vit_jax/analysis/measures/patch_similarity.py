"""Cosine similarity of the features of a patch with those of all patches."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import matplotlib
import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures import pictures
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, open_images
from vit_jax.analysis.measures.patch_tokens import check_layer, describe_layer, patch_tokens
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.errors import ConfigError
from vit_jax.pretrained.model import Pretrained

NUM_IMAGES = 8


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class PatchSimilarity(Result):
    """The result of `patch_similarity`.

    Attributes:
      features: which features: the layer.
      similarity: cosine of each query with each patch.
      patches: row and column of each query in the first image.
      pictures: the images.
    """

    features: str
    similarity: Float64[np.ndarray, "query image row column"]
    patches: tuple[tuple[int, int], ...]
    pictures: UInt8[np.ndarray, "image height_pixels width_pixels channels"]

    name: ClassVar[str] = "patch_similarity"
    title: ClassVar[str] = "Similarity of patches"
    shows: ClassVar[str] = (
        "Which patches have features like those of the marked patch, in its image and in others."
    )
    definition: ClassVar[str] = (
        "Cosine of the features of a patch of the first image with the features of every patch of "
        "all images; the mean is not subtracted. Prefix tokens (class, distillation, registers) "
        "are left out. Features of zeros have the similarity 0."
    )
    source: ClassVar[str] = "Simeoni et al. 2025 (DINOv3), arXiv 2508.10104, figure 3"

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the maps [query, image, row, column], and the queries."""
        axes = ("query", "image", "row", "column")
        return {
            "similarity": NamedArray(self.similarity, axes, "", "cosine with the query's features"),
            "patches": NamedArray(
                np.array(self.patches), ("query", "coordinate"), "", "row and column of the query"
            ),
        }

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns what the two coordinates of a query are."""
        return super().coordinates() | {"coordinate": ("row", "column")}

    def plot(self) -> Figure:
        """Draws the images with the queries marked, and the maps of each query on one scale."""
        size, grid = self.pictures.shape[1:3], self.similarity.shape[2:]
        lowest = float(self.similarity.min())
        count, queries = len(self.pictures), len(self.patches)
        across = count > 1  # A column for each image, else for each query.
        with matplotlib.rc_context(figures.STYLE):
            shape = (1 + queries, count) if across else (count, 1 + queries)
            figure, axes = pictures.panels(*shape, image_size=size)
            axes = axes if across else axes.T
            mappable = None
            for image, pixels in enumerate(self.pictures):
                pictures.draw_image(axes[0, image], pixels)
                for query, patch in enumerate(self.patches):
                    mappable = pictures.draw_map(
                        axes[1 + query, image], self.similarity[query, image], size,
                        vmin=lowest, vmax=1, cmap="viridis",
                    )  # fmt: skip
                    if image == 0:
                        for marked in (axes[0, 0], axes[1 + query, 0]):
                            pictures.mark_patch(
                                marked, patch, grid, size, colour=figures.VERMILLION
                            )
                        axes[1 + query, 0].set_title(
                            f"row {patch[0] + 1}, column {patch[1] + 1}",
                            fontsize=8, fontweight="normal",
                        )  # fmt: skip
            assert mappable is not None  # There are an image and a query.
            bar = figure.colorbar(mappable, ax=list(axes.ravel()), shrink=0.8)
            bar.set_label("cosine similarity")
            figure.suptitle(self.features, x=0.01, ha="left", fontsize=9)
        return figure


def patch_similarity(
    pretrained: Pretrained,
    images: Images,
    *,
    patch: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    num_images: int = NUM_IMAGES,
    layer: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> PatchSimilarity:
    """Shows which patches have features like those of a patch, in its image and in others.

    Args:
      pretrained: a ViT, hybrid, Mixer or ResNet (whose patches are the points of its last feature
        map).
      images: an image, or several, the first of which has the queries: see
        `vit_jax.analysis.measures.images.open_images`.
      patch: row and column of the query, from 0; or several of these. None: the centre.
      num_images: at most this many images, the first ones.
      layer: a block, from 0, for its output; None: the tokens after the final norm.
      batch_size: images at a time.

    Raises:
      ConfigError: there is no such patch or layer, or `num_images` is below 1.
      NotApplicableError: `layer` of a ResNet.

    Example:
      >>> model = create("mu/16", image_size=32)
      >>> result = analysis.patch_similarity(model, "cat.png", patch=[(0, 0), (1, 0)])
      >>> result.similarity.shape  # Queries, images, rows, columns.
      (2, 1, 2, 2)
      >>> round(float(result.similarity[1, 0, 1, 0]), 6)
      1.0
    """
    num_images = whole_number("num_images", num_images)
    batch_size = whole_number("batch_size", batch_size)
    model = measured(pretrained)
    check_layer(model, layer)
    stream = open_images(pretrained, images)
    prepared = stream.first(num_images)
    features = np.concatenate(
        [
            np.asarray(
                patch_tokens(
                    model.model, model.variables, prepared[start : start + batch_size], layer
                ),
                np.float64,
            )
            for start in range(0, len(prepared), batch_size)
        ]
    )
    patches = _patches(patch, features.shape[1:3])
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    unit = features / np.maximum(lengths, 1e-300)
    queries = unit[0][tuple(np.array(patches).T)]
    return PatchSimilarity(
        checkpoint=model.name,
        num_images=len(prepared),
        features=describe_layer(model, layer),
        similarity=np.einsum("qd,nrcd->qnrc", queries, unit),
        patches=patches,
        pictures=pretrained.preprocess.restored(prepared),
    )


def _patches(patch: Any, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Returns the queries; raises ConfigError for one that is not in the grid."""
    if patch is None:
        return ((grid[0] // 2, grid[1] // 2),)
    chosen = np.atleast_2d(np.asarray(patch))
    if (
        chosen.ndim != 2
        or chosen.shape[1] != 2
        or chosen.dtype.kind not in "iu"
        or not ((chosen >= 0) & (chosen < grid)).all()
    ):
        raise ConfigError(
            f"patch is {patch}: write (row, column), or a list of these, from (0, 0) to "
            f"({grid[0] - 1}, {grid[1] - 1})."
        )
    return tuple((int(row), int(column)) for row, column in chosen)
