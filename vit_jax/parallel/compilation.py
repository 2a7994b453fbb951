"""Programs that XLA has compiled, kept for the next start."""

import os

import jax

from vit_jax import storage
from vit_jax.errors import ConfigError


def keep_compiled(folder: str) -> None:
    """Compiled programs go to this folder and are taken from there; made if it is not there.

    JAX itself only warns that it cannot write there, and compiles everything at every start.

    Args:
      folder: `config.log.compilation_cache`.

    Raises:
      ConfigError: it cannot be made or written to.
    """
    path = storage.as_path(folder, name="log.compilation_cache")
    try:
        storage.make_folder(path)
        if storage.is_local(path) and not os.access(path, os.W_OK):
            raise OSError("it is read-only")
    except OSError as error:
        raise ConfigError(
            f"log.compilation_cache={folder} cannot be used: {storage.explain(error)}. Name a "
            "folder that can be written to, or none."
        ) from error
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
