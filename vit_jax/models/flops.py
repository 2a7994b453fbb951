"""How many parameters a model has and how many operations it takes, counted by hand.

One multiply-add is two FLOPs. Only matrix products and convolutions are counted, as in the papers:
softmax, norms and GELU are left out (XLA's own count, which has them, is a few per cent larger; the
tests compare). The backward pass multiplies the gradient of a layer's output with its kernel, for
the gradient of its input, and with its input, for the gradient of its kernel. The first is needed
if something before the layer is trained, the second if the kernel is. With all parameters trained
that is twice the forward pass, but for the first layer: images have no gradient. Recomputation
(remat) is not counted, so that MFU measures the model's work and not the machine's; nor is what a
scan over blocks computes for the first block because the others need it.
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
    """FLOPs of the forward pass of one image."""
    return 2 * count(config).forward


def train_flops_per_image(config: ModelConfig, *, freeze: tuple[str, ...] = ()) -> int:
    """FLOPs of one forward pass and the backward pass after it, for one image.

    Args:
      config: of the model.
      freeze: patterns of whole parameter paths that are not trained (`config.optim.freeze`).
    """
    counted = count(config, freeze)
    return 2 * (counted.forward + counted.backward)


def update_flops_per_image(model_config: ModelConfig, config: ConfigDict | FrozenConfigDict) -> int:
    """FLOPs that an update of a run takes for each image of its batch.

    Args:
      model_config: of its model.
      config: of the run: `optim.freeze` says what is trained; `cache_features` leaves out all but
        the head, whose input is then data; `optim.sam_rho` takes the gradient a second time.
    """
    freeze = tuple(config.optim.freeze)
    if config.cache_features:
        head = Count(freeze)
        _dense(head, "head", False, _features(model_config) * model_config.num_classes)
        flops = 2 * (head.forward + head.backward)
    else:
        flops = train_flops_per_image(model_config, freeze=freeze)
    return flops * (2 if config.optim.sam_rho > 0 else 1)


class Count:
    """Multiply-adds of one image, while its way through a model is followed.

    An activation is represented by one bool: whether it depends on a trained parameter, so that the
    backward pass needs its gradient.

    Attributes:
      forward: multiply-adds of the forward pass.
      backward: those of the backward pass.
      params: paths of all parameters that were passed.
    """

    def __init__(self, freeze: tuple[str, ...] = ()):
        """Start at 0; `freeze` has patterns of whole parameter paths that are not trained."""
        self.forward = self.backward = 0
        self.params: set[str] = set()
        self._freeze = freeze

    def trained(self, *paths: str) -> bool:
        """Whether one of these parameters is trained."""
        self.params.update(paths)
        return any(not any(re.fullmatch(rule, path) for rule in self._freeze) for path in paths)

    def linear(self, kernel: str, x: bool, macs: int) -> bool:
        """The product of an activation and a kernel."""
        trained = self.trained(kernel)
        self.forward += macs
        self.backward += macs * (x + trained)
        return x or trained

    def product(self, a: bool, b: bool, macs: int) -> bool:
        """The product of two activations."""
        self.forward += macs
        self.backward += macs * (a + b)
        return a or b


@functools.cache
def count(config: ModelConfig, freeze: tuple[str, ...] = ()) -> Count:
    """The multiply-adds of a model, as it is trained with `freeze` (patterns of paths)."""
    counted = Count(freeze)
    match config:
        case VitConfig():
            _vit(counted, config)
        case MixerConfig():
            _mixer(counted, config)
        case ResnetConfig():
            x, _ = _feature_map(counted, config, config.image_size, config.channels)
            _head(counted, "head", x, config)
    return counted


def _features(config: ModelConfig) -> int:
    """Length of the head's input."""
    match config:
        case VitConfig():
            return config.rep_size or (2 if config.pool == "token_gap" else 1) * config.width
        case MixerConfig():
            return config.width
        case ResnetConfig():
            return config.features


def _head(counted: Count, name: str, x: bool, config: ModelConfig, features: int | None = None):
    if config.num_classes:
        _dense(counted, name, x, (features or _features(config)) * config.num_classes)


def _dense(counted: Count, path: str, x: bool, macs: int, *, bias: bool = True) -> bool:
    x = counted.linear(f"{path}/kernel", x, macs)
    return x | counted.trained(f"{path}/bias") if bias else x


