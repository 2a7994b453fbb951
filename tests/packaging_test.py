"""What `pip install` puts where: vit_jax with its configs, and no name that could be another's."""

import configparser
import zipfile

from setuptools import build_meta

from tests.conftest import ROOT


def test_a_wheel_holds_vit_jax_with_its_configs_alone(tmp_path, monkeypatch):
    source = tmp_path / "source"  # A copy: setuptools leaves its folders beside what it builds.
    for folder in ("vit_jax", "configs", "tests"):
        for file in (*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.tsv")):
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "vit_jax" / "py.typed").touch()
    monkeypatch.chdir(source)
    wheel = build_meta.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{metadata}/entry_points.txt").decode())
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "vit_jax").rglob("*.py")}
    configs = (ROOT / "configs").rglob("*.py")
    files |= {f"vit_jax/{path.relative_to(ROOT)}" for path in configs} | {"vit_jax/py.typed"}
    files |= {"vit_jax/pretrained/imagenet.tsv"}  # Data of the package.
    assert {name for name in names if not name.startswith(metadata)} == files
    assert dict(scripts["console_scripts"]) == {"vit-jax": "vit_jax.__main__:main"}
