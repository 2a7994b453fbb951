"""Counts the parameters and the FLOPs of a model analytically.

One multiply-add is two FLOPs. Only matrix products and convolutions are counted, as in the papers:
softmax, norms and GELU are left out (XLA's own count, which includes them, is a few per cent
larger; the tests compare). The backward pass multiplies the gradient of a layer's output with its
kernel, for the gradient of its input, and with its input, for the gradient of its kernel. The first
product is needed if a parameter before the layer is trained, the second if the kernel is. With all
parameters trained that is twice the forward pass, except in the first layer: images need no
gradient. Not counted are recomputation (remat), so that MFU measures the model's work, and the
gradients that a scan computes for the first block only because the other blocks need them.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config.model import (
    MixerConfig,
    ModelConfig,
    ResnetConfig,
    StemConfig,
    VitConfig,
)
from vit_jax.models.build import build


def forward_flops(config: ModelConfig) -> int:
    """Returns the FLOPs of the forward pass for one image."""
    return 2 * count(config).forward


def train_flops_per_image(config: ModelConfig, *, freeze: tuple[str, ...] = ()) -> int:
    """Returns the FLOPs of one forward and backward pass for one image.

    Args:
      config: of the model.
      freeze: patterns of whole parameter paths that are not trained (`config.optim.freeze`).
    """
    counter = count(config, freeze)
    return 2 * (counter.forward + counter.backward)


def update_flops_per_image(model_config: ModelConfig, config: ConfigDict | FrozenConfigDict) -> int:
    """Returns the FLOPs of an update of a run, per image of its batch.

    Args:
      model_config: of its model.
      config: of the run. Frozen parameters (`optim.freeze`) need no gradient; with `cache_features`
        only the head is computed; with `optim.sam_rho` the gradient is computed twice.
    """
    freeze = tuple(config.optim.freeze)
    if config.cache_features:
        head = MacCounter(freeze)
        _dense(head, "head", False, _features(model_config) * model_config.num_classes)
        flops = 2 * (head.forward + head.backward)
    else:
        flops = train_flops_per_image(model_config, freeze=freeze)
    return flops * (2 if config.optim.sam_rho > 0 else 1)


class MacCounter:
    """Counts the multiply-adds (MACs) of one image, layer by layer.

    An activation is represented by one bool: whether it depends on a trained parameter, so the
    backward pass needs its gradient.

    Attributes:
      forward: MACs of the forward pass.
      backward: MACs of the backward pass.
      params: paths of all parameters of the layers so far.
    """

    def __init__(self, freeze: tuple[str, ...] = ()):
        """Starts at 0; `freeze` has patterns of whole parameter paths that are not trained."""
        self.forward = self.backward = 0
        self.params: set[str] = set()
        self._freeze = freeze

    def trained(self, *paths: str) -> bool:
        """Records parameters; returns whether one of them is trained."""
        self.params.update(paths)
        return any(
            not any(re.fullmatch(pattern, path) for pattern in self._freeze) for path in paths
        )

    def linear(self, kernel: str, x: bool, macs: int) -> bool:
        """Counts the product of an activation and a kernel; returns the product."""
        trained = self.trained(kernel)
        self.forward += macs
        self.backward += macs * (x + trained)
        return x or trained

    def product(self, a: bool, b: bool, macs: int) -> bool:
        """Counts the product of two activations; returns the product."""
        self.forward += macs
        self.backward += macs * (a + b)
        return a or b


@functools.cache
def count(config: ModelConfig, freeze: tuple[str, ...] = ()) -> MacCounter:
    """Counts the multiply-adds of a model, trained with `freeze` (patterns of paths)."""
    counter = MacCounter(freeze)
    match config:
        case VitConfig():
            _vit(counter, config)
        case MixerConfig():
            _mixer(counter, config)
        case ResnetConfig():
            x, _ = _feature_map(counter, config, config.image_size, config.channels)
            _head(counter, "head", x, config)
    return counter


def _features(config: ModelConfig) -> int:
    """Returns the length of the head's input."""
    match config:
        case VitConfig():
            return config.rep_size or (2 if config.pool == "token_gap" else 1) * config.width
        case MixerConfig():
            return config.width
        case ResnetConfig():
            return config.features


def _head(
    counter: MacCounter, name: str, x: bool, config: ModelConfig, features: int | None = None
):
    if config.num_classes:
        _dense(counter, name, x, (features or _features(config)) * config.num_classes)


def _dense(counter: MacCounter, path: str, x: bool, macs: int, *, bias: bool = True) -> bool:
    x = counter.linear(f"{path}/kernel", x, macs)
    return x | counter.trained(f"{path}/bias") if bias else x


