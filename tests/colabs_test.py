"""The notebooks run from top to bottom against the wheel, and print the expected numbers.

An execution is skipped when neither a notebook nor the code that it used has changed since its copy
in docs/notebooks was made: then the outputs of that copy are checked.
"""

import re

import nbformat
import pytest

from tests import notebooks
from tests.conftest import ROOT

NAMES = ("analysis", "checkpoints", "finetune", "quickstart", "scaling_laws")


def output(name, tmp_path) -> str:
    """What a notebook prints and shows as text, a cell after the other."""
    notebook = notebooks.unchanged(name) or notebooks.execute(name, tmp_path)[0]
    texts = []
    for cell in notebook.cells:
        for out in cell.get("outputs", ()):
            assert out.output_type != "error"
            texts.append(out.get("text") or out.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


def table_of_parameters(text: str) -> dict[str, float]:
    """The first table of parameters in a text."""
    rows = re.findall(r"^  (\w+) +(-?[\d.e+-]+) +\[", text, flags=re.MULTILINE)
    parameters = {}
    for name, value in rows:
        parameters.setdefault(name, float(value))
    return parameters


@pytest.mark.slow
def test_scaling_laws(tmp_path):
    text = output("scaling_laws", tmp_path)
    # The frontier that the paper prints: .63, .32, .12, .52 (Zhai et al. 2021, ImageNet 10-shot).
    parameters = table_of_parameters(text)
    for name, value in {"a": 0.63, "b": 0.32, "c": 0.12, "d": 0.52}.items():
        assert parameters[name] == pytest.approx(value, abs=0.05)
    assert "7.31e+10 parameters and 1.34e+12 tokens" in text
    biases = re.findall(r"misplaced by (-[\d.]+)%", text)
    assert biases == ["-0.33", "-1.30", "-2.90", "-5.10"]
    assert "do NOT support extrapolation" in text
    # The second half: our own study, whose answers `study_test` checks.
    _, ours = text.split("210 runs, 420 rows")
    assert "family=resnet: power_floor" in ours and "family=vit: frontier" in ours
    assert "6 of them held back: params>=50%" in ours and "family=vit: chinchilla_repeat" in ours


@pytest.mark.slow
def test_quickstart(tmp_path):
    text = output("quickstart", tmp_path)
    assert float(re.search(r"top-1 ([\d.]+)% of 355", text)[1]) > 85
    assert "probability  class" in text and text.count("<InlineFigure") == 3


@pytest.mark.slow
def test_finetune(tmp_path):
    text = output("finetune", tmp_path)
    found = re.findall(r"^([a-zA-Z, 0-9]+?) +([\d.]+)%  \(95%", text, re.M)
    accuracies = {name: float(value) for name, value in found}
    assert accuracies.keys() == {
        "linear probe", "LoRA", "full", "full, 16 pixels", "from scratch"
    }  # fmt: skip
    assert max(accuracies, key=accuracies.get) == "full, 16 pixels"
    assert min(accuracies.values()) > 45  # Chance: 33%.


@pytest.mark.slow
def test_checkpoints(tmp_path):
    text = output("checkpoints", tmp_path)
    assert float(re.search(r"largest difference of a logit: (\S+)", text)[1]) < 1e-5
    assert "features.shape=(2, 32) attention.shape=(1, 2, 4, 4)" in text
    assert "position embedding resized from 4x4 to 4x8" in text


@pytest.mark.slow
def test_analysis(tmp_path):
    text = output("analysis", tmp_path)
    assert text.count("<InlineFigure") == 14 and "walkthrough.html" in text


def test_there_are_five():
    assert tuple(notebooks.TEXTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_text_and_notebook_are_paired(name):
    """Both have the same cells, and the address of this repository; neither has outputs."""
    stored = nbformat.read(notebooks.TEXTS[name].with_suffix(".ipynb"), as_version=4)
    nbformat.validate(stored)
    assert stored == notebooks.paired(name), "run `make notebooks`"
    assert f'address = "git+{notebooks.address()}"' in notebooks.TEXTS[name].read_text()
    assert notebooks.badge(name) in (ROOT / "README.md").read_text()
