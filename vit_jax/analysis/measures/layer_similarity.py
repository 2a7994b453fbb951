"""Similarity of layers, of one model or of two: linear CKA over minibatches, without bias."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.bootstrap import LEVEL, MeanOverImages
from vit_jax.analysis.measures.encoder import Captured, Measured, measure_blocks, measured
from vit_jax.analysis.measures.images import Images, ImageStream, open_images
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.analysis.measures.token_norms import num_prefix
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.pretrained.model import Pretrained

MINIBATCH = 64
POOLS = ("all", "mean")
_SMALLEST = 4  # HSIC's unbiased estimator needs four examples.


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LayerSimilarity(Result):
    """The result of `layer_similarity`.

    Attributes:
      cka: linear CKA of layer i of the model and layer j of the other one, or of the same. Layer 0
        is the embedding, layer i the output of block i.
      interval: ends of its 95% interval; NaN of a single minibatch.
      other: the other model; "": the same.
      minibatch: number of images in each minibatch.
    """

    cka: Float[np.ndarray, "layer other_layer"]
    interval: Float[np.ndarray, "2 layer other_layer"]
    other: str
    minibatch: int

    name: ClassVar[str] = "layer_similarity"
    title: ClassVar[str] = "Similarity of layers (CKA)"
    shows: ClassVar[str] = (
        "Which layers represent images alike: similarity of each layer with each other one."
    )
    definition: ClassVar[str] = (
        "Linear centred kernel alignment, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), of the Gram "
        "matrices K and L of two layers' representations of the images: 1 if they are equal up to "
        "rotation and scale, 0 in the mean if they are independent (and slightly negative at "
        'times). A representation is all patch tokens of an image as one vector (pool="all"), or '
        'their mean ("mean"); prefix tokens are left out. Layer 0 is the input of the first '
        "block, layer i the output of block i. Each of the three HSIC is averaged over minibatches "
        "of batch_size images, by the unbiased estimator HSIC_1, and then the ratio is taken, so "
        "the result does not depend on the minibatch's size but for noise; an incomplete last "
        "minibatch is left out, unless it is the only one. Intervals: bootstrap over minibatches, "
        "95%; of fewer than ten they are rough."
    )
    source: ClassVar[str] = (
        "Nguyen, Raghu and Kornblith 2020, arXiv 2010.15327, section 3; HSIC_1: Song et al. 2012, "
        "JMLR 13: 1393-1434, equation 5"
    )
    summary_units: ClassVar[dict[str, str]] = {
        "cka_last_layers": "CKA", "cka_embedding_last_layer": "CKA",
    }  # fmt: skip

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the similarity with the ends of its interval: [layer, other_layer]."""
        axes, meaning = ("layer", "other_layer"), "linear CKA; layer 0: the embedding"
        arrays = {"cka": NamedArray(self.cka, axes, "", meaning)}
        for end, values in zip(("low", "high"), self.interval, strict=True):
            text = f"{end} end of the 95% interval of the linear CKA"
            arrays[f"cka_{end}"] = NamedArray(values, axes, "", text)
        return arrays

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns the numbers of the layers, 0 for the embedding."""
        rows, columns = self.cka.shape
        return {"layer": tuple(range(rows)), "other_layer": tuple(range(columns))}

    def summary(self) -> dict[str, float]:
        """Returns the CKA of embedding and last layer; of two models, of the last ones."""
        if self.other:
            return {"cka_last_layers": float(self.cka[-1, -1])}
        return {"cka_embedding_last_layer": float(self.cka[0, -1])}

    def plot(self) -> Figure:
        """Draws the matrix of similarities, the first layer at the lower left."""
        with matplotlib.rc_context({**figures.STYLE, **figures.LITERAL_TEXT}):
            figure = figures.InlineFigure(figsize=(5.0, 4.2), layout="constrained")
            axes = figure.subplots()
            drawn = axes.imshow(
                self.cka, origin="lower", cmap="magma", vmin=0, vmax=1,
                aspect="auto" if self.other else "equal",
            )  # fmt: skip
            first, second = _end(self.checkpoint), _end(self.other)
            axes.set_ylabel("layer" + f" of {first}" * bool(self.other) + " (0: embedding)")
            axes.set_xlabel("layer" + f" of {second}" * bool(self.other) + " (0: embedding)")
            for axis in (axes.xaxis, axes.yaxis):
                figures.whole_numbers(axis)
            figure.colorbar(drawn, ax=axes, label="linear CKA", shrink=0.9)
        return figure


def _end(name: str, width: int = 36) -> str:
    """Returns the end of a path, as much as an axis has room for."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def layer_similarity(
    pretrained: Pretrained,
    images: Images,
    other: Pretrained | None = None,
    *,
    pool: str = "all",
    num_images: int | None = None,
    batch_size: int = MINIBATCH,
) -> LayerSimilarity:
    """Compares the layers of a model with each other, or with those of another model.

    Memory: the Gram matrices of a minibatch, and 400 bootstrap replicates of the result.

    Args:
      pretrained: a ViT, hybrid or Mixer.
      images: see `vit_jax.analysis.measures.images.open_images`; each model's own preprocessing
        prepares them.
      other: another such model, of any size; None: the same one.
      pool: "all": a layer's representation of an image is all patch tokens; "mean": their mean.
      num_images: a random choice of this many; None: all.
      batch_size: images of a minibatch, at least 4; more of them give less noise. If fewer can be
        read, all of them are the only minibatch.

    Raises:
      ConfigError: `pool` is not accepted, or images that are prepared already are of another size
        than those of the other model.
      NotApplicableError: a model has no tokens (a ResNet), or a minibatch has fewer than four
        images.

    Example:
      >>> model = create("mu/16", image_size=32)
      >>> result = analysis.layer_similarity(model, "digits:test[:16]", batch_size=8)
      >>> result.cka.shape, bool(np.allclose(np.diag(result.cka), 1))
      ((2, 2), True)
    """
    if pool not in POOLS:
        raise ConfigError(f'pool is "{pool}". {did_you_mean(pool, POOLS)}')
    if whole_number("batch_size", batch_size) < _SMALLEST:
        raise NotApplicableError(
            f"batch_size is {batch_size}: the unbiased estimate needs at least {_SMALLEST} images."
        )
    loaded = [pretrained] if other is None else [pretrained, other]
    models = [measured(one) for one in loaded]
    depths = [model.blocks.depth for model in models]
    stream = open_images(pretrained, images, num_images=num_images)
    streams = [stream] if other is None else [stream, stream.prepared_for(other)]
    minibatch, cross, first, second = _means(models, streams, batch_size, pool)
    if not cross.count:
        raise NotApplicableError(
            f"Its unbiased estimate needs at least {_SMALLEST} images that can be read."
        )
    shape, notes = (depths[0] + 1, depths[-1] + 1), ()
    if minibatch < batch_size:
        notes = (f"Fewer than {batch_size} images: all {minibatch} of them are one minibatch.",)
    return LayerSimilarity(
        checkpoint=models[0].name,
        num_images=cross.count * minibatch,
        cka=_ratio(cross.mean, first.mean, second.mean),
        interval=_interval(cross, first, second, shape),
        other=models[1].name if other is not None else "",
        minibatch=minibatch,
        notes=notes,
    )


