"""vit_jax: train Vision Transformers, adapt published ones, and measure how they scale."""

import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.pretrained import Pretrained, load_pretrained

# jaxlib 0.9 logs false errors about CPU features for each program from the compilation cache. It
# reads the variable when JAX is imported.
if importlib.metadata.version("jaxlib").startswith("0.9."):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.2.0"
__all__ = ["Pretrained", "load_pretrained"]


def __getattr__(name: str) -> Any:
    """Imports the public names lazily: `import vit_jax` alone does not import JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vit_jax import pretrained

    return getattr(pretrained, name)
