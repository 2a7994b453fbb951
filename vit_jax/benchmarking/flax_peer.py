"""A plain Flax ViT, unrolled, as the code published with the paper is written: a peer.

The model of Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1 and appendix D: a convolution
cuts patches, a class token, learned positions, pre-norm blocks of
`flax.linen.MultiHeadDotProductAttention` and an MLP, one after the other in a Python loop. Its
train step is a jitted function of a loss, `jax.value_and_grad` and optax. It shares no code with
`vit_jax.models` or `vit_jax.training`.
"""

import pathlib
import re
import time
from typing import Any

import flax
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32

from vit_jax.benchmarking import inputs
from vit_jax.benchmarking.case import CLIP_NORM, MOMENTUM, Case
from vit_jax.benchmarking.contenders import Preparation, Turn
from vit_jax.benchmarking.memory import peak_device_bytes
from vit_jax.errors import ConfigError
from vit_jax.models import ModelConfig, VitConfig


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    num_heads: int
    mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(
            num_heads=self.num_heads, dtype=self.dtype, name="MultiHeadDotProductAttention_1"
        )(y, y)
        y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_2")(x)
        return x + PlainMlp(self.mlp_dim, self.dtype, name="MlpBlock_3")(y)


class PlainMlp(nn.Module):
    """Two dense layers with a GELU between them."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        y = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class PlainVit(nn.Module):
    """The whole model: images f32[b, h, w, 3] -> logits f32[b, classes]."""

    config: VitConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        x = nn.Conv(
            config.width, config.patch_size, strides=config.patch_size, padding="VALID",
            dtype=dtype, name="embedding",
        )(images)  # fmt: skip
        x = x.reshape(len(x), -1, config.width)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, config.width))
        x = jnp.concatenate([jnp.tile(cls.astype(dtype), (len(x), 1, 1)), x], axis=1)
        positions = self.param(
            "pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], config.width)
        )
        x = x + positions.astype(dtype)
        for i in range(config.depth):
            name = f"encoderblock_{i}"
            x = PlainBlock(config.num_heads, config.mlp_dim, dtype, name=name)(x)
        x = nn.LayerNorm(dtype=dtype, name="encoder_norm")(x)
        return nn.Dense(config.num_classes, name="head")(x[:, 0])


def is_plain(config: ModelConfig) -> bool:
    """Whether `PlainVit` computes a model: a ViT of the paper, without a ResNet below it."""
    return (
        isinstance(config, VitConfig)
        and config.stem is None
        and (config.pool, config.norm, config.mlp) == ("token", "layernorm", "gelu")
        and not (config.parallel or config.qk_norm)
        and config.qkv_bias
    )


class FlaxPeer:
    """`PlainVit` with a plain train step on one device: see `Contender`."""

    def __init__(self, case: Case, folder: pathlib.Path):
        """Checks the case; `folder` has the parameters of `vit_jax.benchmarking.weights.write`."""
        if case.num_devices > 1:
            raise ConfigError("the plain Flax peer runs on one device")
        self._path = folder / inputs.FORMATS["flax"][1]
        config = case.model_config()
        if not is_plain(config):
            raise ConfigError(f"the plain Flax peer has no {case.variant}")
        assert isinstance(config, VitConfig)
        self._model = PlainVit(config)
        batch = inputs.batch(case)
        self._images, self._labels = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
        update = (
            optax.sgd(case.learning_rate, momentum=MOMENTUM)
            if case.optimizer == "sgd"
            else optax.adamw(case.learning_rate, weight_decay=0.0)
        )
        self._tx = optax.chain(optax.clip_by_global_norm(CLIP_NORM), update)

    def _init(self, key: jax.Array) -> tuple[Any, Any]:
        params = self._model.init(key, self._images[:1])["params"]
        return params, self._tx.init(params)

    def _train_step(self, params: Any, opt_state: Any, images: Any, labels: Any) -> tuple:
        def loss_fn(params):
            logits: Any = self._model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = self._tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def prepare(self) -> Preparation:
        """Initialises, compiles, and loads the common parameters."""
        start = time.perf_counter()
        params, opt_state = jax.block_until_ready(jax.jit(self._init)(jax.random.key(0)))
        init_seconds = time.perf_counter() - start
        start = time.perf_counter()
        lowered = jax.jit(self._train_step, donate_argnums=(0, 1)).lower(
            params, opt_state, self._images, self._labels
        )
        trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self._compiled: Any = lowered.compile()
        compile_seconds = time.perf_counter() - start
        self._params, self._opt_state = self._common_parameters(), opt_state
        memory = self._compiled.memory_analysis()
        return Preparation(
            software=f"jax {jax.__version__}, flax {flax.__version__}",
            device=jax.devices()[0].device_kind,
            platform=jax.devices()[0].platform,
            init_seconds=init_seconds,
            trace_seconds=trace_seconds,
            compile_seconds=compile_seconds,
            temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
            argument_bytes=getattr(memory, "argument_size_in_bytes", None),
            settings="unrolled",
        )

    def _common_parameters(self) -> Any:
        """Reads Google's names; the module has those of its classes, flat below the root."""
        leaves = {}
        with np.load(self._path, allow_pickle=False) as archive:
            for name in archive.files:
                path = re.sub("^Transformer/(posembed_input/)?", "", name)
                leaves[path] = jnp.asarray(archive[name])
        return flax.traverse_util.unflatten_dict(leaves, sep="/")

    def train(self, steps: int) -> Turn:
        """Makes updates, without waiting for one before the next is dispatched."""
        start = time.perf_counter()
        losses = []
        for _ in range(steps):
            self._params, self._opt_state, loss = self._compiled(
                self._params, self._opt_state, self._images, self._labels
            )
            losses.append(loss)
        jax.block_until_ready((self._params, losses))
        return Turn(time.perf_counter() - start, tuple(float(loss) for loss in losses))

    def peak_bytes(self) -> int | None:
        """Returns the peak of the device; None on a CPU."""
        return peak_device_bytes(jax.devices()[0])

    def outputs(self) -> Float32[np.ndarray, "b classes"]:
        """Compiles the forward pass, with the parameters before training."""
        self._compiled = self._opt_state = None  # Frees their memory.
        self._params = self._common_parameters()
        forward = jax.jit(lambda params, images: self._model.apply({"params": params}, images))
        self._forward: Any = forward.lower(self._params, self._images).compile()
        return np.asarray(self._forward(self._params, self._images), np.float32)

    def forward(self, steps: int) -> Turn:
        """Computes logits, without waiting for one before the next is dispatched."""
        start = time.perf_counter()
        results = [self._forward(self._params, self._images) for _ in range(steps)]
        jax.block_until_ready(results)
        return Turn(time.perf_counter() - start)
