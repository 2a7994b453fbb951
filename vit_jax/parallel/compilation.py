"""Programs that XLA has compiled, kept for the next start."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys

import jax

from vit_jax import storage
from vit_jax.errors import ConfigError


def enable_compilation_cache(folder: str) -> None:
    """Compiled programs go to this folder and are taken from there; made if it is not there.

    JAX itself only warns that it cannot write there, and compiles everything at every start.

    Args:
      folder: `config.log.compilation_cache`.

    Raises:
      ConfigError: it cannot be made or written to.
    """
    path = storage.as_path(folder, name="log.compilation_cache")
    what = f"log.compilation_cache={folder} cannot be used"
    hint = "Name a folder that can be written to, or none."
    with storage.reported(ConfigError, what, hint=hint):
        storage.make_folder(path)
        if storage.is_local(path) and not os.access(path, os.W_OK):
            raise OSError("it is read-only")
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))


def enable_user_compilation_cache() -> None:
    """Programs of this process, even the smallest, are kept in the user's cache.

    Where the user or a test has named a folder (JAX_COMPILATION_CACHE_DIR), that one is taken.
    """
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(user_programs()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def user_programs() -> pathlib.Path:
    """The folder of compiled programs of this user, Python, jaxlib and processor.

    XLA:CPU compiles for the instructions of the processor: another machine that mounts the same
    home has its own folder. JAX's own key covers the program, the flags and the versions.
    """
    parts = [sys.version, importlib.metadata.version("jaxlib"), platform.machine(), _processor()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return storage.user_cache() / f"programs-{key}"


def _processor() -> str:
    """The first processor's model and instruction sets, where Linux tells them."""
    try:
        first = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    lines = first.splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
