"""The models that the tests of measures go over: a checkpoint of each family, loaded once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.conftest import SHARED, slow
from vit_jax.pretrained.create import create
from vit_jax.pretrained.model import Pretrained
from vit_jax.pretrained.verification import fixtures, load_fixture

# Written by the reference implementations: class token, GAP, MAP, registers, distillation, rotary
# and sine-cosine positions, scanned, gated, hybrid, without class token.
_QUICK = (
    "hf_deit/distilled", "bv_npz/map_learn", "timm_vit/reg_ls_qknorm_swiglu",
)  # fmt: skip
_OTHERS = (
    "vt_npz/hybrid_token", "hf_dinov3_vit/gated", "vt_npz/token_prelogits",
    "bv_npz/gap_sincos2d", "bv_npz/scan_gap", "hf_vit/cls",
    "hf_dinov2_with_registers/model", "hf_siglip/vision", "hf_ijepa/model", "timm_eva/rope_axial",
    "dinov2_native/reg4", "deit3_native/layerscale", "mae_native/encoder_cls",
    "torchvision_vit/cls",
)  # fmt: skip
# For pytest.mark.parametrize: three are part of `make test`, the others slow.
FAMILIES = (*_QUICK, *map(slow, _OTHERS))
# Of an expensive comparison, one is part of `make test`.
ONE_FAMILY = (_QUICK[0], *map(slow, (*_QUICK[1:], *_OTHERS)))
NO_ATTENTION = ("vt_npz/mixer", "bv_npz/bit_v1")


@functools.cache
def _fixtures():
    return {fixture["id"]: fixture for fixture in fixtures(SHARED / "goldens")}


def checkpoints() -> list[str]:
    """The names of all checkpoints of the goldens."""
    return list(_fixtures())


def fixture(name: str) -> dict:
    """The manifest's entry of a checkpoint."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip("no reference arrays: shared/goldens does not exist")
    return _fixtures()[name]


@functools.cache
def family(name: str) -> Pretrained:
    """A checkpoint of the goldens, at the size of its `image`."""
    entry = fixture(name)
    return load_fixture(entry, image_size=inputs(name).shape[1:3])


@functools.cache
def inputs(name: str) -> np.ndarray:
    """Its prepared images: float32 [2, height, width, 3]."""
    entry = fixture(name)
    return np.load(entry["folder"] / entry["inputs"])["image"]


def expected(name: str, array: str) -> list[np.ndarray]:
    """The reference's arrays of each layer, such as attn0, attn1, ...; [] if it has none."""
    entry = fixture(name)
    arrays = np.load(entry["folder"] / entry["expected"])
    return [arrays[f"{array}{i}"] for i in range(100) if f"{array}{i}" in arrays]


@functools.cache
def small(name: str = "mu/16", **fields) -> Pretrained:
    """A model of random parameters, of which none is zero."""
    pretrained = create(name, **fields)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype), pretrained.params
    )
    return dataclasses.replace(pretrained, params=params)
