"""Multi-head attention with a choice of back ends.

Axes in einsums and shapes: b batch, q query tokens, k key tokens, h heads, d head width.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.config.model import VitConfig
from vit_jax.errors import ConfigError
from vit_jax.models.hooks import PERTURBATIONS, perturb
from vit_jax.models.lora import Adapter
from vit_jax.models.operations import Dense, LayerNorm, attend
from vit_jax.models.positions import rotation
from vit_jax.parallel.constraints import BATCH, constrain

# Intermediates of attention: query and key [b, n, h, d] as their product takes them, after their
# norms and the rotation and before scaling; value [b, n, h, d]; the weights [b, h, q, k]; and each
# head's weighted sum of the values [b, n, h, d].
CAPTURED = ("query", "key", "value", "attention", "heads")


def resolve_backend(config: VitConfig, *, train: bool, platform: str) -> str:
    """Returns the back end to run: `config.attention`, or the fastest supported one for "auto".

    cuDNN's fused kernel has no dropout that can be keyed by step, and supports only 16-bit dtypes
    and head widths that are multiples of 8 up to 128. XLA's attention has no such limits.

    Args:
      config: of the model.
      train: whether dropout is on.
      platform: "cpu", "tpu", "gpu", or "cuda" for a GPU that supports cuDNN's kernel: see
        `current_platform`.

    Returns:
      "xla" or "cudnn".

    Raises:
      ConfigError: `config.attention` is "cudnn", which does not support this model or platform.
    """
    head_width = config.width // config.num_heads
    obstacles = {
        f"the platform is {platform}, not an NVIDIA GPU from Ampere on": platform != "cuda",
        f"model.dtype is {config.dtype}, not bfloat16": config.dtype != "bfloat16",
        f"the head width {head_width} is not a multiple of 8 up to 128": (
            head_width % 8 != 0 or head_width > 128
        ),
        "model.attention_dropout is on": train and config.attention_dropout > 0,
    }
    reasons = [reason for reason, is_true in obstacles.items() if is_true]
    if config.attention == "cudnn" and reasons:
        raise ConfigError(
            f'model.attention is "cudnn", which cannot run here: {"; ".join(reasons)}. '
            'Take "xla", or "auto" to use cudnn only where it can run.'
        )
    return "xla" if reasons or config.attention == "xla" else "cudnn"


def current_platform() -> str:
    """Returns the platform of the devices of `jax.set_mesh`, or JAX's, for `resolve_backend`."""
    device = jax.devices()[0]
    planned = jax.sharding.get_abstract_mesh().abstract_device
    if planned and planned.device_kind != device.device_kind:
        # The processor of a machine with GPUs; or TPUs, for which programs are compiled anywhere.
        return "cpu" if planned.device_kind == "cpu" else "tpu"
    if device.platform != "gpu":
        return device.platform
    # "9.0" on an H200; not a number, such as "gfx942", on an AMD GPU.
    capability = getattr(device, "compute_capability", "")
    is_ampere_or_later = capability[:1].isdigit() and float(capability) >= 8.0
    return "cuda" if is_ampere_or_later else "gpu"


def dot_product_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    *,
    dropout: float = 0.0,
    dropout_rng: jax.Array | None = None,
    perturbation: Callable[[Array], Array] = lambda weights: weights,
) -> tuple[Float[Array, "b q h d"], Float[Array, "b h q k"]]:
    """Computes softmax(q k' / sqrt d) v, with the softmax in float32.

    Vaswani et al. 2017, arXiv 1706.03762. The query is scaled before the product, as flax does.
    `dropout` is the probability of zeroing a weight; others are multiplied by 1 / (1 - dropout).
    `perturbation` is applied to the weights before dropout.

    Returns:
      The output in the dtype of `value`, and the attention weights before dropout in float32.
    """
    query = query * (query.shape[-1] ** -0.5)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = perturbation(jax.nn.softmax(logits, axis=-1))
    dropped = weights
    if dropout > 0:
        assert dropout_rng is not None, "dropout needs a key"
        keep = jax.random.bernoulli(dropout_rng, 1 - dropout, weights.shape)
        dropped = jnp.where(keep, weights / (1 - dropout), 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", dropped.astype(value.dtype), value), weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention with its four projections.

    Attributes:
      train: whether dropout is on.
      capture: intermediates to return, some of `CAPTURED`; "attention" needs memory for the
        weights, and uses the XLA back end.
      rotate: apply the model's rotary position embedding, if it has one. The tokens must be those
        of the encoder: prefix tokens, then the patches of the grid.
    """

    config: VitConfig
    train: bool
    capture: tuple[str, ...] = ()
    rotate: bool = False

    @nn.compact
    def __call__(
        self, x_q: Float[Array, "b q width"], x_kv: Float[Array, "b k width"]
    ) -> tuple[Float[Array, "b q width"], Float[Array, " width"], dict[str, Array]]:
        """Returns the output without its bias, the bias, and the captured intermediates."""
        config = self.config
        heads = (config.num_heads, config.width // config.num_heads)

        def dense(x, name):
            y = Dense(
                config,
                heads,
                use_bias=config.qkv_bias and (config.key_bias or name != "key"),
                kernel_init=nn.initializers.xavier_uniform(),
                name=name,
            )(x)
            if config.lora_rank:
                y = y + Adapter(config, heads, name=f"{name}_lora")(x)
            return constrain(y, BATCH, None, "tensor", None)

        query, key, value = dense(x_q, "query"), dense(x_kv, "key"), dense(x_kv, "value")
        if config.qk_norm:
            # Over each head's width. In ViT-22B (arXiv 2302.05442) without a bias.
            norm = functools.partial(
                LayerNorm, epsilon=config.ln_eps, use_bias=config.qk_norm_bias, dtype=config.dtype
            )
            query, key = norm(name="query_norm")(query), norm(name="key_norm")(key)
        if self.rotate and (rotate := rotation(config)):
            query, key = rotate(query), rotate(key)

        backend = resolve_backend(config, train=self.train, platform=current_platform())
        weights = None
        needs_weights = "attention" in self.capture or self.has_variable(PERTURBATIONS, "attention")
        dropout = config.attention_dropout if self.train else 0.0
        if needs_weights or dropout:
            x, weights = dot_product_attention(
                query,
                key,
                value,
                dropout=dropout,
                dropout_rng=self.make_rng("dropout") if dropout else None,
                perturbation=functools.partial(perturb, self, "attention"),
            )
        elif backend == "cudnn":
            x = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        else:
            x = attend(query, key, value)
        x = constrain(x, BATCH, None, "tensor", None)
        captured = {
            "query": query, "key": key, "value": value, "attention": weights, "heads": x,
        }  # fmt: skip
        if config.attn_norm:
            shape = x.shape
            norm = LayerNorm(config.ln_eps, config.dtype, name="norm")
            x = norm(x.reshape(*shape[:2], -1)).reshape(shape)
        xavier = nn.initializers.xavier_uniform()
        out = Dense(config, (config.width,), axes=2, kernel_init=xavier, name="out")
        y, bias = out.product_and_bias(x)
        assert bias is not None
        if config.lora_rank:
            y = y + Adapter(config, (config.width,), axes=2, name="out_lora")(x)
        return y, bias, {name: captured[name] for name in CAPTURED if name in self.capture}
