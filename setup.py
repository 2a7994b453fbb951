"""The packages of a wheel: vit_jax, configs/ in it as vit_jax/configs, and the table of our study.

The rest of the metadata is in pyproject.toml. In a clone the configs stay beside vit_jax, where
readers look for them (vit_jax/config/shipped.py), and the table in docs/study.
"""

from setuptools import find_namespace_packages, find_packages, setup

CONFIGS = {
    f"vit_jax.{name}": name.replace(".", "/")
    for name in find_namespace_packages(include=["configs*"])
}

STUDY = {"vit_jax.study": "docs/study"}

setup(
    packages=[*find_packages(include=["vit_jax", "vit_jax.*"]), *CONFIGS, *STUDY],
    package_dir=CONFIGS | STUDY,
    package_data={
        "vit_jax": ["py.typed"],
        "vit_jax.analysis.walkthrough_page": ["page.css", "page.js"],
        "vit_jax.pretrained": ["imagenet.tsv"],
        "vit_jax.study": ["runs.csv"],
    },
)