def _norm(counted: Count, path: str, x: bool, *, bias: bool = True) -> bool:
    return x | counted.trained(f"{path}/scale", *([f"{path}/bias"] if bias else []))


# ------------------------------------------------------------------------ Vision Transformer


def _vit(counted: Count, config: VitConfig) -> None:
    n, width, bias = config.num_tokens, config.width, config.norm == "layernorm"
    x, channels = False, config.channels
    if config.stem is not None:
        x, channels = _feature_map(
            counted, config.stem, config.image_size, channels, prefix="stem/"
        )
    macs = math.prod(config.grid) * math.prod(config.patch_size) * channels * width
    x = _dense(counted, "embedding", x, macs, bias=config.patch_bias)
    tokens = {
        "cls": config.has_class_token,
        "dist": config.distilled,
        "registers": config.registers,
        "pos_embedding": config.posemb == "learned",
    }
    x |= counted.trained(*(name for name, present in tokens.items() if present))
    if config.pre_norm:
        x = _norm(counted, "encoder/pre_norm", x, bias=bias)
    for i in range(config.depth):
        x = _block(counted, config, f"encoder/{'blocks' if config.scan else f'block_{i}'}", x)
    if config.final_norm == "tokens":
        x = _norm(counted, "encoder/norm", x, bias=bias)
    tokens = x
    if config.pool in ("map", "map_patches"):
        # The published head is plain, whatever the encoder's blocks are: see MapHead.
        head = dataclasses.replace(
            config, qk_norm=False, attn_norm=False, mlp="gelu", mlp_norm=False, key_bias=True
        )
        probe, read = (
            counted.trained("map_head/probe"),
            n if config.pool == "map" else math.prod(config.grid),
        )
        x = _attention(counted, head, "map_head/attn", probe, x, queries=1, keys=read)
        x |= _mlp(counted, head, "map_head/mlp", _norm(counted, "map_head/norm", x, bias=bias), 1)
    if config.final_norm == "pooled":
        x = _norm(counted, "norm", x, bias=bias)
    if config.rep_size:
        pooled = (2 if config.pool == "token_gap" else 1) * width
        x = _dense(counted, "pre_logits", x, pooled * config.rep_size)
    _head(counted, "head", x, config)
    if config.distilled:
        _head(counted, "head_dist", tokens, config, features=width)


def _block(counted: Count, config: VitConfig, path: str, x: bool) -> bool:
    n, bias = config.num_tokens, config.norm == "layernorm"
    y = _norm(counted, f"{path}/norm1", x, bias=bias)
    attended = _attention(counted, config, f"{path}/attn", y, y, queries=n, keys=n)
    if config.layer_scale:
        attended |= counted.trained(f"{path}/scale1")
    if config.parallel:
        return x | attended | _mlp(counted, config, f"{path}/mlp", y, n)
    x |= attended
    y = _mlp(counted, config, f"{path}/mlp", _norm(counted, f"{path}/norm2", x, bias=bias), n)
    if config.layer_scale:
        y |= counted.trained(f"{path}/scale2")
    return x | y


def _attention(
    counted: Count, config: VitConfig, path: str, x_q: bool, x_kv: bool, *, queries: int, keys: int
) -> bool:
    width = config.width

    def project(name, x, tokens, bias=True):
        y = _dense(counted, f"{path}/{name}", x, tokens * width * width, bias=bias)
        if config.lora_rank:
            thin = tokens * width * config.lora_rank
            low = counted.linear(f"{path}/{name}_lora/a", x, thin)
            y |= counted.linear(f"{path}/{name}_lora/b", low, thin)
        return y

    query = project("query", x_q, queries, config.qkv_bias)
    key = project("key", x_kv, keys, config.qkv_bias and config.key_bias)
    value = project("value", x_kv, keys, config.qkv_bias)
    if config.qk_norm:
        query = _norm(counted, f"{path}/query_norm", query, bias=config.qk_norm_bias)
        key = _norm(counted, f"{path}/key_norm", key, bias=config.qk_norm_bias)
    weights = counted.product(query, key, queries * keys * width)
    x = counted.product(weights, value, queries * keys * width)
    if config.attn_norm:
        x = _norm(counted, f"{path}/norm", x)
    return project("out", x, queries)


