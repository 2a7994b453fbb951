"""Maps of what a model looked at: attention, rollout, relevance and Grad-CAM, on the device."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from vit_jax.analysis.measures.encoder import Captured, Measured, Model, Variables, measure_blocks
from vit_jax.analysis.measures.readout import has_probe, over_all_tokens, probe_weights, read_tokens
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.config.model import MixerConfig, ResnetConfig, VitConfig
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models import Resnet, Vit
from vit_jax.models.blocks import Block
from vit_jax.models.hooks import PERTURBATIONS
from vit_jax.models.mixer import MixerBlock

# Method -> its formula and the publication.
DEFINITIONS = {
    "attention": (
        "the last layer's attention, mean over heads, in the row of the token that the head reads "
        "(mean of the patches' rows if it reads their mean; the probe's own weights if it pools by "
        "attention)",
        "Vaswani et al. 2017, arXiv 1706.03762",
    ),
    "rollout": (
        "the same row of the product over layers of (mean over heads of the attention + I) / 2, "
        "whose rows sum to 1; a probe's weights times that product",
        "Abnar and Zuidema 2020, arXiv 2005.00928",
    ),
    "relevance": (
        "the same row of R, where R = I, then R += (mean over heads of max(0, gradient * "
        "attention)) R from layer to layer, with the gradient of the target's logit; for a probe, "
        "its own mean of max(0, gradient * attention) times R; it is not the method of relevance "
        "propagation (LRP) of arXiv 2012.09838 by the same authors",
        "Chefer et al. 2021, ICCV, arXiv 2103.15679",
    ),
    "grad_cam": (
        "max(0, sum over channels of alpha * activation), alpha the mean over positions of the "
        "logit's gradient; at the patch tokens that enter the last block (those that leave it do "
        "not act on a class token), where pytorch-grad-cam's usual recipe takes the output of that "
        "block's first norm; or at the last feature map of a ResNet",
        "Selvaraju et al. 2017, arXiv 1610.02391",
    ),
}
METHODS = tuple(DEFINITIONS)
_OF_ATTENTION = ("attention", "rollout", "relevance")
_OF_GRADIENTS = ("relevance", "grad_cam")


def applicable(
    model: Measured, methods: Sequence[str], *, loss: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the methods that a model has, and {method: why not} of the others.

    Raises:
      ConfigError: there is no such method, or none was named.
      NotApplicableError: no method is left.
    """
    if isinstance(methods, str):
        methods = (methods,)
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f'There is no method "{method}". {did_you_mean(method, METHODS)}')
    if not methods:
        raise ConfigError(f"methods is empty: name some of {', '.join(METHODS)}.")
    kind, reasons = type(model.model).__name__, {}
    for method in dict.fromkeys(methods):
        if method in _OF_ATTENTION and not isinstance(model.config, VitConfig):
            reasons[method] = f"a {kind} has no attention"
        elif method in _OF_GRADIENTS and (reason := no_classes(model, loss=loss)):
            reasons[method] = f"{reason}, so there is no class whose logit has a gradient"
    kept = tuple(method for method in dict.fromkeys(methods) if method not in reasons)
    if not kept:
        texts = "; ".join(f"{method}: {reason}" for method, reason in reasons.items())
        raise NotApplicableError(f"No method applies to {model.name}: {texts}.")
    return kept, reasons


def no_classes(model: Measured, *, loss: str) -> str:
    """Returns why the outputs are not of classes; "" if they are."""
    if not model.config.num_classes:
        return "the model has no head"
    return "" if loss else "the head is that of a regression"


@partial(jax.jit, static_argnames=("model",))
def predicted_classes(
    model: Model, variables: Variables, images: Float[Array, "b height width channels"]
) -> Int[Array, " b"]:
    """Returns the class of the largest logit of each image."""
    return model.apply(variables, images)[0].argmax(axis=-1)


