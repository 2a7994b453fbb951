"""Resizing of position and patch embeddings against the publishers' own resamplers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import campaign
from vit_jax.models.resize import KERNELS, matrix, resize_patches, resize_posemb

# Up, down, by a little, by much; 1 point; integer and fractional ratios.
LENGTHS = [
    (old, new)
    for old in (3, 7, 14, 16, 24, 27, 37)
    for new in (1, 2, 3, 5, 7, 8, 13, 14, 16, 24, 27, 32, 37, 40, 64)
]
GRIDS = [
    ((14, 14), (40, 40)),  # 196 tokens to 1600.
    ((14, 14), (24, 24)),
    ((37, 37), (16, 16)),
    ((16, 16), (14, 14)),
    ((7, 7), (14, 10)),
    ((16, 24), (9, 33)),
    ((3, 27), (27, 3)),
    ((24, 24), (1, 5)),
    ((14, 14), (14, 21)),
]


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def reference(kernel, grid, new):
    """Applies the publisher's resampler to float64 [height, width, channels]."""
    if kernel == "bilinear_corners":
        scipy = pytest.importorskip("scipy.ndimage")
        zoom = (new[0] / grid.shape[0], new[1] / grid.shape[1], 1)
        return scipy.zoom(grid, zoom, order=1)
    torch = pytest.importorskip("torch", reason="needs torch: pip install vit_jax[torch]")
    how = {
        "bilinear": {"mode": "bilinear", "align_corners": False},
        "bicubic_corners": {"mode": "bicubic", "align_corners": True},
        "bicubic": {"mode": "bicubic", "align_corners": False},
        "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
        "bicubic_offset": {"mode": "bicubic", "align_corners": False},
    }[kernel]
    if kernel == "bicubic_offset":
        # Source: facebookresearch/dinov2, interpolate_pos_encoding with interpolate_offset=0.1.
        how["scale_factor"] = tuple(
            float(n + 0.1) / o for n, o in zip(new, grid.shape[:2], strict=True)
        )
    else:
        how["size"] = new
    tensor = torch.from_numpy(grid.transpose(2, 0, 1)[None].copy())
    out = torch.nn.functional.interpolate(tensor, **how)[0].numpy().transpose(1, 2, 0)
    assert out.shape[:2] == new
    return out


def resized(kernel, grid, new):
    """Resizes by our matrices, in float64."""
    down, across = (matrix(kernel, *pair) for pair in zip(grid.shape[:2], new, strict=True))
    return np.einsum("yh,xw,hwc->yxc", down, across, grid)


@pytest.mark.medium
@pytest.mark.parametrize("kernel", KERNELS)
def test_matrices_equal_the_publishers_resamplers(kernel):
    for old, new in LENGTHS:
        grid = noise(old, old, 3)
        want = reference(kernel, grid, (new, new))
        got = resized(kernel, grid, (new, new))
        np.testing.assert_allclose(
            got, want, rtol=0, atol=1e-6 * abs(grid).max(), err_msg=f"{old} {new}"
        )


# Each grid with one number of prefix tokens; the campaign has the two others.
@pytest.mark.medium
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("old", "new", "prefix"),
    [
        (*grid, prefix) if i % 3 == j else campaign(*grid, prefix)
        for i, grid in enumerate(GRIDS)
        for j, prefix in enumerate((0, 1, 5))
    ],
)
def test_position_embeddings_equal_the_publishers(kernel, old, new, prefix):
    grid = noise(*old, 4)
    first = noise(prefix, 4)
    posemb = np.concatenate([first, grid.reshape(-1, 4)])[None].astype(np.float32)
    got = resize_posemb(jnp.asarray(posemb), old=old, new=new, prefix=prefix, kernel=kernel)
    want = reference(kernel, grid, new).reshape(-1, 4)
    assert got.shape == (1, prefix + new[0] * new[1], 4) and got.dtype == jnp.float32
    np.testing.assert_array_equal(got[0, :prefix], posemb[0, :prefix])
    np.testing.assert_allclose(got[0, prefix:], want, rtol=0, atol=2e-6 * abs(grid).max())


@pytest.mark.medium
@pytest.mark.parametrize("kernel", KERNELS)
def test_invariants_of_every_kernel(kernel):
    for old, new in LENGTHS:
        weights = matrix(kernel, old, new)
        assert weights.shape == (new, old)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
        if KERNELS[kernel][3] == 0 and not (new == 1 and KERNELS[kernel][1]):
            # Kernels are symmetric.
            np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)
    posemb = jnp.asarray(noise(1, 22, 4), jnp.float32)
    same = resize_posemb(posemb, old=(7, 3), new=(7, 3), prefix=1, kernel=kernel)
    np.testing.assert_array_equal(same, posemb)


@pytest.mark.medium
def test_bfloat16_stays_bfloat16():
    posemb = jnp.ones((1, 10, 4), jnp.bfloat16)
    got = resize_posemb(posemb, old=(3, 3), new=(6, 5), prefix=1, kernel="bicubic")
    assert got.dtype == jnp.bfloat16 and got.shape == (1, 31, 4)
    np.testing.assert_array_equal(got.astype(jnp.float32), 1)


# --- Patches (FlexiViT)


def resize_images(images, new):
    """Resizes patches [n, height, width, channels] as FlexiViT: bilinear, antialiased."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install vit_jax[torch]")
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    out = torch.nn.functional.interpolate(
        tensor, size=new, mode="bilinear", align_corners=False, antialias=True
    )
    return out.numpy().transpose(0, 2, 3, 1)


def tokens(images, kernel):
    return np.einsum("nhwc,hwcd->nd", images, np.asarray(kernel, np.float64))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (9, 9)), ((8, 8), (16, 16)), ((3, 5), (7, 6)), ((4, 4), (4, 4))]
)
def test_enlarged_patches_give_the_same_tokens(old, new):
    kernel = noise(*old, 3, 6).astype(np.float32)
    images = noise(10, *old, 3)
    got = resize_patches(jnp.asarray(kernel), new=new)
    assert got.shape == (*new, 3, 6) and got.dtype == jnp.float32
    want = tokens(images, kernel)
    np.testing.assert_allclose(
        tokens(resize_images(images, new), got), want, rtol=0, atol=1e-5 * abs(want).max()
    )


@pytest.mark.medium
@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (8, 8)), ((9, 8), (5, 3)), ((16, 8), (8, 16)), ((14, 30), (16, 16))]
)
def test_shrunk_patches_give_the_nearest_tokens(old, new):
    """No other kernel has a smaller squared error of tokens, over patches of white noise."""
    kernel = noise(*old, 1, 4).astype(np.float32)
    pixels = old[0] * old[1]
    basis = np.eye(pixels).reshape(pixels, *old, 1)  # Resized, these are the matrix of resizing.
    resizing = resize_images(basis, new).reshape(pixels, -1)
    want, *_ = np.linalg.lstsq(resizing, kernel.reshape(pixels, -1), rcond=None)
    got = resize_patches(jnp.asarray(kernel), new=new)
    np.testing.assert_allclose(
        got.reshape(-1, 4), want, rtol=0, atol=1e-5 * max(1, abs(want).max())
    )