def _mlp(counted: Count, config: VitConfig, path: str, x: bool, tokens: int) -> bool:
    macs = tokens * config.width * config.mlp_dim
    hidden = _dense(counted, f"{path}/fc1", x, macs)
    if config.gated:  # The gate is a third matrix.
        hidden |= _dense(counted, f"{path}/gate", x, macs)
    if config.mlp_norm:
        hidden = _norm(counted, f"{path}/norm", hidden, bias=config.norm == "layernorm")
    return _dense(counted, f"{path}/fc2", hidden, macs)


# --------------------------------------------------------------------------- Mixer and ResNet


def _mixer(counted: Count, config: MixerConfig) -> None:
    n, width = config.num_tokens, config.width
    x = _dense(
        counted, "embedding", False, n * math.prod(config.patch_size) * config.channels * width
    )
    for i in range(config.depth):
        path = f"encoder/{'blocks' if config.scan else f'block_{i}'}"
        for norm, mlp, hidden in (
            ("norm1", "token_mlp", config.token_mlp_dim),
            ("norm2", "mlp", config.mlp_dim),
        ):
            y = _norm(counted, f"{path}/{norm}", x)
            for layer in ("fc1", "fc2"):
                y = _dense(counted, f"{path}/{mlp}/{layer}", y, n * width * hidden)
            x |= y
    _head(counted, "head", _norm(counted, "encoder/norm", x), config)


def _feature_map(
    counted: Count, config: StemConfig, image_size: tuple[int, int], channels: int, prefix: str = ""
) -> tuple[bool, int]:
    """Root and stages. What a kernel multiplies beyond the border is counted, as usual."""
    after = config.version == "v1"

    def conv(path, x, features_in, features, size, place):
        macs = math.prod(place) * size * size * features_in * features
        return counted.linear(f"{prefix}{path}/kernel", x, macs)

    def norm(path, x):
        return _norm(counted, f"{prefix}{path}", x)

    def halved(place):
        return tuple(-(-side // 2) for side in place)

    place = halved(image_size)
    x = conv("root/conv", False, channels, config.root_width, 7, place)
    x = norm("root/norm", x) if after else x
    place, features = halved(place), config.root_width
    for stage, units in enumerate(config.units):
        width = config.root_width * 2**stage
        for unit in range(units):
            path = f"stage{stage + 1}/unit{unit + 1}"
            before = place
            if stage and not unit:
                place = halved(place)
            y = x if after else norm(f"{path}/norm1", x)
            if not unit:
                x = conv(f"{path}/proj", y, features, 4 * width, 1, place)
                x = norm(f"{path}/proj_norm", x) if after else x
            y = conv(f"{path}/conv1", y, features, width, 1, before)
            y = norm(f"{path}/{'norm1' if after else 'norm2'}", y)
            y = conv(f"{path}/conv2", y, width, width, 3, place)
            y = norm(f"{path}/{'norm2' if after else 'norm3'}", y)
            y = conv(f"{path}/conv3", y, width, 4 * width, 1, place)
            x |= norm(f"{path}/norm3", y) if after else y
            features = 4 * width
    return (x if after else norm("norm", x)), features


# -------------------------------------------------------------------------------- parameters


def param_shapes(config: ModelConfig) -> dict:
    """The tree of parameters as `jax.ShapeDtypeStruct`s; nothing is computed or allocated."""
    return jax.tree.map(lambda leaf: leaf, _param_shapes(config))  # The caller's own dicts.


@functools.cache
def _param_shapes(config: ModelConfig) -> dict:
    # Half a second for a ViT-L without scan, and reading a checkpoint asks for it several times.
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), jnp.float32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(build(config).init, rng, images)["params"]


def num_params(config: ModelConfig) -> int:
    """Number of parameters, embeddings and head included."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))


# Of a Vision Transformer: what turns patches into tokens, the tokens that are no patches, and the
# classifier. (Of a ResNet only the head is of these; its root is a convolution like the others.)
_EMBEDDING = ("embedding", "pos_embedding", "cls", "dist", "registers", "head", "head_dist")


def num_params_non_embedding(config: ModelConfig) -> int:
    """Number of parameters without patch and position embeddings, further tokens and the head.

    It is the size that laws of scaling are written in (Kaplan et al. 2020, arXiv 2001.08361): the
    parameters that are left do not depend on the image's size, nor on how many classes there are.
    """
    shapes = param_shapes(config)
    kept = {name: tree for name, tree in shapes.items() if name not in _EMBEDDING}
    return sum(leaf.size for leaf in jax.tree.leaves(kept))
