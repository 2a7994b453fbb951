"""Damaged, hostile and mismatched checkpoints: one message, soon, in little memory."""

import pathlib
import time

import jax
import pytest

from tests.checkpoints_mistakes import CASES, said_of
from tests.commands import call
from tests.damaged_checkpoints import RAN, Shelf
from tests.fuzzing import MEMORY, SECONDS, peak_bytes
from tests.tiny_checkpoints import VIT, tiny
from vit_jax.errors import ConfigError
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.load import load_pretrained


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.mark.parametrize("name", CASES)
def test_what_is_said(shelf, name):
    start, memory = time.monotonic(), peak_bytes()
    said = said_of(shelf, name)
    for words in CASES[name][1:]:
        assert words in said, f"{words!r} is not in {said!r}"
    assert not pathlib.Path(RAN).exists()
    assert time.monotonic() - start < SECONDS and peak_bytes() - memory < MEMORY


# What is typed in the shelf's folder, and what is said of it.
CONVERT = {
    "nothing to do": ("", "What shall be done? --inspect=CHECKPOINT, --verify=REFERENCE, or"),
    "no destination": ("hf --to=timm", "What shall be done?"),
    "no --to": ("hf new", "What shall be done?", "--to=hf|timm|google|big_vision|orbax"),
    "unknown --to": ("hf new --to=pytorch", "flag --to=pytorch: value should be one of <hf|timm"),
    "unknown --dtype": ("hf new --to=timm --dtype=float16", "should be one of <float32|bfloat16>"),
    "bfloat16 for a work directory": (
        "hf new --to=orbax --dtype=bfloat16",
        "--to=orbax writes float32 only, not bfloat16.",
    ),
    "destination that exists": (
        "hf timm --to=timm --change_numerics",
        "timm is there already: name a new one, nothing is overwritten.",
    ),
    "destination below a file": (
        "hf google.npz/new --to=hf",
        "google.npz/new cannot be written: ",
    ),
    "model that the format cannot express": (
        "hf new --to=google",
        "This model cannot be written --to=google:\n  ",
        "gelu is 'erf'; it can say only 'tanh'",
        "With --change_numerics it is written all the same",
    ),
    "hints that are no pairs": (
        "google.npz new --to=hf --hints=12",
        "--hints=12: write NAME=VALUE",
    ),
    "size that is none": ("hf new --to=hf --image_size=big", "--image_size=big: write pixels, 384"),
    "source that does not exist": ("vit new --to=hf", "vit does not exist."),
    "pattern that is none": ("--inspect=hf --leave_out=[", "no regular expression"),
    "size that patches do not fill": (
        "--inspect=hf --image_size=30",
        "not a multiple of the patch size 8. The nearest that are: 24 or 32.",
    ),
    "stray word": ("--inspect=hf timm", "What is 'timm'?"),
    "reference without a manifest": ("--verify=hf", "hf: there is no manifest.json there, nor"),
}
OFFLINE = {  # The client of the store tries for half a minute.
    "bucket without a network": (
        "--inspect=gs://vit_models/none.npz",
        "gs://vit_models/none.npz cannot be downloaded: ",
        "By hand: download https://storage.googleapis.com/vit_models/none.npz",
    ),
}
PREDICT = {
    "no head": ("--checkpoint=headless x.png", "headless has no head: it tells no classes."),
    "hint that contradicts": (
        "--checkpoint=hf --hints=width=3 x.png",
        "The hint width=3 contradicts the checkpoint, which has 16.",
    ),
    "checkpoint that does not exist": ("--checkpoint=nowhere x.png", "nowhere does not exist."),
}


@pytest.mark.parametrize(
    ("verb", "typed", "said"),
    [
        pytest.param(
            verb,
            typed,
            said,
            id=f"{verb}: {name}",
            marks=[pytest.mark.slow] if table is OFFLINE else [],
        )
        for verb, table in (("convert", CONVERT), ("convert", OFFLINE), ("predict", PREDICT))
        for name, (typed, *said) in table.items()
    ],
)
def test_the_command_line_says_it_too(shelf, verb, typed, said):
    headless = shelf.folder / "headless"
    if not headless.exists():
        export(tiny(VIT, num_classes=0), headless, to="hf")
    (shelf.folder / "x.png").touch()
    result = call(verb, *typed.split(), cwd=shelf.folder)
    assert result.code == 2 and result.err.startswith("error: "), result
    assert "Traceback" not in result.err and not (shelf.folder / "new").exists()
    assert not list(shelf.folder.glob("*.unfinished"))
    for words in said:
        assert words in result.err, f"{words!r} is not in {result.err!r}"


@pytest.mark.parametrize("to", ["google", "timm", "orbax"])
def test_a_mesh_of_other_axes_is_refused(tmp_path, to):
    export(tiny(), tmp_path / "a", to=to, change_numerics=True)
    hints = None if to == "orbax" else {"num_heads": 4}
    for axes in (("x",), ("data", "model")):
        mesh = jax.make_mesh((1,) * len(axes), axes, devices=jax.devices()[:1])
        with pytest.raises(ConfigError, match=r"lacks .*vit_jax\.parallel\.mesh\.make_mesh"):
            load_pretrained(tmp_path / "a", mesh=mesh, hints=hints)
