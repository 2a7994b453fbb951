"""XLA's persistent compilation cache."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys

import jax

from vit_jax import storage
from vit_jax.errors import ConfigError

_CACHE_DIR = "jax_compilation_cache_dir"


def enable_compilation_cache(folder: str) -> None:
    """Stores compiled programs in this folder and reads them from it; creates it if needed.

    JAX itself only warns about an unusable folder, and compiles everything at every start.

    Args:
      folder: `config.log.compilation_cache`.

    Raises:
      ConfigError: the folder cannot be created or written to.
    """
    path = storage.as_path(folder, name="log.compilation_cache")
    problem = f"log.compilation_cache={folder} cannot be used"
    hint = "Name a folder that can be written to, or none."
    with storage.reported(ConfigError, problem, hint=hint):
        storage.make_folder(path)
        if storage.is_local(path) and not os.access(path, os.W_OK):
            raise OSError("it is read-only")
    jax.config.update(_CACHE_DIR, os.fspath(path))


def enable_user_compilation_cache() -> None:
    """Caches all programs of this process, even the smallest, in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR, if the user or a test has set it, takes precedence.
    """
    if not getattr(jax.config, _CACHE_DIR):
        jax.config.update(_CACHE_DIR, str(user_cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def user_cache_folder() -> pathlib.Path:
    """Returns the folder of compiled programs for this user, Python, jaxlib and processor.

    XLA:CPU compiles for the instruction set of the processor, so machines that share a home folder
    need different folders. JAX's own key covers the program, the flags and the versions.
    """
    parts = [sys.version, importlib.metadata.version("jaxlib"), platform.machine(), _processor()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return storage.user_cache() / f"programs-{key}"


def _processor() -> str:
    """Returns the model and instruction sets of the first processor, as Linux lists them."""
    try:
        first = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    lines = first.splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
