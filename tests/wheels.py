"""Builds the wheel of a copy of this clone: setuptools leaves its folders beside what it builds."""

import contextlib
import io
import pathlib

from setuptools import build_meta

from tests.conftest import ROOT


def build(folder: pathlib.Path) -> pathlib.Path:
    """Builds it from a copy in `folder`; returns the wheel, which is there as well."""
    source = folder / "source"
    for part in ("vit_jax", "configs", "tests", "docs/study"):
        for file in (*(ROOT / part).rglob("*.py"), *(ROOT / part).rglob("*.[cjt]s*")):
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "vit_jax" / "py.typed").touch()
    with contextlib.chdir(source), contextlib.redirect_stdout(io.StringIO()):
        return folder / build_meta.build_wheel(str(folder))
