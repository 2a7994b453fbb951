"""Mixup and CutMix: every image of a batch is mixed with the one before it, labels likewise."""

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

    Both methods are one formula: a map over the pixels says how much of its own each image keeps,
    and its mean how much of its own label. Mixup's map is constant: the larger of lambda ~
    Beta(alpha, alpha) and 1 - lambda, so that an image stays mostly itself (Zhang et al., 2018,
    arXiv 1710.09412). CutMix's is 0 in a box of area 1 - lambda around a uniformly drawn centre,
    cut off at the borders, and 1 elsewhere; its mean is the exact share of the pixels outside
    (Yun et al., 2019, arXiv 1905.04899). One map is drawn a batch.

    Call it under jit with the global batch: the draw depends on `rng` alone, not on the mesh.

    Args:
      rng: key of this step.
      images: f[B,H,W,C].
      labels: one-hot or soft, f[B,K].
      weights: f[B]; 0 where there is no image but zeros. The one after it stays as it is.
      mixup_alpha: 0: no mixup.
      cutmix_alpha: 0: no CutMix. With both on, each batch uses one of them, evenly.

    Returns:
      Mixed images and labels, of the dtypes that they came in.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, labels
    mixup_rng, cutmix_rng, choice_rng = jax.random.split(rng, 3)
    height, width = images.shape[1:3]
    choices = []  # (map, share of the own label)
    if mixup_alpha:
        share = _mixup_share(mixup_rng, alpha=mixup_alpha)
        choices.append((jnp.full((height, width), share), share))
    if cutmix_alpha:
        outside = _outside_box(cutmix_rng, alpha=cutmix_alpha, height=height, width=width)
        choices.append((outside, jnp.sum(outside) / (height * width)))
    keep, share = choices[0]
    if len(choices) == 2:
        keep, share = jax.tree.map(
            lambda *pair: jnp.where(jax.random.bernoulli(choice_rng), *pair), *choices
        )
    partner = jnp.roll(weights, 1) > 0
    keep = jnp.where(partner[:, None, None, None], keep[None, :, :, None], 1)
    return _blend(images, keep), _blend(labels, jnp.where(partner[:, None], share, 1))


def _mixup_share(rng: PRNGKeyArray, *, alpha: float) -> Float[Array, ""]:
    share = jax.random.beta(rng, alpha, alpha)
    return jnp.maximum(share, 1 - share)


def _outside_box(
    rng: PRNGKeyArray, *, alpha: float, height: int, width: int
) -> Float[Array, "{height} {width}"]:
    area_rng, y_rng, x_rng = jax.random.split(rng, 3)
    side = jnp.sqrt(1 - jax.random.beta(area_rng, alpha, alpha))  # As a share of the image's.

    def inside(rng, length):
        centre = jax.random.randint(rng, (), 0, length)
        half = jnp.floor(side * length).astype(jnp.int32) // 2
        position = jnp.arange(length)
        return (centre - half <= position) & (position < centre + half)

    box = inside(y_rng, height)[:, None] & inside(x_rng, width)[None, :]
    return 1 - box.astype(jnp.float32)


def _blend(own: Float[Array, "B ..."], share: Float[Array, "..."]) -> Float[Array, "B ..."]:
    mixed = share * own + (1 - share) * jnp.roll(own, 1, axis=0)
    return mixed.astype(own.dtype)
