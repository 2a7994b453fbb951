"""Pairs, executes and renders the notebooks: `make notebooks`, or `python -m tests.notebooks NAME`.

colabs/NAME.py is the text of a notebook (jupytext's percent format), colabs/NAME.ipynb the same for
Colab, without outputs, and docs/notebooks/NAME.ipynb a copy with outputs, to be read on GitHub.
A notebook is executed against the wheel, in an empty folder, as in Colab.
"""

import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile
import time
import tomllib
import zipfile
from typing import Any

import jupytext
import nbclient
import nbformat

from tests import wheels
from tests.conftest import ROOT

TEXTS = {path.stem: path for path in sorted((ROOT / "colabs").glob("*.py"))}
RENDERED = ROOT / "docs" / "notebooks"
_ADDRESS = re.compile(r'address = "git\+(.*)"')
_LONGEST_OUTPUT = 30  # Lines of a stream that a rendered copy keeps.
# Prints the files of vit_jax that a notebook has imported.
_LIST_MODULES = """
import json, sys
modules = {name: module for name, module in sys.modules.items() if name.startswith("vit_jax")}
print(json.dumps(sorted(module.__file__ for module in modules.values() if module.__file__)))
"""


def address() -> str:
    """The address of this repository, which pyproject.toml states once."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def badge(name: str) -> str:
    """The README's badge of a notebook: opens it in Colab, or here if it is not on GitHub."""
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    github = re.fullmatch(r"https://github\.com/(.*?)(\.git)?", address())
    path = f"colabs/{name}.ipynb"
    if github:
        path = f"https://colab.research.google.com/github/{github[1]}/blob/main/{path}"
    return f"[![Open in Colab]({image})]({path})"


def paired(name: str) -> nbformat.NotebookNode:
    """The notebook of a text; ids of cells are their numbers: equal texts make equal files."""
    notebook = jupytext.read(TEXTS[name])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "jupytext": {"formats": "ipynb,py:percent"},
    }
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata = {}
    return notebook


def pair(name: str) -> None:
    """Writes the repository's address into the text, and the notebook beside it."""
    text = TEXTS[name].read_text()
    TEXTS[name].write_text(_ADDRESS.sub(f'address = "git+{address()}"', text))
    nbformat.write(paired(name), TEXTS[name].with_suffix(".ipynb"))


def execute(name: str, folder: pathlib.Path) -> tuple[nbformat.NotebookNode, list[pathlib.Path]]:
    """Executes a notebook in an empty folder; returns it, and the files of vit_jax that it used."""
    site, work = folder / "site", folder / "work"
    work.mkdir()
    with zipfile.ZipFile(wheels.build(folder)) as wheel:
        wheel.extractall(site)
    notebook = paired(name)
    notebook.cells.append(nbformat.v4.new_code_cell(_LIST_MODULES))
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(work)}}
    )
    # Not the options of the tests' own process.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_", "NPROC"))}
    client.execute(env={**env, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"})
    files = [pathlib.Path(file) for file in json.loads(notebook.cells.pop().outputs[0].text)]
    assert all(file.is_relative_to(site) for file in files), "it did not use the wheel"
    return notebook, [file.relative_to(site) for file in files]


def digest(name: str, files: list[str]) -> str:
    """The digest of a notebook and of files of vit_jax, as they are in this clone now."""
    hasher = hashlib.sha256(TEXTS[name].read_bytes())
    for file in files:
        inside = pathlib.Path(file)
        path = ROOT / (inside if inside.parts[1] != "configs" else inside.relative_to("vit_jax"))
        hasher.update(path.read_bytes() if path.exists() else b"removed")
    return hasher.hexdigest()


def unchanged(name: str) -> nbformat.NotebookNode | None:
    """The rendered copy, if neither the notebook nor the code that it used has changed since."""
    path = RENDERED / f"{name}.ipynb"
    if not path.exists():
        return None
    notebook = nbformat.read(path, as_version=4)
    record = notebook.metadata["vit_jax"]
    return notebook if record["digest"] == digest(name, record["files"]) else None


def render(name: str) -> None:
    """Executes a notebook, and writes it with its outputs to docs/notebooks."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        notebook, used = execute(name, pathlib.Path(folder))
        work = os.path.join(os.path.realpath(folder), "work")
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = _merged(cell.outputs)
            for output in cell.get("outputs", ()):
                if output.output_type == "stream":
                    output.text = _shortened(output.text.replace(work, "."))
    files = sorted(map(str, used))
    notebook.metadata["vit_jax"] = {"files": files, "digest": digest(name, files)}
    RENDERED.mkdir(exist_ok=True)
    nbformat.write(notebook, RENDERED / f"{name}.ipynb")
    print(f"{name}: {time.monotonic() - started:.0f} s")


def _merged(outputs: list[Any]) -> list[Any]:
    """Joins what was printed to a stream in several parts."""
    merged = []
    for output in outputs:
        name = output.get("name")  # Only a stream has one.
        if name and merged and merged[-1].get("name") == name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def _shortened(text: str) -> str:
    lines = [line.rpartition("\r")[2] for line in text.rstrip("\n").split("\n")]
    if len(lines) > _LONGEST_OUTPUT:
        half = _LONGEST_OUTPUT // 2
        lines = [*lines[:half], f"[{len(lines) - 2 * half} lines]", *lines[-half:]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for chosen in sys.argv[1:] or TEXTS:
        pair(chosen)
        if unchanged(chosen) is None:
            render(chosen)
