"""Operations with backward passes of their own, which keep and move less memory than autodiff's.

Autodiff keeps six arrays for a GELU, six for a LayerNorm, and the attention matrix twice. These
keep the input, and two numbers for each token (a mean and a scale, or a maximum and a sum); the
backward pass computes the rest again in loops that the compiler fuses. Parameters are those of the
plain forms; outputs and gradients, too, up to rounding, which tests measure against float64.

Forward-mode differentiation (`jax.jvp`) is not defined for them.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.config.model import PatchConfig

# Names of the arrays that `remat="named"` keeps; see `vit_jax.models.blocks.REMAT`.
KEPT = ("attention_inputs", "attention_output", "residual", "mlp_hidden")

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_PI = math.sqrt(2 / math.pi)  # Of the tanh approximation; its half is 1/sqrt(2 pi).
_CUBIC = 0.044715


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(
    x: Float[Array, "*rows k"], kernel: Float[Array | np.ndarray, "k n"], sum_dtype: str
) -> Float[Array, "*rows n"]:
    return _matmul_forward(x, kernel, sum_dtype)[0]


def _matmul_forward(x, kernel, sum_dtype):
    # Not by _matmul: the policies of `remat` do not see a product inside of a function with a
    # backward pass of its own.
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel.astype(x.dtype), dimensions), (x, kernel)


def _contract_rows(x, dy, dtype):
    """Returns x'dy."""
    return jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=dtype)


def _narrow_first(x, dy, dtype):
    """Returns x'dy, for CPUs: XLA's product takes up to a third less time if its left is narrow.

    Without the barrier XLA would simplify the transpose of dy'x to x'dy.
    """
    if x.shape[1] <= dy.shape[1]:
        return _contract_rows(x, dy, dtype)
    return jax.lax.optimization_barrier(_contract_rows(dy, x, dtype)).T


