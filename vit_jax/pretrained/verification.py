"""Compares the outputs of a loaded checkpoint with those of the reference implementation.

A reference is a folder of fixtures with a manifest.json. Each fixture has a checkpoint, inputs, the
expected arrays, and for each array the noise floor: the difference of float32 and float64 in the
reference implementation. A difference of more than ten times the noise floor is an error.
"""

import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax.errors import CheckpointError, did_you_mean
from vit_jax.pretrained.formats.hints import HINTS
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.model import Pretrained

MANIFEST = "manifest.json"
# Name of an output in the reference -> in vit_jax.
_OUTPUTS = {
    "logits": "logits",
    "features": "pre_logits",
    "tokens": "tokens",
    "tokens_prenorm": "tokens",
}


class Difference(NamedTuple):
    """The difference in one output of one fixture.

    Attributes:
      fixture: the fixture's name, such as "hf_vit/cls".
      array: "logits", or "64x40/logits" at another resolution.
      difference: the largest absolute difference of any element.
      noise_floor: the same between the reference's float32 and float64.
      tolerance: ten times the noise floor.
    """

    fixture: str
    array: str
    difference: float
    noise_floor: float
    tolerance: float

    @property
    def is_close(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


def fixtures(reference: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the manifest's entries for the fixtures in a folder.

    Args:
      reference: a folder with a manifest, or one below it that holds one or more fixtures.

    Raises:
      CheckpointError: there is no manifest, or no such fixture.
    """
    for folder in (reference, *reference.absolute().parents):
        if (folder / MANIFEST).is_file():
            break
    else:
        raise CheckpointError(f"{reference}: there is no {MANIFEST} there, nor above it.")
    try:
        models = json.loads((folder / MANIFEST).read_text())["models"]
        models = [entry | {"folder": folder / entry["dir"]} for entry in models]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is not a manifest: {error}") from error
    below = [
        entry
        for entry in models
        if reference.absolute() in (f := entry["folder"].absolute(), *f.parents)
    ]
    if not below:
        raise CheckpointError(
            f"{reference} is not a fixture of {folder / MANIFEST}. "
            + did_you_mean(reference.name, [entry["id"] for entry in models])
        )
    return below


def load_fixture(
    fixture: dict[str, Any], *, image_size: tuple[int, int] | None = None
) -> Pretrained:
    """Loads the checkpoint of a fixture, with hints from its manifest."""
    # A folder of Hugging Face is loaded with its JSON files.
    path = fixture["folder"] if "config" in fixture else fixture["folder"] / fixture["checkpoint"]
    if missing := [name for name in ("architecture", "numerics") if name not in fixture]:
        raise CheckpointError(
            f"{fixture['id']}: its entry in {MANIFEST} lacks {', '.join(missing)}."
        )
    hints = _hints({**fixture["architecture"], **fixture["numerics"]})
    return load_pretrained(str(path), image_size=image_size, hints=hints)


def _hints(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a manifest that are hints for its checkpoint."""
    manifest = {**manifest, "rep_size": manifest.get("representation_size")}
    hints = {name: manifest[name] for name in HINTS if manifest.get(name) is not None}
    if "silu" in str(manifest.get("ffn")):
        hints.pop("gelu", None)  # Stated for every model of PyTorch, used by none with a SiLU.
    rope = manifest.get("rope")
    if isinstance(rope, dict):  # A table, or timm's arguments.
        hints.pop("rope")
        if "rope_grid_indexing" in rope:
            hints["rope"] = f"axial_{rope['rope_grid_indexing']}"
        if rope.get("rope_type") == "dinov3":
            hints["rope"] = "dinov3"
        if theta := rope.get("theta", rope.get("rope_temperature")):
            hints["rope_theta"] = theta
    return hints


def verify(fixture: dict[str, Any]) -> Iterator[Difference]:
    """Compares all outputs of a fixture (from `fixtures`), at the model's and other resolutions.

    Raises:
      CheckpointError: the fixture is incomplete, or has no array that can be compared.
    """
    try:
        inputs, expected = _arrays(fixture, "inputs"), _arrays(fixture, "expected")
        references = {
            name: (expected[name], entry["noise_floor"], entry["tol"])
            for name, entry in fixture["expected_arrays"].items()
            if name.rpartition("/")[2] in _OUTPUTS
        }
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{fixture['id']}: its arrays cannot be read ({type(error).__name__}: {error})."
        ) from error
    if not references:
        raise CheckpointError(
            f"{fixture['id']}: it has no array that can be compared: {', '.join(_OUTPUTS)}."
        )
    for size in dict.fromkeys(name.rpartition("/")[0] for name in references):
        outputs = _outputs(fixture, inputs[f"image_{size}" if size else "image"])
        for name, (theirs, noise_floor, tolerance) in references.items():
            folder, _, output = name.rpartition("/")
            if folder != size:
                continue
            ours = outputs[_OUTPUTS[output]]
            if ours.shape != theirs.shape:
                raise CheckpointError(
                    f"{fixture['id']}: {name} has the shape {ours.shape}, not {theirs.shape}."
                )
            difference = float(np.abs(ours - theirs).max())
            yield Difference(fixture["id"], name, difference, noise_floor, tolerance)


def _arrays(fixture: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    with np.load(fixture["folder"] / fixture[name], allow_pickle=False) as file:
        return dict(file)


def _outputs(fixture, images: np.ndarray) -> dict[str, Any]:
    pretrained = load_fixture(fixture, image_size=images.shape[1:3])

    @jax.jit
    def apply(params, images):
        return pretrained.model.apply({"params": params}, images)

    with jax.default_matmul_precision("highest"):
        logits, intermediates = apply(pretrained.params, images)
    return jax.device_get({"logits": logits, **intermediates})