def hsic(
    one: Float[np.ndarray, "layer n n"], two: Float[np.ndarray, "other_layer n n"]
) -> Float[np.ndarray, "layer other_layer"]:
    """Returns HSIC_1, the unbiased estimate, of each pair of Gram matrices.

    Song et al. 2012, equation 5, of matrices whose diagonals are set to zero. It does not change
    if a number is added to a row and the same column.
    """
    n = one.shape[-1]
    one, two = (gram * (1 - np.eye(n)) for gram in (one, two))
    trace = np.einsum("anm,bnm->ab", one, two, optimize=True)
    rows, other_rows = one.sum(axis=-1), two.sum(axis=-1)
    sums = np.outer(rows.sum(axis=-1), other_rows.sum(axis=-1)) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * rows @ other_rows.T) / (n * (n - 3))


def _means(
    models: list[Measured], streams: list[ImageStream], size: int, pool: str
) -> tuple[int, MeanOverImages, MeanOverImages, MeanOverImages]:
    """Returns the size of the minibatches, and means over them: HSIC(K, L), HSIC(K, K), HSIC(L, L).

    As many values are added to each at a time, so their replicates have the same weights.
    """
    cross, first, second = MeanOverImages(), MeanOverImages(), MeanOverImages()
    for prepared in _minibatches(streams, size):
        size = len(prepared[0])
        grams = [_grams(*one, pool) for one in zip(models, prepared, strict=True)]
        one, two = grams[0], grams[-1]
        cross.add(hsic(one, two)[None])
        first.add(np.diag(hsic(one, one))[None])
        second.add(np.diag(hsic(two, two))[None])
    return size, cross, first, second


def _minibatches(
    streams: list[ImageStream], size: int
) -> Iterator[list[Float[np.ndarray, "n height width channels"]]]:
    """Yields minibatches of images that can be read, of each stream the same ones.

    An incomplete one is yielded only if it is the first.
    """
    kept: list[list[np.ndarray]] = [[] for _ in streams]
    is_first = True
    for batches in zip(*(stream.batches(size) for stream in streams), strict=True):
        good = np.logical_and.reduce([batch.good for batch in batches])
        for images, batch in zip(kept, batches, strict=True):
            images.extend(np.asarray(batch.images)[good])
        if len(kept[0]) >= size:
            yield [np.stack(images[:size]) for images in kept]
            kept = [images[size:] for images in kept]
            is_first = False
    if is_first and len(kept[0]) >= _SMALLEST:
        yield [np.stack(images) for images in kept]


def _grams(
    model: Measured, images: Float[np.ndarray, "n height width channels"], pool: str
) -> Float[np.ndarray, "layer n n"]:
    """Returns the Gram matrices of the embedding and of each block's output, float64."""
    measure = _measure_of(num_prefix(model.config), pool)
    grams = measure_blocks(model.model, model.variables, jnp.asarray(images), measure, ("blocks",))
    inputs, outputs = (np.asarray(gram, np.float64) for gram in jax.device_get(grams))
    return np.concatenate([inputs[:1], outputs])


@functools.cache  # The program is compiled for the function that this returns.
def _measure_of(prefix: int, pool: str):
    def gram(tokens: Float[Array, "n tokens width"]) -> Float[Array, "n n"]:
        patches = tokens[:, prefix:]
        x = patches.mean(axis=1) if pool == "mean" else patches.reshape(len(patches), -1)
        # HSIC does not change, and the float32 products round less.
        x = x - x.mean(axis=0)
        return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)

    def measure(captured: Captured) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
        return gram(captured["input"]), gram(captured["blocks"])

    return measure


def _ratio(cross: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns CKA from HSICs; NaN where a layer is the same for all images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return cross / np.sqrt(first[..., :, None] * second[..., None, :])


def _interval(
    cross: MeanOverImages, first: MeanOverImages, second: MeanOverImages, shape: tuple[int, int]
) -> Float[np.ndarray, "2 layer other_layer"]:
    if cross.count < 2:
        return np.full((2, *shape), np.nan)
    replicates = _ratio(cross.replicates, first.replicates, second.replicates)
    return np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
