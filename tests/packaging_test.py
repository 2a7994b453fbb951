"""What `pip install` puts where: vit_jax, and no name that could be another's."""

import tomllib
import zipfile

from setuptools import build_meta, find_packages

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]["find"]


def test_every_folder_of_vit_jax_is_installed():
    folders = {path.parent for path in (ROOT / "vit_jax").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(find_packages(ROOT, **PACKAGES)) == names


def test_a_wheel_holds_vit_jax_alone(tmp_path, monkeypatch):
    # A copy: setuptools leaves its folders beside what it builds.
    for name in find_packages(ROOT):
        if name.partition(".")[0] in ("vit_jax", "configs"):
            folder = tmp_path / "source" / name.replace(".", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for file in (ROOT / name.replace(".", "/")).glob("*.py"):
                (folder / file.name).write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path / "source")
    wheel = build_meta.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"vit_jax"}