def _matmul_backward(sum_dtype, kept, dy):
    x, kernel = kept
    dx = jax.lax.dot_general(dy, kernel.astype(dy.dtype), (((dy.ndim - 1,), (1,)), ((), ())))
    rows_x, rows_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    # The gradient is summed over the devices of the batch in the dtype of this product.
    dtype = jnp.promote_types(x.dtype, sum_dtype)
    d_kernel = jax.lax.platform_dependent(
        rows_x,
        rows_dy,
        cpu=functools.partial(_narrow_first, dtype=dtype),
        default=functools.partial(_contract_rows, dtype=dtype),
    )
    return dx, d_kernel.astype(kernel.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def project(
    x: Float[Array, "..."], kernel: Float[Array | np.ndarray, "..."], *, axes: int, sum_dtype: str
) -> Float[Array, "..."]:
    """Contracts the last axes of x with the first of a kernel, in the dtype of x.

    Args:
      x: input.
      kernel: of any dtype, which is that of its gradient.
      axes: number of contracted axes.
      sum_dtype: dtype in which the kernel's gradient is summed over devices, or that of x if it is
        wider.
    """
    rows, features = x.shape[: x.ndim - axes], kernel.shape[axes:]
    contracted = math.prod(kernel.shape[:axes])
    y: Any = _matmul(x.reshape(*rows, contracted), kernel.reshape(contracted, -1), sum_dtype)
    return y.reshape(*rows, *features)


class Dense(nn.Module):
    """`project` with its parameters, float32 `kernel` and `bias`, as in `nn.DenseGeneral`.

    Attributes:
      config: of the model: its dtypes.
      features: shape of the output's feature axes.
      axes: number of the input's feature axes, which are its last ones.
    """

    config: PatchConfig
    features: tuple[int, ...]
    axes: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    def __call__(self, x: Float[Array, "*rows_and_inputs"]) -> Float[Array, "*rows_and_outputs"]:
        """Returns the product, with the bias if there is one."""
        y, bias = self.product_and_bias(x)
        return y if bias is None else y + bias

    @nn.compact
    def product_and_bias(
        self, x: Float[Array, "*rows_and_inputs"]
    ) -> tuple[Float[Array, "*rows_and_outputs"], Float[Array, "*outputs"] | None]:
        """Returns the product, a sum over devices if the mesh splits the inputs, and the bias."""
        inputs = x.shape[-self.axes :]

        def flat_init(key, shape):
            flat = (math.prod(inputs), math.prod(self.features))
            return self.kernel_init(key, flat, jnp.float32).reshape(shape)

        kernel = self.param("kernel", flat_init, (*inputs, *self.features))
        x = x.astype(self.config.dtype)
        y = project(x, kernel, axes=self.axes, sum_dtype=self.config.grad_sum_dtype)
        if not self.use_bias:
            return y, None
        bias = self.param("bias", self._flat_bias_init, self.features)
        return y, jnp.asarray(bias, y.dtype)

    def _flat_bias_init(self, key, shape):
        return self.bias_init(key, (math.prod(shape),), jnp.float32).reshape(shape)


def gelu(x: Float[Array, "..."], *, approximate: bool) -> Float[Array, "..."]:
    """Returns x times the normal distribution function of x (Hendrycks and Gimpel, 1606.08415).

    Computed in float32, returned in the dtype of x.

    Args:
      x: any shape.
      approximate: take the paper's approximation by a tanh, as Google's models do.
    """
    return _gelu(x, approximate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x, approximate):
    wide = x.astype(jnp.float32)
    if approximate:
        cdf = 0.5 * (1 + jnp.tanh(_SQRT_2_PI * (wide + _CUBIC * wide**3)))
    else:
        # A third of the time, on CPUs, of jax.nn.gelu's erfc, which is exact in the lower tail too.
        cdf = 0.5 * (1 + jax.lax.erf(wide * _SQRT_HALF))
    return (wide * cdf).astype(x.dtype)


def _gelu_forward(x, approximate):
    return _gelu(x, approximate), x


def _gelu_backward(approximate, x, dy):
    wide = x.astype(jnp.float32)
    # Not in the terms of the forward pass: outside of a loop, XLA would keep those for this.
    if approximate:
        cdf = jax.nn.sigmoid(2 * _SQRT_2_PI * (wide + _CUBIC * wide**3))
        inner = 2 * _SQRT_2_PI * (1 + 3 * _CUBIC * wide**2)
        slope = cdf + wide * cdf * (1 - cdf) * inner
    else:
        density = 0.5 * _SQRT_2_PI * jnp.exp(-0.5 * wide**2)
        slope = _normal_cdf(wide, density) + wide * density
    return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


def _normal_cdf(x: Float[Array, "..."], density: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the normal distribution function, from the density; its error is below 7.5e-8.

    Abramowitz and Stegun 1964, 26.2.17. It shares the exponential with the density.
    """
    t = 1 / (1 + 0.2316419 * jnp.abs(x))
    series = 1.330274429
    for coefficient in (-1.821255978, 1.781477937, -0.356563782, 0.319381530):
        series = series * t + coefficient
    tail = density * t * series
    return jnp.where(x > 0, 1 - tail, tail)


_gelu.defvjp(_gelu_forward, _gelu_backward)


def layer_norm(
    x: Float[Array, "*rows width"],
    scale: Float[Array | np.ndarray, " width"],
    bias: Float[Array | np.ndarray, " width"] | None,
    *,
    epsilon: float,
    dtype: str,
) -> Float[Array, "*rows width"]:
    """Normalises the last axis to mean 0 and variance 1 (Ba et al. 2016, 1607.06450), in float32.

    The variance is the mean of squared deviations (two passes), as flax's without fast variance.

    Args:
      x: any dtype.
      scale: multiplies the result.
      bias: is added to it; None: nothing is.
      epsilon: is added to the variance.
      dtype: of the result.
    """
    return _layer_norm(x, scale, bias, epsilon, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(x, scale, bias, epsilon, dtype):
    return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _layer_norm_forward(x, scale, bias, epsilon, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse_std * scale)
    y = y if bias is None else y + bias
    return y.astype(dtype), (x, scale, bias, mean, inverse_std)


def _layer_norm_backward(epsilon, dtype, kept, dy):
    x, scale, bias, mean, inverse_std = kept
    dy = dy.astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse_std
    rows = tuple(range(x.ndim - 1))
    d = dy * scale
    d_mean = d.mean(axis=-1, keepdims=True)
    d_std = (d * normalised).mean(axis=-1, keepdims=True)
    dx = inverse_std * (d - d_mean - normalised * d_std)
    d_bias = None if bias is None else dy.sum(axis=rows)
    return dx.astype(x.dtype), (dy * normalised).sum(axis=rows), d_bias


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters, float32 `scale` and `bias`, as in `nn.LayerNorm`."""

    epsilon: float
    dtype: str
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width) if self.use_bias else None
        return layer_norm(x, scale, bias, epsilon=self.epsilon, dtype=self.dtype)


def _batched_matmul(a, b, axis_a, axis_b):
    """Contracts one axis of each of two arrays [b, h, ., .], in float32."""
    dimensions = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend(
    query: Float[Array, "b h q d"], key: Float[Array, "b h k d"], value: Float[Array, "b h k d"]
) -> Float[Array, "b h q d"]:
    return _attend_forward(query, key, value)[0]


def _attend_forward(query, key, value):
    query, key, value = (checkpoint_name(x, "attention_inputs") for x in (query, key, value))
    logits = _batched_matmul(query, key, 3, 3)
    largest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    x = _batched_matmul((weights / total).astype(value.dtype), value, 3, 2)
    x = x.astype(value.dtype)
    # Not the logarithm of the sum, whose rounding would be multiplied by the largest logit.
    x, largest, total = (checkpoint_name(x, "attention_output") for x in (x, largest, total))
    return x, (query, key, value, x, largest, total)


def _attend_backward(kept, dx):
    query, key, value, x, largest, total = kept
    weights = jnp.exp(_batched_matmul(query, key, 3, 3) - largest) / total
    d_value = _batched_matmul(weights.astype(dx.dtype), dx, 2, 2)
    # The sum of weights x d_weights over the keys, from the output (Dao et al. 2022, 2205.14135).
    product = dx.astype(jnp.float32) * x.astype(jnp.float32)
    d_weights = _batched_matmul(dx, value, 3, 3) - product.sum(axis=-1, keepdims=True)
    d_logits = (weights * d_weights).astype(query.dtype)
    d_query = _batched_matmul(d_logits, key, 3, 2)
    d_key = _batched_matmul(d_logits, query, 2, 2)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def attend(
    query: Float[Array, "b q h d"], key: Float[Array, "b k h d"], value: Float[Array, "b k h d"]
) -> Float[Array, "b q h d"]:
    """Computes softmax(q k' / sqrt d) v, with the softmax in float32 (Vaswani 2017, 1706.03762).

    The backward pass computes the weights again, from the inputs and the softmax's denominator.
    Heads come before tokens in all products: the matrices are contiguous, which takes .6 of the
    time on CPUs.
    """
    query = query * (query.shape[-1] ** -0.5)
    x = _attend(*(x.swapaxes(1, 2) for x in (query, key, value)))
    return x.swapaxes(1, 2)
