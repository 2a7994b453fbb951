"""Nearest neighbours of images by the features that the head reads."""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, UInt8
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures import pictures
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.encoder import Measured, Model, Variables, measured
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, ImageStream, open_images
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.evals.intervals import wilson
from vit_jax.pretrained.model import Pretrained

if TYPE_CHECKING:
    import pandas

_SIMILARITIES = 2**24  # At a time: 64 MiB in float32.


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NearestImages(Result):
    """The result of `nearest_images`.

    Attributes:
      queries: positions of the queries among the images that can be read.
      neighbours: positions of the nearest images, the nearest first.
      similarity: their cosine with the query.
      locations: file, or name of the example, of each query and its neighbours.
      class_names: names of the classes; None: the images have no labels.
      labels: of the queries and their neighbours; None: the images have no labels.
      agreement: {k: (share, low, high)}: the share of all images whose label is that of their k
        nearest neighbours, and its 95% interval; {} without labels.
      pictures: each query, then its neighbours.
    """

    queries: Int[np.ndarray, " query"]
    neighbours: Int[np.ndarray, "query neighbour"]
    similarity: Float64[np.ndarray, "query neighbour"]
    locations: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...] | None
    labels: Int[np.ndarray, "query one_and_neighbours"] | None
    agreement: dict[int, tuple[float, float, float]]
    pictures: UInt8[np.ndarray, "query one_and_neighbours height width channels"]

    name: ClassVar[str] = "nearest_images"
    title: ClassVar[str] = "Nearest images"
    shows: ClassVar[str] = (
        "The images whose features are nearest to those of a query, and how often they have "
        "its label."
    )
    definition: ClassVar[str] = (
        "The images with the largest cosine between their features (the input of the head) and "
        "those of a query, itself left out; the mean is not subtracted. Queries are spaced evenly "
        "over the images. Agreement at k: the share of all images whose label is the most frequent "
        "one of their k nearest neighbours (of equally frequent ones, that of the nearest), each "
        "image in turn left out of the others. Intervals: Wilson, 95%, as if images were "
        "independent of their neighbours."
    )
    source: ClassVar[str] = "Wu et al. 2018, arXiv 1805.01978, figure 4"
    summary_units: ClassVar[dict[str, str]] = {
        "neighbour_agreement_nearest": "share of images",
        "neighbour_agreement_majority": "share of images",
    }

    def arrays(self) -> dict[str, NamedArray]:
        """Returns similarities and positions [query, rank], and labels if known."""
        axes = ("query", "rank")
        arrays = {
            "similarity": NamedArray(self.similarity, axes, "", "cosine with the query"),
            "neighbours": NamedArray(self.neighbours, axes, "", "positions of the images"),
        }
        if self.labels is not None:
            arrays["neighbour_labels"] = NamedArray(self.labels[:, 1:], axes, "", "class ids")
            arrays["query_labels"] = NamedArray(self.labels[:, 0], axes[:1], "", "class ids")
        arrays["queries"] = NamedArray(self.queries, axes[:1], "", "positions of the images")
        if self.agreement:
            meaning = "share of images with the label of their k nearest neighbours"
            columns = np.array(list(self.agreement.values()), np.float64).T
            for name, values, text in zip(
                ("agreement", "agreement_low", "agreement_high"), columns,
                ("", "low end of the 95% interval: ", "high end of the 95% interval: "),
                strict=True,
            ):  # fmt: skip
                arrays[name] = NamedArray(values, ("k",), "", text + meaning)
        return arrays

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns the numbers of neighbours whose labels are compared, queries and ranks."""
        agreement = {"k": tuple(self.agreement)} if self.agreement else {}
        return super().coordinates() | agreement

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns a row for each query and rank: both images, their similarity, and labels.

        The columns are query and neighbour (file names, or the names of examples), rank (from 1),
        similarity, and of labelled images label (of the neighbour) and query_label.

        Raises:
          ConfigError: pandas is not installed.
        """
        table = super().to_dataframe()
        ranks = self.neighbours.shape[1]
        columns = {
            "query": [row[0] for row in self.locations for _ in range(ranks)],
            "rank": table["rank"],
            "neighbour": [name for row in self.locations for name in row[1:]],
            "similarity": table["similarity"],
        }
        if self.labels is not None and self.class_names is not None:
            names = np.array(self.class_names)[self.labels]
            columns["label"] = names[:, 1:].ravel()
            columns["query_label"] = np.repeat(names[:, 0], ranks)
        return type(table)(columns)

    def summary(self) -> dict[str, float]:
        """Returns the agreement with the nearest image, and with the majority of the k nearest."""
        shares = [share for share, _, _ in self.agreement.values()]
        names = ("neighbour_agreement_nearest", "neighbour_agreement_majority")
        return dict(zip(names, shares, strict=False))

    def plot(self) -> Figure:
        """Draws each query with its neighbours, the nearest first."""
        rows, columns, *size, _ = self.pictures.shape
        with matplotlib.rc_context({**figures.STYLE, **figures.LITERAL_TEXT}):
            lines = 1 if self.labels is None else 2
            figure, grid = pictures.panels(
                rows, columns, image_size=(size[0], size[1]), margin=0.05 + 0.17 * lines
            )
            for row in range(rows):
                for column in range(columns):
                    axes = grid[row, column]
                    pictures.draw_image(axes, self.pictures[row, column])
                    text, colour = self._caption(row, column)
                    axes.set_title(
                        text, fontsize=8, color=colour, fontweight="normal", loc="center", pad=3
                    )
            figure.suptitle(self._summary(), x=0.01, ha="left", fontsize=9)
        return figure

    def _caption(self, row: int, column: int) -> tuple[str, str]:
        """Returns the text above an image and its colour."""
        text = "query" if column == 0 else f"{self.similarity[row, column - 1]:.3f}"
        if self.labels is None or self.class_names is None:
            return text, "black"
        label = self.labels[row, column]
        same = label == self.labels[row, 0]
        mark = "" if column == 0 else " ✓" if same else " ✗"
        height, width = self.pictures.shape[2:4]
        # As many characters as a panel is wide.
        name = figures.shorten(self.class_names[label], max(6, 20 * width // max(height, width)))
        colour = "black" if column == 0 else figures.BLUE if same else figures.VERMILLION
        return f"{text}{mark}\n{name}", colour

    def _summary(self) -> str:
        if not self.agreement:
            return "cosine similarity of features"
        shares = [
            f"{share:.1%} ({low:.1%} to {high:.1%}) at k={k}"
            for k, (share, low, high) in self.agreement.items()
        ]
        return "label agreement with the nearest images: " + ", ".join(shares)


def nearest_images(
    pretrained: Pretrained,
    images: Images,
    *,
    num_queries: int = 5,
    k: int = 5,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> NearestImages:
    """Shows the images whose features are nearest to those of some images.

    The features of all images are kept, float32: 768 numbers an image for a ViT-B, 154 MB for
    50,000 images. Similarities are computed a block at a time.

    Args:
      pretrained: any model.
      images: see `vit_jax.analysis.measures.images.open_images`; at least two.
      num_queries: number of images whose neighbours are shown.
      k: number of neighbours; all other images, if there are fewer.
      num_images: a random choice of this many; None: all.
      batch_size: images at a time.

    Raises:
      ConfigError: a number is below 1.
      NotApplicableError: fewer than two images can be read.

    Example:
      >>> result = analysis.nearest_images(create("mu/16", image_size=32), "digits:test[:40]", k=3)
      >>> result.neighbours.shape
      (5, 3)
      >>> list(result.agreement)  # By the label of the nearest image, and of the three nearest.
      [1, 3]
    """
    num_queries, k = whole_number("num_queries", num_queries), whole_number("k", k)
    model = measured(pretrained)
    stream = open_images(pretrained, images, num_images=num_images)
    features, labels = _features(model, stream, batch_size)
    count = len(features)
    if count < 2:
        raise NotApplicableError("One image has no neighbours: give at least two that can be read.")
    k = min(k, count - 1)
    queries = np.linspace(0, count - 1, min(num_queries, count)).round().astype(int)
    agreement = {}
    if stream.has_labels:
        nearest = nearest_neighbours(features, np.arange(count), k)
        for size in dict.fromkeys((1, k)):
            hits = int((majority(labels[nearest[:, :size]]) == labels).sum())
            agreement[size] = (hits / count, *wilson(hits, count))
        neighbours = nearest[queries]
    else:
        neighbours = nearest_neighbours(features, queries, k)
    shown = np.concatenate([queries[:, None], neighbours], axis=1)
    vectors = features[shown].astype(np.float64)
    readable = _readable(stream)
    return NearestImages(
        checkpoint=model.name,
        num_images=count,
        queries=queries,
        neighbours=neighbours,
        similarity=np.einsum("qd,qkd->qk", vectors[:, 0], vectors[:, 1:]),
        locations=tuple(
            tuple(map(stream.source.describe, row)) for row in readable[shown].tolist()
        ),
        class_names=tuple(stream.source.class_names) if stream.has_labels else None,
        labels=labels[shown] if stream.has_labels else None,
        agreement=agreement,
        pictures=_pictures(pretrained, stream, readable[shown]),
    )


@partial(jax.jit, static_argnames="model")
def _pre_logits(
    model: Model, variables: Variables, images: Float[Array, "b height width channels"]
) -> Float32[Array, "b d"]:
    intermediates: dict[str, Any] = dict(model.apply(variables, images)[1])
    return intermediates["pre_logits"]


def _features(
    model: Measured, stream: ImageStream, batch_size: int
) -> tuple[Float32[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """Returns features of length 1 (zeros stay zeros), and labels."""
    features, labels = [], []
    for batch in stream.batches(batch_size):
        rows = np.asarray(_pre_logits(model.model, model.variables, batch.images))[batch.good]
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        features.append((rows / np.maximum(lengths, 1e-300)).astype(np.float32))
        labels.append(batch.labels[batch.good])
    return np.concatenate(features), np.concatenate(labels)


@partial(jax.jit, static_argnames="k")
def _nearest(
    rows: Float[Array, "b d"], positions: Int[Array, " b"], bank: Float[Array, "n d"], k: int
) -> Int[Array, "b k"]:
    similarity = jnp.matmul(rows, bank.T, precision="highest")
    similarity = similarity.at[jnp.arange(len(rows)), positions].set(-jnp.inf)
    return jax.lax.top_k(similarity, k)[1]


def nearest_neighbours(
    features: Float32[np.ndarray, "n d"], positions: Int[np.ndarray, " q"], k: int
) -> Int[np.ndarray, "q k"]:
    """Returns the positions of the k nearest other images of each query, the nearest first.

    Args:
      features: of length 1.
      positions: of the queries.
      k: below n.
    """
    size = max(1, min(len(positions), _SIMILARITIES // len(features)))
    bank, padded = jnp.asarray(features), np.pad(positions, (0, -len(positions) % size))
    blocks = [padded[start : start + size] for start in range(0, len(padded), size)]
    nearest = [np.asarray(_nearest(features[block], block, bank, k)) for block in blocks]
    return np.concatenate(nearest)[: len(positions)]


def majority(labels: Int[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    """Returns the most frequent label of each row; of equally frequent ones, the first."""
    counts = (labels[:, :, None] == labels[:, None]).sum(axis=2)
    return np.take_along_axis(labels, counts.argmax(axis=1)[:, None], axis=1)[:, 0]


def _readable(stream: ImageStream) -> Int[np.ndarray, " n"]:
    """Returns the positions in a stream, gone over before, of the images that can be read."""
    positions = range(len(stream))
    if stream.bad:
        positions = [i for i in positions if stream.source.describe(i) not in stream.bad]
    return np.array(positions)


def _pictures(
    pretrained: Pretrained, stream: ImageStream, shown: Int[np.ndarray, "query images"]
) -> UInt8[np.ndarray, "query images height width channels"]:
    """Prepares the shown images once more: the others were not kept.

    Args:
      pretrained: its preprocessing is undone.
      stream: images.
      shown: their positions in the stream.
    """
    rng = np.random.default_rng(0)  # Required, but evaluation transforms are deterministic.
    distinct, where = np.unique(shown, return_inverse=True)
    prepared = [stream.transform(stream.source[int(i)], rng)["image"] for i in distinct]
    pixels = pretrained.preprocess.restored(np.stack(prepared))
    return pixels[where.reshape(shown.shape)]
