"""The configs that come with vit_jax, by name: quickstart, finetune, scaling/isoflop, ..."""

import ast
import pathlib

_PACKAGE = pathlib.Path(__file__).parent.parent


def folder() -> pathlib.Path:
    """Returns the folder of the configs: in the installed package, or beside it in a clone."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, pathlib.Path]:
    """Returns {name: file}, sorted by name."""
    root = folder()
    files = sorted(path for path in root.rglob("*.py") if path.stem != "__init__")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def docstring(path: pathlib.Path) -> str:
    """Returns the docstring of a config file, without running the file."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""
