"""Test-time registers: outlying tokens are moved to a register that was not trained."""

import dataclasses
from collections.abc import Collection
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.analysis import figures
from vit_jax.analysis.measures.arguments import positive_norm, whole_number
from vit_jax.analysis.measures.bootstrap import MeanOverImages
from vit_jax.analysis.measures.encoder import (
    Captured,
    Measured,
    Model,
    Variables,
    measure_blocks,
    measured,
    with_register_neurons,
)
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, ImageStream, open_images
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.analysis.measures.token_norms import (
    MeanWithoutInterval,
    TokenNorms,
    norms_of,
    num_prefix,
    token_norms_of_block,
)
from vit_jax.config.model import VitConfig
from vit_jax.models import Vit
from vit_jax.pretrained.consistency import check_images
from vit_jax.pretrained.model import Pretrained

NUM_NEURONS = 10


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RegisterNeurons(Result):
    """The result of `test_time_registers`; `result(images)` calls the changed model.

    Attributes:
      neurons: layer and hidden unit of each register neuron, from 0, the highest score first.
      score: mean magnitude of its activation at outliers.
      outlier_layer: the layer whose outliers were used, from 0.
      before: norms of the tokens of the model as it is.
      after: of the changed model, with the thresholds of `before`.
      cosine: mean cosine between `pre_logits` before and after, and the ends of its 95% interval.
      agreement: share of images whose top class stays, and the ends of its 95% interval; NaN of a
        model without classes.
      model: the changed model with its variables.
    """

    neurons: Int[np.ndarray, "neuron 2"]
    score: Float[np.ndarray, " neuron"]
    outlier_layer: int
    before: TokenNorms
    after: TokenNorms
    cosine: Float[np.ndarray, "3"]
    agreement: Float[np.ndarray, "3"]
    model: Measured

    name: ClassVar[str] = "test_time_registers"
    title: ClassVar[str] = "Test-time registers"
    shows: ClassVar[str] = (
        "What outlying tokens depend on: the model before and after its register neurons act "
        "on an added register."
    )
    definition: ClassVar[str] = (
        "Outliers are patch tokens with a norm above the threshold (see token_norms). They appear "
        "in the first layer whose share of outliers is at least half of the largest one. Register "
        "neurons are the hidden units of MLPs, in layers up to that one, whose activations have "
        "the largest mean magnitude at its outliers: the mean over an image's outliers, then over "
        "the images that have any. One register token of zeros is added before the patches, "
        "without a position. In each register neuron it gets the activation of largest magnitude "
        "of all tokens, and all other tokens get zero. The changed model is measured on the same "
        "images with the same thresholds. Intervals: bootstrap over images, 95%. "
        "Layers are the blocks, counted from 1 in tables and figures and from 0 in arrays."
    )
    source: ClassVar[str] = "Jiang et al. 2025, arXiv 2506.08010, sections 3 and 4"

    def __call__(
        self, images: Float[Array | np.ndarray, "b height width channels"], *, capture: Any = ()
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Returns logits and intermediates of the changed model, as a `Pretrained` does.

        Its `tokens` have the added register right before the patches.
        """
        check_images(images, self.model.config)
        names = (capture,) if isinstance(capture, str) else tuple(capture)
        return _apply(self.model.model, self.model.variables, jnp.asarray(images), names)

    summary_units: ClassVar[dict[str, str]] = {
        "outlier_share_before": "share of patch tokens",
        "outlier_share_after": "share of patch tokens",
        "register_cosine": "cosine",
    }

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the shares of outliers and largest norms of each layer, and the neurons."""
        layer, arrays = ("layer",), {}
        for name, norms in (("before", self.before), ("after", self.after)):
            arrays |= {
                f"outlier_share_{name}": NamedArray(
                    norms.outlier_share, layer, "", f"share of the patch tokens, {name}"
                ),
                f"maximum_{name}": NamedArray(
                    norms.maximum, layer, "", f"largest norm of a patch token, {name}"
                ),
            }  # fmt: skip
        arrays |= {
            "threshold": NamedArray(self.before.threshold, layer, "", "of outliers"),
            "register_norm": NamedArray(
                self.after.prefix_mean[:, -1], layer, "", "mean norm of the added register"
            ),
            "neurons": NamedArray(
                self.neurons, ("neuron", "layer_and_unit"), "", "layer and hidden unit, both from 0"
            ),
            "score": NamedArray(
                self.score, ("neuron",), "", "mean magnitude of its activation at outliers"
            ),
        }
        for name, values, meaning in (
            ("cosine", self.cosine, "cosine of pre_logits before and after"),
            ("agreement", self.agreement, "share of images whose top class stays"),
        ):
            arrays[name] = NamedArray(
                values, ("mean_low_high",), "", f"{meaning}, and its interval"
            )
        return arrays

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns what the columns of the neurons, and the values of a mean, are."""
        return super().coordinates() | {
            "layer_and_unit": ("layer", "unit"),
            "mean_low_high": ("mean", "low", "high"),
        }

    def summary(self) -> dict[str, float]:
        """Returns the largest shares of outliers before and after, and the features' cosine."""
        return {
            "outlier_share_before": float(self.before.outlier_share.max()),
            "outlier_share_after": float(self.after.outlier_share.max()),
            "register_cosine": float(self.cosine[0]),
        }

    def plot(self) -> Figure:
        """Draws the share of outliers and the norms before and after, and the neurons."""
        layers = np.arange(1, len(self.before.mean) + 1)
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.InlineFigure(figsize=(11.5, 3.6), layout="constrained")
            share, norm, neurons = figure.subplots(1, 3)
            for name, norms, colour in (
                ("before", self.before, figures.VERMILLION), ("after", self.after, figures.BLUE),
            ):  # fmt: skip
                share.plot(layers, norms.outlier_share, ".-", color=colour, label=name)
                label = f"largest patch token, {name}"
                norm.plot(layers, norms.maximum, ".-", color=colour, label=label)
            register = self.after.prefix_mean[:, -1]
            norm.plot(layers, register, "--", color=figures.COLOURS[2], label="added register")
            largest = max(self.before.outlier_share.max(), self.after.outlier_share.max())
            share.set(title="share of outliers", ylim=(0, 1.1 * max(largest, 0.01)))
            share.yaxis.set_major_formatter(PercentFormatter(1))
            norm.set(title="norms", yscale="log")
            neurons.plot(self.neurons[:, 0] + 1, self.score, "o", color=figures.BLUE, alpha=0.6)
            neurons.set(title="register neurons", ylabel="mean |activation| at outliers")
            neurons.set_ylim(0, 1.15 * max(float(self.score.max()), 1e-6))
            for axes in (share, norm, neurons):
                axes.set(xlabel="layer", xlim=(0.5, len(layers) + 0.5))
                figures.whole_numbers(axes.xaxis)
            for axes in (share, norm):
                axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=8, ncols=2)
        return figure


