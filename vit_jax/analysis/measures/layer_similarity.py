"""Similarity of layers, of one model or of two: linear CKA over minibatches, without bias."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.bootstrap import LEVEL, MeanOverImages
from vit_jax.analysis.measures.encoder import Measured, measured
from vit_jax.analysis.measures.gram_matrices import MINIBATCH, POOLS, minibatch_grams
from vit_jax.analysis.measures.hsic import cka_of, hsic
from vit_jax.analysis.measures.images import Images, open_images
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.analysis.outcomes import last_part
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.pretrained.model import Pretrained
from vit_jax.telemetry.progress import format_count


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LayerSimilarity(Result):
    """The result of `layer_similarity`.

    Attributes:
      cka: linear CKA of layer i of the model and layer j of the other one, or of the same. Layer 0
        is the embedding, layer i the output of block i.
      interval: ends of its 95% interval; NaN of a single minibatch.
      other: the other model; "": the same.
      minibatch: number of images in a minibatch.
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
        "matrices K and L of two layers' representations of the images: 1 if they are equal up "
        "to rotation and scale, 0 in the mean if they are independent (and slightly negative at "
        'times). A representation is all patch tokens of an image as one vector (pool="all"), '
        'or their mean ("mean"); prefix tokens are left out. Layer 0 is the input of the first '
        "block, layer i the output of block i. Of a ResNet, layer 0 is the root and layer i "
        "unit i, and the points of a feature map take the place of tokens. Each of the three "
        "HSIC is averaged over minibatches of batch_size images, by the unbiased estimator "
        "HSIC_1, and then the ratio is taken, so the result does not depend on the minibatch's "
        "size but for noise; a minibatch of less than half this size is left out, unless it is "
        "the only one. Intervals: bootstrap over minibatches, 95%; of fewer than ten they are "
        "rough."
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
            first, second = last_part(self.checkpoint), last_part(self.other)
            axes.set_ylabel("layer" + f" of {first}" * bool(self.other) + " (0: embedding)")
            axes.set_xlabel("layer" + f" of {second}" * bool(self.other) + " (0: embedding)")
            for axis in (axes.xaxis, axes.yaxis):
                figures.whole_numbers(axis)
            figure.colorbar(drawn, ax=axes, label="linear CKA", shrink=0.9)
        return figure


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
      pretrained: any model.
      images: see `vit_jax.analysis.measures.images.open_images`; each model's own preprocessing
        prepares them.
      other: another such model, of any size; None: the same one.
      pool: "all": a layer's representation of an image is all patch tokens, or all points of a
        ResNet's feature map; "mean": their mean.
      num_images: a random choice of this many; None: all.
      batch_size: images of a minibatch, at least 4; more of them give less noise. Images that
        cannot be read are missing in theirs.

    Raises:
      ConfigError: `pool` is not accepted, or images that are prepared already are of another size
        than those of the other model.
      NotApplicableError: no minibatch has half of its images (a single one four) that can be read.

    Example:
      >>> model = create("mu/16", image_size=32)
      >>> result = analysis.layer_similarity(model, "digits:test[:16]", batch_size=8)
      >>> result.cka.shape, bool(np.allclose(np.diag(result.cka), 1))
      ((2, 2), True)
    """
    if pool not in POOLS:
        raise ConfigError(f'pool is "{pool}". {did_you_mean(pool, POOLS)}')
    batch_size = whole_number("batch_size", batch_size)
    loaded = [pretrained] if other is None else [pretrained, other]
    models = [measured(one) for one in loaded]
    stream = open_images(pretrained, images, num_images=num_images)
    streams = [stream] if other is None else [stream, stream.prepared_for(other)]
    grams = minibatch_grams(models, streams, batch_size, pool)
    result = similarity_of(models, grams, batch_size)
    if missing := len(stream) - result.num_images:
        text = (
            f"{format_count(missing, 'image')} left out: unreadable, or less than half a minibatch"
        )
        result = dataclasses.replace(result, notes=(*result.notes, text))
    return result


def similarity_of(
    models: Sequence[Measured],
    grams: Iterable[tuple[Float[np.ndarray, "layer n n"], ...]],
    batch_size: int,
) -> LayerSimilarity:
    """Returns the similarity of the layers of one or two models from their Gram matrices.

    Args:
      models: one, or two that are compared.
      grams: the result of `minibatch_grams`.
      batch_size: images of a minibatch.
    """
    cross, first, second = MeanOverImages(), MeanOverImages(), MeanOverImages()
    num_measured = 0
    for minibatch in grams:
        one, two = minibatch[0], minibatch[-1]
        num_measured += one.shape[-1]
        cross.add(hsic(one, two)[None])
        first.add(np.diag(hsic(one, one))[None])
        second.add(np.diag(hsic(two, two))[None])
    notes = ()
    if num_measured < batch_size:
        notes = (
            f"fewer than {batch_size} images: all {num_measured} are one minibatch, and intervals "
            "are missing",
        )
    return LayerSimilarity(
        checkpoint=models[0].name,
        num_images=num_measured,
        cka=cka_of(cross.mean, first.mean, second.mean),
        interval=_interval(cross, first, second),
        other=models[1].name if len(models) > 1 else "",
        minibatch=min(batch_size, num_measured),
        notes=notes,
    )


def _interval(
    cross: MeanOverImages, first: MeanOverImages, second: MeanOverImages
) -> Float[np.ndarray, "2 layer other_layer"]:
    if cross.count < 2:
        return np.full((2, *cross.mean.shape), np.nan)
    replicates = cka_of(cross.replicates, first.replicates, second.replicates)
    return np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