def _norm(counter: MacCounter, path: str, x: bool, *, bias: bool = True) -> bool:
    return x | counter.trained(f"{path}/scale", *([f"{path}/bias"] if bias else []))


# ------------------------------------------------------------------------ Vision Transformer


def _vit(counter: MacCounter, config: VitConfig) -> None:
    n, width, bias = config.num_tokens, config.width, config.norm == "layernorm"
    x, channels = False, config.channels
    if config.stem is not None:
        x, channels = _feature_map(
            counter, config.stem, config.image_size, channels, prefix="stem/"
        )
    macs = math.prod(config.grid) * math.prod(config.patch_size) * channels * width
    x = _dense(counter, "embedding", x, macs, bias=config.patch_bias)
    tokens = {
        "cls": config.has_class_token,
        "dist": config.distilled,
        "registers": config.registers,
        "pos_embedding": config.posemb == "learned",
    }
    x |= counter.trained(*(name for name, present in tokens.items() if present))
    if config.pre_norm:
        x = _norm(counter, "encoder/pre_norm", x, bias=bias)
    for i in range(config.depth):
        x = _block(counter, config, f"encoder/{'blocks' if config.scan else f'block_{i}'}", x)
    if config.final_norm == "tokens":
        x = _norm(counter, "encoder/norm", x, bias=bias)
    tokens = x
    if config.pool in ("map", "map_patches"):
        # The published head is plain, whatever the encoder's blocks are: see MapHead.
        head = dataclasses.replace(
            config, qk_norm=False, attn_norm=False, mlp="gelu", mlp_norm=False, key_bias=True
        )
        probe = counter.trained("map_head/probe")
        keys = n if config.pool == "map" else math.prod(config.grid)
        x = _attention(counter, head, "map_head/attn", probe, x, queries=1, keys=keys)
        x |= _mlp(counter, head, "map_head/mlp", _norm(counter, "map_head/norm", x, bias=bias), 1)
    if config.final_norm == "pooled":
        x = _norm(counter, "norm", x, bias=bias)
    if config.rep_size:
        pooled = (2 if config.pool == "token_gap" else 1) * width
        x = _dense(counter, "pre_logits", x, pooled * config.rep_size)
    _head(counter, "head", x, config)
    if config.distilled:
        _head(counter, "head_dist", tokens, config, features=width)


def _block(counter: MacCounter, config: VitConfig, path: str, x: bool) -> bool:
    n, bias = config.num_tokens, config.norm == "layernorm"
    y = _norm(counter, f"{path}/norm1", x, bias=bias)
    attended = _attention(counter, config, f"{path}/attn", y, y, queries=n, keys=n)
    if config.layer_scale:
        attended |= counter.trained(f"{path}/scale1")
    if config.parallel:
        return x | attended | _mlp(counter, config, f"{path}/mlp", y, n)
    x |= attended
    y = _mlp(counter, config, f"{path}/mlp", _norm(counter, f"{path}/norm2", x, bias=bias), n)
    if config.layer_scale:
        y |= counter.trained(f"{path}/scale2")
    return x | y


def _attention(
    counter: MacCounter,
    config: VitConfig,
    path: str,
    x_q: bool,
    x_kv: bool,
    *,
    queries: int,
    keys: int,
) -> bool:
    width = config.width

    def project(name, x, tokens, bias=True):
        y = _dense(counter, f"{path}/{name}", x, tokens * width * width, bias=bias)
        if config.lora_rank:
            macs = tokens * width * config.lora_rank
            low = counter.linear(f"{path}/{name}_lora/a", x, macs)
            y |= counter.linear(f"{path}/{name}_lora/b", low, macs)
        return y

    query = project("query", x_q, queries, config.qkv_bias)
    key = project("key", x_kv, keys, config.qkv_bias and config.key_bias)
    value = project("value", x_kv, keys, config.qkv_bias)
    if config.qk_norm:
        query = _norm(counter, f"{path}/query_norm", query, bias=config.qk_norm_bias)
        key = _norm(counter, f"{path}/key_norm", key, bias=config.qk_norm_bias)
    weights = counter.product(query, key, queries * keys * width)
    x = counter.product(weights, value, queries * keys * width)
    if config.attn_norm:
        x = _norm(counter, f"{path}/norm", x)
    return project("out", x, queries)