def test_time_registers(
    pretrained: Pretrained,
    images: Images,
    *,
    num_neurons: int = NUM_NEURONS,
    layers: int | None = None,
    threshold: int | float | None = None,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> RegisterNeurons:
    """Finds the neurons that make outlying tokens, and moves these to an untrained register.

    The images are gone over five times (four with a threshold).

    Args:
      pretrained: a ViT or hybrid whose patch tokens have outlying norms.
      images: see `vit_jax.analysis.measures.images.open_images`.
      num_neurons: number of register neurons. The fewer, the less else changes; more if outliers
        remain.
      layers: neurons are searched in this many first layers; None: up to the layer where outliers
        appear.
      threshold: of outliers, see `token_norms`.
      num_images: a random choice of this many; None: all.
      batch_size: images at a time.

    Raises:
      ConfigError: the number of neurons or layers is not one that the model has.
      NotApplicableError: the model has no attention, or no outliers.

    Example:
      >>> model = create("mu/16", image_size=32)  # Fresh: no real outliers, so a low threshold.
      >>> result = analysis.test_time_registers(
      ...     model, "digits:test[:8]", num_neurons=2, threshold=1
      ... )
      >>> result.neurons.shape, result.after.prefix_names
      ((2, 2), ('class', 'register 1'))
    """
    model = measured(pretrained)
    config = model.vit
    stream = open_images(pretrained, images, num_images=num_images)
    if layers is not None:
        reason = f"the model has {config.depth} layers"
        layers = whole_number("layers", layers, high=config.depth, reason=reason)
    positive_norm("threshold", threshold)
    thresholds = None if threshold is None else np.full(config.depth, float(threshold))
    before = norms_of(model, stream, thresholds, batch_size)
    outlier_layer = _outlier_layer(before, threshold)
    searched = outlier_layer + 1 if layers is None else layers
    units = searched * config.mlp_dim
    reason = f"the {searched} layers that are searched have {units:,} hidden units"
    num_neurons = whole_number("num_neurons", num_neurons, high=units, reason=reason)
    limit = before.threshold[outlier_layer]
    scores = _scores(model, stream, outlier_layer, limit, batch_size)[:searched]
    chosen = np.argsort(-scores, axis=None, kind="stable")[:num_neurons]
    neurons = np.stack(np.unravel_index(chosen, scores.shape), axis=1)
    changed = _with_register(model, neurons)
    cosine, agreement = _comparison(model, changed, stream, batch_size)
    has_classes = bool(config.num_classes and pretrained.loss)
    return RegisterNeurons(
        checkpoint=model.name,
        num_images=before.num_images,
        notes=_notes(config),
        neurons=neurons,
        score=scores.ravel()[chosen],
        outlier_layer=outlier_layer,
        before=before,
        after=norms_of(changed, stream, before.threshold, batch_size),
        cosine=cosine,
        agreement=agreement if has_classes else np.full(3, np.nan),
        model=changed,
    )


def _outlier_layer(before: TokenNorms, threshold: int | float | None) -> int:
    """Returns the layer in which outliers appear; raises NotApplicableError if there are none."""
    share = before.outlier_share
    if not share.any():
        limit = "4 times its layer's median" if threshold is None else f"{threshold:g}"
        raise NotApplicableError(
            f"{before.checkpoint} has no outliers and needs no register: no patch token of "
            f"{before.num_images:,} images has a norm above {limit}. In Python, threshold= sets "
            "the limit."
        )
    return int(np.argmax(share >= share.max() / 2))


def _notes(config: VitConfig) -> tuple[str, ...]:
    if config.pool != "map":
        return ()
    return ("the attention pooling of the head reads the added register, as it reads all tokens",)


def _scores(
    model: Measured, stream: ImageStream, layer: int, threshold: float, batch_size: int
) -> Float[np.ndarray, "depth hidden"]:
    """Returns the mean magnitude of each hidden unit at the outliers of a layer."""
    mean = MeanWithoutInterval()
    prefix = num_prefix(model.config)
    for batch in stream.batches(batch_size):
        norms = measure_blocks(
            model.model, model.variables, batch.images, token_norms_of_block, ("blocks",)
        )
        is_outlier = np.asarray(norms)[layer] > threshold
        is_outlier[:, :prefix] = False
        has_outlier = batch.good & is_outlier.any(axis=1)
        weights = is_outlier / np.maximum(is_outlier.sum(axis=1, keepdims=True), 1)
        scores = measure_blocks(
            model.model, model.variables, batch.images, _activations, ("hidden",),
            (jnp.asarray(weights, jnp.float32),),
        )  # fmt: skip
        if has_outlier.any():
            mean.add(np.asarray(scores).swapaxes(0, 1)[has_outlier])
    return mean.mean


def _activations(captured: Captured, weights: Float[Array, "b n"]) -> Float[Array, "b hidden"]:
    """Returns the weighted mean over tokens of the magnitudes of the hidden units."""
    return jnp.einsum("bn,bnh->bh", weights, jnp.abs(captured["hidden"]))


def _with_register(model: Measured, neurons: Int[np.ndarray, "neuron 2"]) -> Measured:
    """Returns the model with a further register of zeros, and the neurons moved to it."""
    config, params = model.vit, dict(model.variables["params"])
    changed = dataclasses.replace(config, registers=config.registers + 1)
    register = jnp.zeros((1, 1, config.width))
    if config.registers:
        register = jnp.concatenate([params["registers"], register], axis=1)
    params["registers"] = register
    if config.posemb == "learned" and changed.posemb_rows > config.posemb_rows:
        posemb = params["pos_embedding"]
        params["pos_embedding"] = jnp.insert(posemb, config.posemb_rows, 0.0, axis=1)
    masks = np.zeros((config.depth, config.mlp_dim), bool)
    masks[tuple(neurons.T)] = True
    with_token = dataclasses.replace(
        model, model=Vit(changed), variables={**model.variables, "params": params}
    )
    return dataclasses.replace(with_token, variables=with_register_neurons(with_token, masks))


@partial(jax.jit, static_argnames=("model", "capture"))
def _apply(
    model: Model, variables: Variables, images: Array, capture: Collection[str] = ()
) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
    return model.apply(variables, images, capture=capture)  # pyright: ignore[reportReturnType]


def _comparison(
    model: Measured, changed: Measured, stream: ImageStream, batch_size: int
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Returns cosine of the features and agreement of the top classes, each with its interval."""
    means = MeanOverImages()
    for batch in stream.batches(batch_size):
        (logits, features), (new_logits, new_features) = (
            (np.asarray(logits, np.float64), np.asarray(rest["pre_logits"], np.float64))
            for logits, rest in (
                _apply(one.model, one.variables, batch.images) for one in (model, changed)
            )
        )
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(new_features, axis=1)
        cosine = (features * new_features).sum(axis=1) / np.maximum(lengths, 1e-300)
        stays = logits.argmax(axis=1) == new_logits.argmax(axis=1)
        means.add(np.stack([cosine, stays], axis=1)[batch.good])
    cosine, agreement = np.concatenate([means.mean[None], means.interval]).T
    return cosine, agreement
