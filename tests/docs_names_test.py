"""Modules, functions and files that texts, comments and messages name do exist."""

import importlib
import re

import pytest

from tests.conftest import ROOT

FILES = [
    path
    for pattern in ("*.md", "docs/*.md", "vit_jax/**/*.py", "configs/**/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
]
_FOLDERS = "vit_jax|benchmarks|configs|tests"
NAME = re.compile(rf"(?<![\w./])(?:{_FOLDERS})(?:\.[A-Za-z_]\w*)+(?![\w/*])")
FILE = re.compile(rf"(?<![\w./])(?:{_FOLDERS}|colabs|docs)/[\w/.-]+\.\w+")
# The package, and the type that it names, in which TensorBoard's files are written.
OURS_NOT = {"vit_jax.Event", "vit_jax/event.proto"}


def exists(name: str) -> bool:
    """Whether a dotted name is one of a module, or of something in a module."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:n])
        if path.is_dir() or path.with_suffix(".py").is_file():
            break
    value = importlib.import_module(".".join(parts[:n])) if n < len(parts) else None
    for part in parts[n:]:
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def named(pattern: re.Pattern) -> dict[str, str]:
    """What is named in the files, and one of those that name it."""
    return {
        name: str(file.relative_to(ROOT))
        for file in FILES
        for name in pattern.findall(file.read_text())
        if name not in OURS_NOT
    }


@pytest.fixture(scope="module")
def existing():
    """The dotted names that exist. To find out imports most of vit_jax, which is setup."""
    return {name for name in named(NAME) if exists(name)}


def test_dotted_names(existing):
    files_by_name = named(NAME)
    assert len(files_by_name) > 150
    assert {name: file for name, file in files_by_name.items() if name not in existing} == {}


def test_files():
    files_by_name = named(FILE)
    assert len(files_by_name) > 20
    assert {name: file for name, file in files_by_name.items() if not (ROOT / name).exists()} == {}


def test_links_between_pages():
    """Each leads to a file, and to a heading of it if it names one."""
    for page in (path for path in FILES if path.suffix == ".md"):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), (page.name, target)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
                names = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
                assert anchor in names, (page.name, target, anchor)
