"""Computed positions against float64 versions of their papers, one patch at a time."""

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


def places(cfg, row, column):
    """How far down and how far right a patch is, in the unit of its paper."""
    (rows, columns), (down, across) = cfg.grid, cfg.rope_grid
    if cfg.rope == "dinov3":
        return [2 * np.pi * (2 * (i + 0.5) / n - 1) for i, n in ((row, rows), (column, columns))]
    return row * (down or rows) / rows, column * (across or columns) / columns


def rotated(cfg, x):
    """Queries of one head [tokens, head width], each pair of components as a complex number."""
    d = x.shape[1]
    frequencies = cfg.rope_theta ** (-4 * np.arange(d // 4) / d)
    if cfg.rope_periods:
        frequencies = 1 / np.array(cfg.rope_periods)
    apart = d // 2 if cfg.rope == "dinov3" else 1
    first = np.arange(d // 2) * (1 if cfg.rope == "dinov3" else 2)
    out = x.copy()
    for patch, (row, column) in enumerate(np.ndindex(cfg.grid)):
        down, right = places(cfg, row, column)
        order = (right, down) if cfg.rope == "axial_xy" else (down, right)
        angles = np.concatenate([place * frequencies for place in order])
        token = cfg.num_prefix + patch
        turned = (x[token, first] + 1j * x[token, first + apart]) * np.exp(1j * angles)
        out[token, first], out[token, first + apart] = turned.real, turned.imag
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
    cfg = dataclasses.replace(CFG, **changes)
    x = np.random.default_rng(0).normal(size=(1, cfg.num_tokens, cfg.num_heads, 16))
    got = rotation(cfg)(jnp.asarray(x, jnp.float32))
    for head in range(cfg.num_heads):
        np.testing.assert_allclose(got[0, :, head], rotated(cfg, x[0, :, head]), atol=3e-6)


def test_no_rotation():
    assert rotation(CFG) is None


@pytest.mark.medium
def test_sincos2d_equals_its_formula_in_float64():
    got = sincos2d((3, 5), 16, temperature=100.0)
    waves = 100.0 ** -(np.arange(4) / 3)
    for patch, (row, column) in enumerate(np.ndindex(3, 5)):
        want = [wave(place * waves) for place in (column, row) for wave in (np.sin, np.cos)]
        np.testing.assert_allclose(got[0, patch], np.concatenate(want), atol=1e-6)