@partial(jax.jit, static_argnames=("model", "methods"))
def explanation_maps(
    model: Model,
    variables: Variables,
    images: Float[Array, "b height width channels"],
    targets: Int[Array, " b"],
    methods: tuple[str, ...],
) -> dict[str, Float[Array, "b rows columns"]]:
    """Returns the maps of images, each method's over the grid of patches or the feature map.

    The memory does not grow with the attention matrices of all layers: the blocks' inputs are kept,
    and each block is run again from the last one down, for a row vector times its matrix.

    Args:
      model: of a `Measured`.
      variables: of the same.
      images: prepared.
      targets: the classes whose logits are explained; ignored by methods without gradients.
      methods: those that apply to the model.
    """
    config = model.config
    if isinstance(config, ResnetConfig):
        assert isinstance(model, Resnet)
        return {"grad_cam": _resnet_cam(model, variables, images, targets)}
    inputs = measure_blocks(model, variables, images, _input, ())
    gradients, probe_gradient = None, None
    if set(methods) & set(_OF_GRADIENTS):
        gradients, probe_gradient = _gradients(model, variables, images, targets, inputs)
    maps = {}
    if isinstance(config, VitConfig):
        assert isinstance(model, Vit)
        tokens = _attention_maps(
            model, variables, images, inputs, gradients, probe_gradient, methods
        )
        maps = {name: row[:, config.num_prefix :] for name, row in tokens.items()}
    if "grad_cam" in methods:
        assert gradients is not None
        maps["grad_cam"] = _token_cam(config, variables, inputs[-1], gradients[-1])
    return {name: maps[name].reshape(-1, *config.grid) for name in methods}


def _input(captured: Captured) -> Array:
    return captured["input"]


def _logit_sum(logits: Float[Array, "b classes"], targets: Int[Array, " b"]) -> Float[Array, ""]:
    """Sums the targets' logits: its gradients are those of each image's own logit."""
    return jnp.take_along_axis(logits, targets[:, None], axis=1).sum()


def _gradients(
    model: Any, variables: Variables, images: Array, targets: Array, inputs: Array
) -> tuple[Float[Array, "depth b n width"], Float[Array, "b heads 1 k"] | None]:
    """Returns the gradients at the blocks' outputs and at a probe's attention weights."""
    config = model.config
    # A block's forward pass is computed again in its backward pass, rather than kept.
    model = model.clone(config=dataclasses.replace(config, remat="full"))
    zeros: PyTree = {"encoder": {"blocks": {"blocks": jnp.zeros_like(inputs)}}}
    if isinstance(config, VitConfig) and has_probe(config):
        seen = inputs.shape[2] - (config.num_prefix if config.pool == "map_patches" else 0)
        shape = (len(images), config.num_heads, 1, seen)
        zeros["map_head"] = {"attn": {"attention": jnp.zeros(shape)}}

    def logit(perturbations):
        logits, _ = model.apply({**variables, PERTURBATIONS: perturbations}, images)
        return _logit_sum(logits, targets)

    gradients = jax.grad(logit)(zeros)
    probe = gradients["map_head"]["attn"]["attention"] if "map_head" in gradients else None
    return gradients["encoder"]["blocks"]["blocks"], probe


def _attention_maps(
    model: Vit,
    variables: Variables,
    images: Array,
    inputs: Float[Array, "depth b n width"],
    gradients: Float[Array, "depth b n width"] | None,
    probe_gradient: Float[Array, "b heads 1 k"] | None,
    methods: tuple[str, ...],
) -> dict[str, Float[Array, "b n"]]:
    """Returns the rows of the methods of attention over all tokens."""
    config, rows = model.config, {}
    shares = jnp.asarray(read_tokens(config), jnp.float32)
    start = relevance_start = jnp.broadcast_to(shares, (len(images), len(shares)))
    if has_probe(config):
        weights = probe_weights(model, variables, images)
        start = over_all_tokens(weights, config).mean(axis=1)
        if probe_gradient is not None:
            positive = jax.nn.relu(probe_gradient * weights)
            relevance_start = over_all_tokens(positive, config).mean(axis=1)
    block = Block(config, False, ("attention",))
    blocks = variables["params"]["encoder"]["blocks"]
    if "attention" in methods:
        last = jax.tree.map(lambda leaf: leaf[-1], blocks)
        _, captured = block.apply({"params": last}, inputs[-1], jnp.zeros(()))
        attention = jnp.einsum("bq,bhqk->bk", start, captured["attention"]) / config.num_heads
        rows["attention"] = start if has_probe(config) else attention
    if "rollout" in methods:
        rows["rollout"] = _rollout(block, blocks, inputs, start)
    if "relevance" in methods:
        rows["relevance"] = _relevance(block, blocks, inputs, gradients, relevance_start)
    return rows


