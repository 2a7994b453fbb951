"""Mixup and CutMix: mixes every image of a batch, and its label, with the previous one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def mix(
    rng: PRNGKeyArray,
    images: Float[Array, "B H W C"],
    labels: Float[Array, "B K"],
    weights: Float[Array, "B"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B K"]]:
    """Mixes a batch with itself, rolled by one.

    Both methods are one formula: a map of weights over the pixels. An image is multiplied by the
    map and its partner by 1 - map; the mean of the map is the weight of the image's label. Mixup's
    map is constant: the larger of lambda ~ Beta(alpha, alpha) and 1 - lambda, so the image
    dominates (Zhang et al., 2018, arXiv 1710.09412). CutMix's map is 0 in a box of area 1 - lambda
    around a uniformly drawn centre, clipped at the borders, and 1 elsewhere; its mean is exactly
    the fraction of pixels outside the box (Yun et al., 2019, arXiv 1905.04899). One map is drawn
    per batch.

    Call it under jit with the global batch: the draw depends only on `rng`, not on the mesh.

    Args:
      rng: random key of this step.
      images: the batch.
      labels: one-hot or soft.
      weights: 0 for rows of zeros without an image; the image after such a row is not mixed.
      mixup_alpha: 0: no mixup.
      cutmix_alpha: 0: no CutMix. If both are on, each batch uses either, at even odds.

    Returns:
      Mixed images and labels, of the dtypes of the arguments.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, labels
    mixup_rng, cutmix_rng, choice_rng = jax.random.split(rng, 3)
    height, width = images.shape[1:3]
    choices: list[tuple[Array, Array]] = []  # (map, its mean)
    if mixup_alpha:
        ratio = _mixup_ratio(mixup_rng, alpha=mixup_alpha)
        choices.append((jnp.full((height, width), ratio), ratio))
    if cutmix_alpha:
        outside = _outside_box(cutmix_rng, alpha=cutmix_alpha, height=height, width=width)
        choices.append((outside, jnp.sum(outside) / (height * width)))
    weight_map, mean = choices[0]
    if len(choices) == 2:
        is_mixup = jax.random.bernoulli(choice_rng)
        weight_map, mean = (jnp.where(is_mixup, a, b) for a, b in zip(*choices, strict=True))
    has_partner = jnp.roll(weights, 1) > 0
    weight_map = jnp.where(has_partner[:, None, None, None], weight_map[None, :, :, None], 1)
    return _blend(images, weight_map), _blend(labels, jnp.where(has_partner[:, None], mean, 1))


def _mixup_ratio(rng: PRNGKeyArray, *, alpha: float) -> Float[Array, ""]:
    ratio = jax.random.beta(rng, alpha, alpha)
    return jnp.maximum(ratio, 1 - ratio)


def _outside_box(
    rng: PRNGKeyArray, *, alpha: float, height: int, width: int
) -> Float[Array, "{height} {width}"]:
    area_rng, y_rng, x_rng = jax.random.split(rng, 3)
    side = jnp.sqrt(1 - jax.random.beta(area_rng, alpha, alpha))  # As a fraction of the image's.

    def inside(rng, length):
        centre = jax.random.randint(rng, (), 0, length)
        half = jnp.floor(side * length).astype(jnp.int32) // 2
        position = jnp.arange(length)
        return (centre - half <= position) & (position < centre + half)

    box = inside(y_rng, height)[:, None] & inside(x_rng, width)[None, :]
    return 1 - box.astype(jnp.float32)


def _blend(values: Float[Array, "B ..."], weight: Float[Array, "..."]) -> Float[Array, "B ..."]:
    mixed = weight * values + (1 - weight) * jnp.roll(values, 1, axis=0)
    return mixed.astype(values.dtype)
