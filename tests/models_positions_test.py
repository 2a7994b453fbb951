"""Computed position embeddings against the formulas of their papers in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import VitConfig
from vit_jax.models.positions import rotation, sincos2d

CFG = VitConfig(
    image_size=(12, 20), patch_size=(4, 4), num_classes=0, width=32, depth=1, mlp_dim=8,
    num_heads=2, registers=2,
)  # fmt: skip


def patch_position(config, row, column):
    """Returns the row and column position of a patch, in the unit of its paper."""
    (rows, columns), (down, across) = config.grid, config.rope_grid
    if config.rope == "dinov3":
        return [2 * np.pi * (2 * (i + 0.5) / n - 1) for i, n in ((row, rows), (column, columns))]
    return row * (down or rows) / rows, column * (across or columns) / columns


def rotated(config, x):
    """Rotates queries of one head [tokens, head width], each pair as a complex number."""
    d = x.shape[1]
    frequencies = config.rope_theta ** (-4 * np.arange(d // 4) / d)
    if config.rope_periods:
        frequencies = 1 / np.array(config.rope_periods)
    apart = d // 2 if config.rope == "dinov3" else 1
    first = np.arange(d // 2) * (1 if config.rope == "dinov3" else 2)
    out = x.copy()
    for patch, (row, column) in enumerate(np.ndindex(config.grid)):
        down, right = patch_position(config, row, column)
        order = (right, down) if config.rope == "axial_xy" else (down, right)
        angles = np.concatenate([position * frequencies for position in order])
        token = config.num_prefix + patch
        rotated_pairs = (x[token, first] + 1j * x[token, first + apart]) * np.exp(1j * angles)
        out[token, first], out[token, first + apart] = rotated_pairs.real, rotated_pairs.imag
    return out


@pytest.mark.medium
@pytest.mark.parametrize(
    "changes",
    [
        {"rope": "dinov3"},
        {"rope": "dinov3", "rope_periods": (1.0, 3.0, 7.0, 20.0)},
        {"rope": "axial_ij", "rope_theta": 10_000.0},
        {"rope": "axial_ij", "rope_grid": (6, 5)},
        {"rope": "axial_xy", "rope_grid": (16, 16)},
    ],
)
def test_rotation_equals_its_paper_in_float64(changes):
    config = dataclasses.replace(CFG, **changes)
    x = np.random.default_rng(0).normal(size=(1, config.num_tokens, config.num_heads, 16))
    got = rotation(config)(jnp.asarray(x, jnp.float32))
    for head in range(config.num_heads):
        np.testing.assert_allclose(got[0, :, head], rotated(config, x[0, :, head]), atol=3e-6)


def test_no_rotation():
    assert rotation(CFG) is None


@pytest.mark.medium
def test_sincos2d_equals_its_formula_in_float64():
    got = sincos2d((3, 5), 16, temperature=100.0)
    waves = 100.0 ** -(np.arange(4) / 3)
    for patch, (row, column) in enumerate(np.ndindex(3, 5)):
        want = [wave(p * waves) for p in (column, row) for wave in (np.sin, np.cos)]
        np.testing.assert_allclose(got[0, patch], np.concatenate(want), atol=1e-6)
