"""The notebooks run from top to bottom, and print the expected numbers."""

import re

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


def executed(name: str) -> str:
    """What a notebook prints, a cell after the other; it runs in its own folder."""
    path = ROOT / "colabs" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert not [out for out in outputs if out.output_type == "error"]
    return "".join(out.get("text", "") for out in outputs if out.output_type == "stream")


def table_of_parameters(text: str) -> dict[str, float]:
    """The first table of parameters in a text."""
    rows = re.findall(r"^  (\w+) +(-?[\d.e+-]+) +\[", text, flags=re.MULTILINE)
    parameters = {}
    for name, value in rows:
        parameters.setdefault(name, float(value))
    return parameters


@pytest.mark.slow
def test_scaling_laws():
    output = executed("scaling_laws")
    # The frontier that the paper prints: .63, .32, .12, .52 (Zhai et al. 2021, ImageNet 10-shot).
    parameters = table_of_parameters(output)
    for name, value in {"a": 0.63, "b": 0.32, "c": 0.12, "d": 0.52}.items():
        assert parameters[name] == pytest.approx(value, abs=0.05)
    assert "7.31e+10 parameters and 1.34e+12 tokens" in output
    biases = re.findall(r"misplaced by (-[\d.]+)%", output)
    assert biases == ["-0.33", "-1.30", "-2.90", "-5.10"]
    assert "do NOT support extrapolation" in output
    # The second half: our own study, whose answers `study_test` checks.
    _, ours = output.split("210 runs, 420 rows")
    assert "family=resnet: power_floor" in ours and "family=vit: frontier" in ours
    assert "6 of them held back: params>=50%" in ours and "family=vit: chinchilla_repeat" in ours


@pytest.mark.slow
def test_any_checkpoint():
    output = executed("any_checkpoint")
    assert "logits.shape=(10, 10)" in output and "Done:" in output
    top1 = re.search(r"top-1 ([\d.]+)% of 80 images", output)
    assert top1 and float(top1[1]) > 70  # Visibly more than chance, 10%.
    assert output.count("Prediction(") == 3
    assert "['config.json', 'model.safetensors', 'preprocessor_config.json']" in output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