def _rollout(
    block: Block, blocks: PyTree, inputs: Float[Array, "depth b n width"], start: Array
) -> Float[Array, "b n"]:
    """Returns start (A_L + I)/2 ... (A_1 + I)/2, with the mean A of a layer's heads.

    The rows of each factor sum to 1, and so do those of the product. The code that is copied most
    (jacobgil/vit-explain) sets the smallest weights to zero and then divides by `a.sum(dim=-1)`
    without keepdim, which divides column j by the sum of row j: its rows do not sum to 1.
    """

    def step(row, layer):
        params, x = layer
        _, captured = block.apply({"params": params}, x, jnp.zeros(()))
        attended = jnp.einsum("bq,bhqk->bk", row, captured["attention"])
        return 0.5 * row + 0.5 * attended / block.config.num_heads, None

    return jax.lax.scan(step, start, (blocks, inputs), reverse=True)[0]


def _relevance(
    block: Block,
    blocks: PyTree,
    inputs: Float[Array, "depth b n width"],
    gradients: Float[Array, "depth b n width"] | None,
    start: Array,
) -> Float[Array, "b n"]:
    """Returns start (I + C_L) ... (I + C_1), with C the mean over heads of relu(gradient * A)."""
    _, batch, tokens, _ = inputs.shape
    zeros = jnp.zeros((batch, block.config.num_heads, tokens, tokens))

    def step(row, layer):
        params, x, gradient = layer

        def run(perturbation):
            hooks = {"attn": {"attention": perturbation}}
            y, captured = block.apply({"params": params, PERTURBATIONS: hooks}, x, jnp.zeros(()))
            return y, captured["attention"]

        _, backward, attention = jax.vjp(run, zeros, has_aux=True)
        positive = jax.nn.relu(backward(gradient)[0] * attention)
        return row + jnp.einsum("bq,bhqk->bk", row, positive) / block.config.num_heads, None

    return jax.lax.scan(step, start, (blocks, inputs, gradients), reverse=True)[0]


def _token_cam(
    config: VitConfig | MixerConfig,
    variables: Variables,
    x: Float[Array, "b n width"],
    gradient: Float[Array, "b n width"],
) -> Float[Array, "b patches"]:
    """Returns Grad-CAM at the patches that enter the last block.

    Args:
      config: of the model.
      variables: of the model.
      x: input of the last block.
      gradient: of the logit, at the output of that block.
    """
    block = Block(config, False) if isinstance(config, VitConfig) else MixerBlock(config, False)
    params = jax.tree.map(lambda leaf: leaf[-1], variables["params"]["encoder"]["blocks"])
    _, backward = jax.vjp(lambda x: block.apply({"params": params}, x, jnp.zeros(()))[0], x)
    prefix = config.num_prefix if isinstance(config, VitConfig) else 0
    return grad_cam(x[:, prefix:], backward(gradient)[0][:, prefix:])


def grad_cam(
    activations: Float[Array, "b positions channels"],
    gradients: Float[Array, "b positions channels"],
) -> Float[Array, "b positions"]:
    """Returns max(0, sum of the channels weighted by their mean gradients)."""
    alpha = gradients.mean(axis=1, keepdims=True)
    return jax.nn.relu((alpha * activations).sum(axis=-1))


def _resnet_cam(
    model: Resnet, variables: Variables, images: Array, targets: Array
) -> Float[Array, "b rows columns"]:
    capture = ("feature_map",)
    shapes = jax.eval_shape(partial(model.apply, capture=capture), variables, images)

    def logit(perturbation):
        hooks = {PERTURBATIONS: {"feature_map": perturbation}}
        logits, intermediates = model.apply({**variables, **hooks}, images, capture=capture)
        return _logit_sum(logits, targets), intermediates["feature_map"]

    zeros = jnp.zeros(shapes[1]["feature_map"].shape)
    gradient, features = jax.grad(logit, has_aux=True)(zeros)
    batch, rows, columns, channels = features.shape
    flat = (batch, rows * columns, channels)
    return grad_cam(features.reshape(flat), gradient.reshape(flat)).reshape(batch, rows, columns)
