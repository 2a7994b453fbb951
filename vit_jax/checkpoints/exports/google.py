"""Exports for google-research/vision_transformer and google-research/big_vision: one .npz."""

import pathlib
import zipfile

import numpy as np

from vit_jax.checkpoints.exports.base import PLAIN, check, spelled, with_class_row
from vit_jax.checkpoints.formats.google import LINEN, PRE_LINEN
from vit_jax.checkpoints.pretrained import Pretrained

_NUMERICS = {"gelu": ("tanh",), "ln_eps": (1e-6,), "posemb_resize": ("bilinear_corners",)}


def write(
    pretrained: Pretrained, path: pathlib.Path, *, to: str, dtype: str, change_numerics: bool
) -> None:
    """Writes an archive.

    Args:
      pretrained: the model.
      path: of the .npz.
      to: google, in the names of vision_transformer's published files, or big_vision.
      dtype: float32 or bfloat16, which both keep as bytes without a type.
      change_numerics: see `check`.

    Raises:
      CheckpointError: the format cannot express the model.
    """
    config, big_vision = pretrained.config, to == "big_vision"
    wanted = PLAIN | _NUMERICS | {
        "pool": ("token", "gap", "map") if big_vision else ("token", "gap"),
        "posemb": ("learned", "sincos2d") if big_vision else ("learned",),
        "rep_size": tuple({0, config.rep_size}),
        "class_token": (False,),
    }  # fmt: skip
    check(config, wanted, to=to, change_numerics=change_numerics)
    params, prefix = pretrained.params, "params/" if big_vision else ""
    entries = LINEN if big_vision else PRE_LINEN
    if not big_vision:
        params, config = with_class_row(params, config)
    elif config.posemb_rows:  # As files of big_vision's own past have a class token's position.
        entries = tuple(e for e in LINEN if e.theirs != "pos_embedding")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in spelled(params, config, entries, dtype=dtype, to=to):
            plain = array.view("V2") if dtype == "bfloat16" else array
            with archive.open(f"{prefix}{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, plain, allow_pickle=False)
