"""The folders of vit_jax: ARCHITECTURE.md shows them, and imports go down its order only."""

import ast
import graphlib
import re

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "vit_jax"
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
# The order of the folders from top to bottom, as a line of ARCHITECTURE.md.
ORDER = [
    [name.strip() for name in layer.split(",")]
    for layer in re.search(r"^commands -> .*?errors$", ARCHITECTURE, re.M | re.S)[0].split("->")
]
LAYERS = {name: depth for depth, names in enumerate(ORDER) for name in names}
# Every module by its path from the package: ("data", "order"), ("train",).
MODULES = {
    tuple(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"):
    path for path in PACKAGE.rglob("*.py")
}  # fmt: skip


def imported(path):
    """The modules of vit_jax that a file imports, wherever it does, by their paths."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            while package == "vit_jax" and parts and tuple(parts) not in MODULES:
                parts.pop()
            if package == "vit_jax" and parts:
                yield tuple(parts)


def place(module):
    """The folder or file directly in vit_jax that a module belongs to."""
    is_command = module[-1] == "__main__" or module[0] not in LAYERS
    return "commands" if is_command else module[0]


def test_imports_go_down():
    upward = [
        f"{'/'.join(module)} imports {'/'.join(other)}"
        for module, path in MODULES.items()
        if module
        for other in imported(path)
        if LAYERS[place(other)] < LAYERS[place(module)]
    ]
    assert not upward


def test_no_folders_import_each_other():
    graph = {}
    for module, path in MODULES.items():
        if module and place(module) != "commands":
            others = {place(other) for other in imported(path)} - {place(module)}
            graph.setdefault(place(module), set()).update(others)
    graphlib.TopologicalSorter(graph).prepare()  # Raises CycleError.


def test_no_files_import_each_other():
    graph = {module: set(imported(path)) - {module} for module, path in MODULES.items() if module}
    packages = [module for module, path in MODULES.items() if path.name == "__init__.py"]
    for module in packages:  # A package's file names what others define.
        graph.pop(module, None)
    graphlib.TopologicalSorter(graph).prepare()


def test_laws_depend_on_nothing_else():
    for module, path in MODULES.items():
        if module and module[0] == "scaling":
            others = {other for other in imported(path) if other[0] != "scaling"}
            style = {("analysis", "figures"), ("analysis", "pages")}
            assert others <= {("errors",), ("storage",), *style}, (module, others)


def test_the_architecture_shows_every_folder_and_command():
    tree = re.search(r"```\nvit_jax/\n(.*?)```", ARCHITECTURE, re.S)[1]
    shown = set(re.findall(r"^  (?:  )?([a-z_]+/)", tree, re.M))
    shown |= {word for line in tree.splitlines() for word in re.findall(r"\b[a-z]+\.py\b", line)}
    folders = {f"{path.parent.name}/" for path in PACKAGE.rglob("__init__.py")} - {"vit_jax/"}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert shown >= folders | files
    assert {name for name in shown if name.endswith(".py")} == files
    assert set(LAYERS) - {"commands"} == {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    } | {"storage", "errors"}


@pytest.mark.parametrize("folder", sorted(p.parent for p in PACKAGE.rglob("*/__init__.py")))
def test_a_folders_docstring_is_its_table_of_contents(folder):
    contents = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    inside = {p.stem for p in folder.glob("*.py")} | {
        p.parent.name for p in folder.glob("*/__init__.py")
    }
    missing = {
        name
        for name in inside - {"__init__", "__main__"}
        if not re.search(rf"\b{name}\b", contents)
    }
    assert not missing