def _mlp(counter: MacCounter, config: VitConfig, path: str, x: bool, tokens: int) -> bool:
    macs = tokens * config.width * config.mlp_dim
    hidden = _dense(counter, f"{path}/fc1", x, macs)
    if config.gated:  # The gate is a third matrix.
        hidden |= _dense(counter, f"{path}/gate", x, macs)
    if config.mlp_norm:
        hidden = _norm(counter, f"{path}/norm", hidden, bias=config.norm == "layernorm")
    return _dense(counter, f"{path}/fc2", hidden, macs)


# --------------------------------------------------------------------------- Mixer and ResNet


def _mixer(counter: MacCounter, config: MixerConfig) -> None:
    n, width = config.num_tokens, config.width
    x = _dense(
        counter, "embedding", False, n * math.prod(config.patch_size) * config.channels * width
    )
    for i in range(config.depth):
        path = f"encoder/{'blocks' if config.scan else f'block_{i}'}"
        for norm, mlp, hidden in (
            ("norm1", "token_mlp", config.token_mlp_dim),
            ("norm2", "mlp", config.mlp_dim),
        ):
            y = _norm(counter, f"{path}/{norm}", x)
            for layer in ("fc1", "fc2"):
                y = _dense(counter, f"{path}/{mlp}/{layer}", y, n * width * hidden)
            x |= y
    _head(counter, "head", _norm(counter, "encoder/norm", x), config)


def _feature_map(
    counter: MacCounter,
    config: StemConfig,
    image_size: tuple[int, int],
    channels: int,
    prefix: str = "",
) -> tuple[bool, int]:
    """Root and stages. Products with padding are counted, as usual."""
    is_v1 = config.version == "v1"

    def conv(path, x, features_in, features, size, resolution):
        macs = math.prod(resolution) * size * size * features_in * features
        return counter.linear(f"{prefix}{path}/kernel", x, macs)

    def norm(path, x):
        return _norm(counter, f"{prefix}{path}", x)

    def halved(resolution):
        return tuple(-(-side // 2) for side in resolution)

    resolution = halved(image_size)
    x = conv("root/conv", False, channels, config.root_width, 7, resolution)
    x = norm("root/norm", x) if is_v1 else x
    resolution, features = halved(resolution), config.root_width
    for stage, units in enumerate(config.units):
        width = config.root_width * 2**stage
        for unit in range(units):
            path = f"stage{stage + 1}/unit{unit + 1}"
            input_resolution = resolution
            if stage and not unit:
                resolution = halved(resolution)
            y = x if is_v1 else norm(f"{path}/norm1", x)
            if not unit:
                x = conv(f"{path}/proj", y, features, 4 * width, 1, resolution)
                x = norm(f"{path}/proj_norm", x) if is_v1 else x
            y = conv(f"{path}/conv1", y, features, width, 1, input_resolution)
            y = norm(f"{path}/{'norm1' if is_v1 else 'norm2'}", y)
            y = conv(f"{path}/conv2", y, width, width, 3, resolution)
            y = norm(f"{path}/{'norm2' if is_v1 else 'norm3'}", y)
            y = conv(f"{path}/conv3", y, width, 4 * width, 1, resolution)
            x |= norm(f"{path}/norm3", y) if is_v1 else y
            features = 4 * width
    return (x if is_v1 else norm("norm", x)), features


# -------------------------------------------------------------------------------- parameters


def param_shapes(config: ModelConfig) -> dict:
    """Returns the tree of parameters as `jax.ShapeDtypeStruct`s; allocates no arrays."""
    return jax.tree.map(lambda leaf: leaf, _param_shapes(config))  # Callers may change the copy.


@functools.cache
def _param_shapes(config: ModelConfig) -> dict:
    # Cached: it takes half a second for a ViT-L without scan, and reading a checkpoint needs it
    # several times.
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), jnp.float32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(build(config).init, rng, images)["params"]


def num_params(config: ModelConfig) -> int:
    """Returns the number of parameters, including embeddings and head."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))


# Parameters that `num_params_non_embedding` leaves out: patch and position embeddings, prefix
# tokens and the classifier. Of a ResNet that is only the head.
_EMBEDDING = ("embedding", "pos_embedding", "cls", "dist", "registers", "head", "head_dist")


def num_params_non_embedding(config: ModelConfig) -> int:
    """Returns the number of parameters without patch and position embeddings, prefix tokens, head.

    Scaling laws are written in this size (Kaplan et al. 2020, arXiv 2001.08361): it depends neither
    on the image size nor on the number of classes.
    """
    shapes = param_shapes(config)
    body = {name: tree for name, tree in shapes.items() if name not in _EMBEDDING}
    return sum(leaf.size for leaf in jax.tree.leaves(body))
