"""vit_jax: train Vision Transformers, adapt published ones, and measure how they scale.

`dir(vit_jax)` lists the public names; docs/api.md describes them and says what is stable.
"""

import importlib
import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax import analysis
    from vit_jax.analysis.comparison import compare_runs
    from vit_jax.config import base_config
    from vit_jax.config.file import load_config
    from vit_jax.errors import VitJaxError
    from vit_jax.inference.evaluate import evaluate
    from vit_jax.inference.predict import predict
    from vit_jax.models import (
        Mixer,
        MixerConfig,
        Resnet,
        ResnetConfig,
        Vit,
        VitConfig,
        build,
    )
    from vit_jax.pretrained.create import create, list_models
    from vit_jax.pretrained.exports import export
    from vit_jax.pretrained.inspection import inspect
    from vit_jax.pretrained.load import load_pretrained
    from vit_jax.pretrained.model import Pretrained
    from vit_jax.pretrained.preprocess import preprocess
    from vit_jax.scaling.fit import fit_law
    from vit_jax.sweeps.listing import list_runs
    from vit_jax.training.run import train

# jaxlib 0.9 logs false errors about CPU features for each program from the compilation cache. It
# reads the variable when JAX is imported.
if importlib.metadata.version("jaxlib").startswith("0.9."):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.2.0"

# Public name -> the module that defines it, which is imported when the name is first used: `import
# vit_jax` and `vit-jax --help` do not import JAX.
_MODULES = {
    "Mixer": "vit_jax.models",
    "MixerConfig": "vit_jax.models",
    "Pretrained": "vit_jax.pretrained.model",
    "Resnet": "vit_jax.models",
    "ResnetConfig": "vit_jax.models",
    "Vit": "vit_jax.models",
    "VitConfig": "vit_jax.models",
    "VitJaxError": "vit_jax.errors",
    "base_config": "vit_jax.config",
    "build": "vit_jax.models",
    "compare_runs": "vit_jax.analysis.comparison",
    "create": "vit_jax.pretrained.create",
    "evaluate": "vit_jax.inference.evaluate",
    "export": "vit_jax.pretrained.exports",
    "fit_law": "vit_jax.scaling.fit",
    "inspect": "vit_jax.pretrained.inspection",
    "list_models": "vit_jax.pretrained.create",
    "list_runs": "vit_jax.sweeps.listing",
    "load_config": "vit_jax.config.file",
    "load_pretrained": "vit_jax.pretrained.load",
    "predict": "vit_jax.inference.predict",
    "preprocess": "vit_jax.pretrained.preprocess",
    "train": "vit_jax.training.run",
}
__all__ = [
    "Mixer",
    "MixerConfig",
    "Pretrained",
    "Resnet",
    "ResnetConfig",
    "Vit",
    "VitConfig",
    "VitJaxError",
    "analysis",
    "base_config",
    "build",
    "compare_runs",
    "create",
    "evaluate",
    "export",
    "fit_law",
    "inspect",
    "list_models",
    "list_runs",
    "load_config",
    "load_pretrained",
    "predict",
    "preprocess",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    if name == "analysis":
        return importlib.import_module("vit_jax.analysis")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
