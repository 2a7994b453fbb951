"""Times attention alone, forward and backward, by one back end; a line for each number of tokens.

    python -m benchmarks.gpu_attention --backend=cudnn
    python -m benchmarks.gpu_attention --backend=pallas --toy    # On a CPU, interpreted.

xla is the attention of our models, which XLA compiles; cudnn the fused kernel that they take on
GPUs; pallas the Triton kernel in `jax.experimental.pallas.ops.gpu.attention`, with its default
blocks, and pallas_64 with blocks of 64. That kernel takes whole blocks of tokens only. So queries,
keys and values are padded, and the padding is a segment of its own, which real tokens do not
attend to; the times include the padding. JAX's Hopper kernel (`attention_mgpu`) cannot mask it: at
197, 577 and 1,601 tokens it would be wrong, and is left out.

Output and gradients are compared with plain attention in float32; a difference of more than the
tolerance, relative to the largest element, is WRONG, and then no time is printed.
"""

import functools
import time
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags
from jaxtyping import Array, Float

from vit_jax.benchmarking.samples import Spread
from vit_jax.benchmarking.table import digits
from vit_jax.models.attention import dot_product_attention
from vit_jax.models.operations import attend

BACKENDS = ("xla", "cudnn", "pallas", "pallas_64")
HEADS, HEAD_WIDTH = 16, 64  # ViT-L.
# (tokens, batch): 224, 384 and 640 pixels in patches of 16; about 200,000 tokens in all, so that a
# call takes much longer than its dispatch.
SIZES = ((197, 1024), (577, 256), (1601, 128))
TOY_SIZES = ((70, 1),)
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.03}
_ROUNDS, _TURN_SECONDS = 5, 0.2

Attention = Callable[[Array, Array, Array], Array]


def make_attention(backend: str, *, interpret: bool) -> Attention:
    """Returns a function of queries, keys and values [b, n, h, d] in one dtype.

    Args:
      backend: one of BACKENDS.
      interpret: run Pallas kernels as ordinary JAX operations, for CPUs.

    Raises:
      ImportError: this JAX does not ship the kernel.
    """
    if backend == "xla":
        return attend
    if backend == "cudnn":
        return functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # JAX 0.11 names Tokamax instead.
        from jax.experimental.pallas.ops.gpu import attention
    blocks = attention.BlockSizes.get_default()
    if backend == "pallas_64":
        blocks = attention.BlockSizes(64, 64, 64, 64, 64, 64)
    return functools.partial(_padded, attention.mha, blocks, interpret)


def _padded(mha, blocks, interpret: bool, query: Array, key: Array, value: Array) -> Array:
    """Calls Pallas' kernel with whole blocks of tokens."""
    batch, tokens, _, width = query.shape
    padding = -tokens % blocks.block_q  # All blocks of the backward pass divide block_q.
    segments = jnp.broadcast_to(jnp.arange(tokens + padding) < tokens, (batch, tokens + padding))
    arrays = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (query, key, value))
    x = mha(
        *arrays,
        segments.astype(jnp.int32),
        sm_scale=width**-0.5,
        block_sizes=blocks,
        interpret=interpret,
    )
    return x[:, :tokens]


def with_gradients(attention: Attention) -> Callable[..., tuple[Array, tuple[Array, ...]]]:
    """Returns a function of (query, key, value, gradient of the output): output and gradients."""

    def call(query, key, value, gradient):
        output, backward = jax.vjp(attention, query, key, value)
        return output, backward(gradient)

    return call


def difference(attention: Attention, inputs: Sequence[Float[Array, "b n h d"]]) -> float:
    """Returns the largest difference from plain attention, relative to the largest element.

    Args:
      attention: what is checked.
      inputs: query, key, value and the gradient of the output.
    """
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in inputs]
        wanted = jax.jit(with_gradients(lambda *qkv: dot_product_attention(*qkv)[0]))(*wide)
    got = jax.jit(with_gradients(attention))(*inputs)
    differences = jax.tree.map(
        lambda ours, theirs: abs(ours.astype(jnp.float32) - theirs).max() / abs(theirs).max(),
        got, wanted,
    )  # fmt: skip
    return max(map(float, jax.tree.leaves(differences)))


def measure(function: Callable, inputs: Sequence[Array], *, turn_seconds: float) -> Spread:
    """Returns the seconds of a call: the median and the range of several turns."""
    compiled = jax.jit(function).lower(*inputs).compile()
    jax.block_until_ready(compiled(*inputs))

    def turn(calls: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready([compiled(*inputs) for _ in range(calls)][-1])
        return (time.perf_counter() - start) / calls

    # Few at once: each call that is dispatched has its own outputs.
    calls = min(max(1, int(turn_seconds / turn(2))), 20)
    return Spread.of([turn(calls) for _ in range(_ROUNDS)])


def line(backend: str, tokens: int, batch: int, *, dtype: str, interpret: bool) -> str:
    """Returns the times of a back end at a number of tokens, or why there are none."""
    title = f"{backend}, {tokens:,} tokens, batch {batch:,}"
    try:
        attention = make_attention(backend, interpret=interpret)
        shape = (batch, tokens, HEADS if not interpret else 2, HEAD_WIDTH)
        keys = jax.random.split(jax.random.key(0), 4)
        inputs = [jax.random.normal(key, shape, dtype) for key in keys]
        error = difference(attention, [x[:2] for x in inputs])
        if not error <= TOLERANCES[dtype]:
            return f"{title}: WRONG: differs by {error:.0e} from plain attention"
        turn_seconds = 0.0 if interpret else _TURN_SECONDS
        forward = measure(attention, inputs[:3], turn_seconds=turn_seconds)
        both = measure(with_gradients(attention), inputs, turn_seconds=turn_seconds)
    except ImportError as missing:
        return f"{title}: not shipped in JAX {jax.__version__}: {missing}"
    except Exception as problem:  # Of any library: the other sizes are still measured.
        return f"{title}: failed: {type(problem).__name__}: {str(problem).strip()[:200]}"
    return (
        f"{title}: forward {_milliseconds(forward)}, forward and backward {_milliseconds(both)}, "
        f"difference {error:.0e}"
    )


def _milliseconds(seconds: Spread) -> str:
    low, high = digits(1e3 * seconds.low), digits(1e3 * seconds.high)
    return f"{digits(1e3 * seconds.median)} ms ({low} to {high})"


def main(argv: Sequence[str]) -> None:
    """Prints a line for each size, as it comes."""
    del argv
    for tokens, batch in TOY_SIZES if _TOY.value else SIZES:
        dtype = "float32" if _TOY.value else "bfloat16"
        print(line(_BACKEND.value, tokens, batch, dtype=dtype, interpret=_TOY.value), flush=True)


if __name__ == "__main__":
    _BACKEND = flags.DEFINE_enum("backend", "xla", BACKENDS, "What computes attention.")
    _TOY = flags.DEFINE_bool("toy", False, "Small and in float32; Pallas is interpreted.")
    app.run(main)
