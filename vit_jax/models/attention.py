"""Multi-head attention, with the back end that computes it chosen by name.

Letters in the einsums and shapes: b batch, q query tokens, k key tokens, h heads, d head width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.config.model import VitConfig
from vit_jax.errors import ConfigError
from vit_jax.models.lora import Adapter
from vit_jax.models.positions import rotation
from vit_jax.parallel.constraints import BATCH, constrain


def resolve_backend(config: VitConfig, *, train: bool, platform: str) -> str:
    """The back end that will run: `config.attention`, or the best allowed one if that is "auto".

    cuDNN's fused kernel has no dropout that we could key by step, and takes 16-bit numbers and
    head widths that are multiples of 8 up to 128. XLA's attention takes everything.

    Args:
      config: of the model.
      train: whether dropout is on.
      platform: "cpu", "tpu", "gpu", or "cuda" for a GPU that cuDNN's kernel runs on: see
        `current_platform`.

    Returns:
      "xla" or "cudnn".

    Raises:
      ConfigError: cuDNN was asked for and can't do what the model needs; nothing is dropped
        silently.
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
    reasons = [reason for reason, holds in obstacles.items() if holds]
    if config.attention == "cudnn" and reasons:
        raise ConfigError(
            f'model.attention is "cudnn", which cannot run here: {"; ".join(reasons)}. '
            'Take "xla", or "auto" to have cudnn where it can run.'
        )
    return "xla" if reasons or config.attention == "xla" else "cudnn"


def current_platform() -> str:
    """The platform that JAX computes on, in the words of `resolve_backend`."""
    platform = jax.default_backend()
    if platform != "gpu":
        return platform
    # "9.0" on an H200; an AMD GPU says "gfx942" or the like.
    capability = getattr(jax.devices()[0], "compute_capability", "")
    modern = capability[:1].isdigit() and float(capability) >= 8.0
    return "cuda" if modern else "gpu"


def dot_product_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    *,
    dropout: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> tuple[Float[Array, "b q h d"], Float[Array, "b h q k"]]:
    """softmax(q k' / sqrt d) v, softmax in float32, and the weights before their dropout.

    Vaswani et al. 2017, arXiv 1706.03762. The query is scaled before the product, as flax does.

    Args:
      query: in the computing dtype, as are key and value.
      key: one for each token that is attended to.
      value: what a token gives to those that attend to it.
      dropout: probability with which a weight is zeroed; the others grow by 1 / (1 - dropout).
      dropout_rng: key for it; needed if `dropout` is positive.

    Returns:
      The output in the dtype of `value`, and the attention weights in float32.
    """
    query = query * (query.shape[-1] ** -0.5)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1)
    kept = weights
    if dropout > 0:
        keep = jax.random.bernoulli(dropout_rng, 1 - dropout, weights.shape)
        kept = jnp.where(keep, weights / (1 - dropout), 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", kept.astype(value.dtype), value), weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention of queries to keys, with its four projections.

    Attributes:
      config: of the model.
      train: dropout on.
      capture: return the attention weights; costs their memory, and takes the XLA back end.
      rotate: by the model's rotary position embedding, if it has one: the tokens are its own.
    """

    config: VitConfig
    train: bool
    capture: bool = False
    rotate: bool = False

    @nn.compact
    def __call__(
        self, x_q: Float[Array, "b q width"], x_kv: Float[Array, "b k width"]
    ) -> tuple[Float[Array, "b q width"], Float[Array, "b h q k"] | None]:
        config = self.config
        heads = (config.num_heads, config.width // config.num_heads)

        def project(x, name):
            y = nn.DenseGeneral(
                heads,
                use_bias=config.qkv_bias and (config.key_bias or name != "key"),
                kernel_init=nn.initializers.xavier_uniform(),
                dtype=config.dtype,
                name=name,
            )(x)
            if config.lora_rank:
                y = y + Adapter(config, heads, name=f"{name}_lora")(x)
            return constrain(y, BATCH, None, "tensor", None)

        query, key, value = project(x_q, "query"), project(x_kv, "key"), project(x_kv, "value")
        if config.qk_norm:
            # Over each head's width; ViT-22B's (arXiv 2302.05442) has no bias.
            norm = functools.partial(
                nn.LayerNorm,
                epsilon=config.ln_eps,
                use_bias=config.qk_norm_bias,
                use_fast_variance=False,
                dtype=config.dtype,
            )
            query, key = norm(name="query_norm")(query), norm(name="key_norm")(key)
        if self.rotate and (turn := rotation(config)):
            query, key = turn(query), turn(key)

        backend = resolve_backend(config, train=self.train, platform=current_platform())
        weights = None
        if backend == "cudnn" and not self.capture:
            x = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        else:
            dropout = config.attention_dropout if self.train else 0.0
            x, weights = dot_product_attention(
                query,
                key,
                value,
                dropout=dropout,
                dropout_rng=self.make_rng("dropout") if dropout else None,
            )
        if config.attn_norm:
            shape = x.shape
            x = nn.LayerNorm(
                epsilon=config.ln_eps, dtype=config.dtype, use_fast_variance=False, name="norm"
            )(x.reshape(*shape[:2], -1)).reshape(shape)
        y = nn.DenseGeneral(
            config.width,
            axis=(-2, -1),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=config.dtype,
            name="out",
        )(x)
        if config.lora_rank:
            y = y + Adapter(config, (config.width,), axes=2, name="out_lora")(x)
        return y, weights if self.capture else None
