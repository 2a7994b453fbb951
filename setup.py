"""The packages of a wheel: vit_jax, and the folder configs/ inside of it as vit_jax/configs.

The rest of the metadata is in pyproject.toml. In a clone the configs stay beside vit_jax, where
readers look for them (vit_jax/config/shipped.py).
"""

from setuptools import find_namespace_packages, find_packages, setup

CONFIGS = {
    f"vit_jax.{name}": name.replace(".", "/")
    for name in find_namespace_packages(include=["configs*"])
}

setup(
    packages=[*find_packages(include=["vit_jax", "vit_jax.*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={"vit_jax": ["py.typed"], "vit_jax.pretrained": ["imagenet.tsv"]},
)
