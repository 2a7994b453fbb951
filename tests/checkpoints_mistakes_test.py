"""Damaged and mismatched checkpoints: one message, in bounded time and memory."""

import dataclasses
import pathlib
import time

import jax
import pytest

from tests.checkpoints_mistakes import CASES, message_of
from tests.commands import call
from tests.damaged_checkpoints import RAN, Shelf
from tests.fuzzing import MEMORY, SECONDS, peak_bytes
from tests.tiny_checkpoints import LABELS, VIT, tiny
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.load import load_pretrained


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.mark.parametrize("name", CASES)
def test_the_message(shelf, name):
    start, memory = time.monotonic(), peak_bytes()
    message = message_of(shelf, name)
    for text in CASES[name][1:]:
        assert text in message, f"{text!r} is not in {message!r}"
    assert not pathlib.Path(RAN).exists()
    assert time.monotonic() - start < SECONDS and peak_bytes() - memory < MEMORY


# Arguments of the command in the shelf's folder, and texts of the message.
CONVERT = {
    "nothing to do": ("", "Nothing to do: pass --inspect=CHECKPOINT, --verify=REFERENCE, or"),
    "no destination": ("hf --to=timm", "error: DESTINATION is missing: write vit-jax convert"),
    "no format": ("hf new", "error: --to=FORMAT (one of hf, timm, google,", ") is missing"),
    "unknown --to": (
        "hf new --to=hff",
        '--to=hff: Did you mean "hf"? Accepted: hf, timm',
    ),
    "bfloat16 for a work directory": (
        "hf new --to=orbax --dtype=bfloat16",
        "The format orbax has float32 only, not bfloat16.",
    ),
    "destination that exists": (
        "hf timm --to=timm --change_numerics",
        "timm exists: name a new path, nothing is overwritten.",
    ),
    "destination below a file": (
        "hf google.npz/new --to=hf",
        "google.npz/new cannot be written: ",
    ),
    "model that the format cannot express": (
        "hf new --to=google",
        "This model cannot be written in the format google without differences.\n"
        "In its outputs for the same pixels:\n  ",
        "model.gelu is 'erf'; vision_transformer has only 'tanh'",
        "(--change_numerics) to write it all the same, with these differences.",
    ),
    "stray word": ("--inspect=hf timm", "Unexpected argument 'timm'"),
    "reference without a manifest": ("--verify=hf", "hf: there is no manifest.json there, nor"),
}
PREDICT = {
    "no head": (
        "--checkpoint=headless x.png",
        "headless has no head, so it cannot predict classes.",
    ),
}


@pytest.mark.parametrize(
    ("verb", "typed", "texts"),
    [
        pytest.param(verb, typed, texts, id=f"{verb}: {name}")
        for verb, table in (("convert", CONVERT), ("predict", PREDICT))
        for name, (typed, *texts) in table.items()
    ],
)
def test_the_command_prints_the_message(shelf, verb, typed, texts):
    headless = shelf.folder / "headless"
    if not headless.exists():
        export(tiny(VIT, num_classes=0), headless, to="hf")
    (shelf.folder / "x.png").touch()
    result = call(verb, *typed.split(), cwd=shelf.folder)
    assert result.code == 2 and result.err.startswith("error: "), result
    assert "Traceback" not in result.err and not (shelf.folder / "new").exists()
    assert not list(shelf.folder.glob("*.unfinished"))
    for text in texts:
        assert text in result.err, f"{text!r} is not in {result.err!r}"


def test_parameters_and_labels_that_do_not_fit_the_config_are_not_exported(tmp_path):
    model = tiny(labels=LABELS)
    cut = {**model.params, "head": jax.tree.map(lambda leaf: leaf[..., :2], model.params["head"])}
    for changes, texts in (
        ({"labels": ("a", "b")}, ("5 outputs, but 2 labels",)),
        ({"params": cut}, ("head/bias: params (2,), model (5,)", "head/kernel: params (16, 2)")),
        ({"params": cut, "labels": LABELS[:2]}, ("head/bias: params (2,), model (5,)",)),
        ({"params": model.params["head"]}, ("cls: params lacks it, model (1, 1, 16)",)),
    ):
        for to in ("hf", "timm", "google", "orbax", "stablehlo"):
            with pytest.raises(CheckpointError) as refused:
                export(dataclasses.replace(model, **changes), tmp_path / "new", to=to)
            assert all(text in str(refused.value) for text in texts), str(refused.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["google", "timm", "orbax"])
def test_a_mesh_of_other_axes_is_refused(tmp_path, to):
    export(tiny(), tmp_path / "a", to=to, change_numerics=True)
    hints = None if to == "orbax" else {"num_heads": 4}
    for axes in (("x",), ("data", "model")):
        mesh = jax.make_mesh((1,) * len(axes), axes, devices=jax.devices()[:1])
        with pytest.raises(ConfigError, match=r"lacks .*vit_jax\.parallel\.mesh\.make_mesh"):
            load_pretrained(tmp_path / "a", mesh=mesh, hints=hints)
