"""Exports for google-research/vision_transformer and google-research/big_vision: one .npz."""

import dataclasses
import pathlib
import zipfile
from collections.abc import Iterable

import numpy as np

from vit_jax.config.model import RESNET_NUMERICS
from vit_jax.errors import CheckpointError
from vit_jax.models import MixerConfig, ResnetConfig, StemConfig
from vit_jax.pretrained.exports.base import (
    ANYTHING,
    compare,
    export_tensors,
    with_class_row,
    with_learned_positions,
)
from vit_jax.pretrained.formats import mixer, resnet
from vit_jax.pretrained.formats.entries import Entry
from vit_jax.pretrained.formats.google import LINEN, PRE_LINEN
from vit_jax.pretrained.model import Pretrained


def write(
    pretrained: Pretrained, path: pathlib.Path, *, to: str, dtype: str, change_numerics: bool
) -> tuple[str, ...]:
    """Writes an .npz archive for google (vision_transformer's published names) or big_vision.

    Returns:
      Notes: what the library computes slightly differently, and other remarks.

    Raises:
      CheckpointError: the format cannot express the model.
    """
    config, big_vision = pretrained.config, to == "big_vision"
    if isinstance(config, MixerConfig | ResnetConfig):
        _write(pretrained, path, _entries(config, to=to), to=to, dtype=dtype)
        return ()
    expressible = {
        "pool": ("token", "gap", "map") if big_vision else ("token", "gap"),
        "posemb": ("learned", "sincos2d"),
        "rep_size": ANYTHING,
        "posemb_prefix": ANYTHING,
        "stem": (None,) if big_vision else (None, config.stem and StemConfig(
            units=config.stem.units, width_factor=config.stem.width_factor
        )),
    }  # fmt: skip
    reasons = compare(config, expressible, to=to)
    reasons.check(pretrained, to=to, change_numerics=change_numerics)
    entries = LINEN if big_vision else PRE_LINEN
    if not big_vision:
        params, config = with_class_row(*with_learned_positions(pretrained.params, config))
        pretrained = dataclasses.replace(pretrained, params=params, config=config)
        if config.stem:
            body = resnet.stem_entries(config.stem, resnet.GOOGLE, ours="stem/", theirs="")
            entries = (*entries, *body)
    elif config.posemb_rows:  # The class token has a position, as in older files of big_vision.
        entries = tuple(e for e in LINEN if e.theirs != "pos_embedding")
    _write(pretrained, path, entries, to=to, dtype=dtype)
    return reasons.accepted


def _entries(config: MixerConfig | ResnetConfig, *, to: str) -> tuple[Entry, ...]:
    """Returns the entries of a Mixer or a ResNet.

    Raises:
      CheckpointError: Google's code has other numerics.
    """
    if isinstance(config, MixerConfig):
        if (config.gelu, config.ln_eps) != ("tanh", 1e-6):
            raise CheckpointError(
                f"Format {to}: Google's Mixer has the tanh GELU and the epsilon 1e-6, this one "
                f"{config.gelu} and {config.ln_eps}."
            )
        return mixer.entries(config)
    if to == "google":
        raise CheckpointError(
            "Format google: vision_transformer has no ResNets except in hybrids. Use the format "
            "big_vision."
        )
    supported = RESNET_NUMERICS[config.version]
    numerics = {field: getattr(config, field) for field in supported}
    if numerics != supported:
        raise CheckpointError(
            f"Format {to}: big_vision's ResNet {config.version} has {supported}, this one "
            f"{numerics}."
        )
    if config.version == "v1":
        head = (Entry("head/kernel", "head/kernel"), Entry("head/bias", "head/bias"))
        return (*resnet.stem_entries(config, resnet.GOOGLE, ours="", theirs=""), *head)
    body = resnet.stem_entries(config, resnet.TENSORFLOW, ours="", theirs="")
    outer = [e for e in resnet.entries(config) if e.theirs.startswith(("group_norm", "head/conv"))]
    return (*body, *outer)


def _write(
    pretrained: Pretrained, path: pathlib.Path, entries: Iterable[Entry], *, to: str, dtype: str
) -> None:
    config = pretrained.config
    prefix = "params/" if to == "big_vision" else ""
    if isinstance(config, ResnetConfig) and config.version == "v2":
        prefix = "resnet/"  # As in the paper's files, which big_vision converts on loading.
    tensors = export_tensors(pretrained.params, config, entries, dtype=dtype, to=to)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in tensors:
            # Both libraries store bfloat16 as two-byte void.
            stored = array.view("V2") if dtype == "bfloat16" else array
            with archive.open(f"{prefix}{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, stored, allow_pickle=False)
