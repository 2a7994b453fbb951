"""What `pip install` puts where: vit_jax with its configs, and no name that could be another's."""

import configparser
import zipfile

from tests import wheels
from tests.conftest import ROOT


def test_a_wheel_holds_vit_jax_with_its_configs_alone(tmp_path):
    with zipfile.ZipFile(wheels.build(tmp_path)) as archive:
        names = set(archive.namelist())
        (metadata,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{metadata}/entry_points.txt").decode())
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "vit_jax").rglob("*.py")}
    configs = (ROOT / "configs").rglob("*.py")
    files |= {f"vit_jax/{path.relative_to(ROOT)}" for path in configs} | {"vit_jax/py.typed"}
    # Data of the package.
    files |= {"vit_jax/pretrained/imagenet.tsv", "vit_jax/study/runs.csv"}
    files |= {f"vit_jax/analysis/walkthrough_page/page.{kind}" for kind in ("css", "js")}
    assert {name for name in names if not name.startswith(metadata)} == files
    assert dict(scripts["console_scripts"]) == {"vit-jax": "vit_jax.__main__:main"}
