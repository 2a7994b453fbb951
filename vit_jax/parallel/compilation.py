"""XLA's compilation: its persistent cache, and the memory that it leaves."""

import contextlib
import ctypes
import gc
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile

import jax

from vit_jax import storage
from vit_jax.errors import ConfigError
from vit_jax.telemetry import notes

_CACHE_DIR, _IS_ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
AUTO = "auto"  # The value of config.log.compilation_cache for the user's cache folder.
_LARGEST_CACHE = 2 * 2**30  # Bytes of all programs in the user's cache folder.


def release_unused_memory() -> None:
    """Returns to the system what the compiler has freed, where the C library is glibc.

    It keeps some 300 MB of a train step's compilation otherwise, which the arrays of the steps,
    allocated apart, do not use.
    """
    if sys.platform == "linux":
        gc.collect()
        with contextlib.suppress(AttributeError):  # musl has no malloc_trim.
            ctypes.CDLL(None).malloc_trim(0)


def enable_compilation_cache(folder: str) -> None:
    """Stores compiled programs in this folder and reads them from it; creates it if needed.

    JAX itself only warns about an unusable folder, and compiles everything at every start.

    Args:
      folder: `config.log.compilation_cache`: a folder; "auto": see `enable_user_compilation_cache`;
        "": JAX's own settings remain.

    Raises:
      ConfigError: the folder, not "auto", cannot be created or written to.
    """
    if folder == AUTO:
        enable_user_compilation_cache()
    elif folder:
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

    JAX_COMPILATION_CACHE_DIR, if the user or a test has set it, takes precedence. Without a usable
    folder a warning says so, and every program is compiled. Several processes may share the
    folder: of the processes of a run JAX lets only the first write.
    """
    if not getattr(jax.config, _CACHE_DIR):
        folder = user_cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:  # Also finds a full disk.
                probe.write(bytes(2**16))
            _limit_size(folder.parent)
        except OSError as error:
            notes.note(
                f"Compiled programs cannot be kept in {folder} ({storage.explain(error)}): they "
                "are compiled at every start. Name another folder in "
                "config.log.compilation_cache or XDG_CACHE_HOME."
            )
            return
        jax.config.update(_CACHE_DIR, str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def describe_compilation_cache() -> str:
    """Returns a line on the folder of compiled programs and how to turn it off; "" if it is off."""
    folder = getattr(jax.config, _CACHE_DIR)
    if not folder or not getattr(jax.config, _IS_ENABLED):
        return ""
    home = os.path.expanduser("~") + os.sep
    if folder.startswith(home):
        folder = f"~{os.sep}{folder.removeprefix(home)}"
    return f"compiled programs in {folder} (off: JAX_ENABLE_COMPILATION_CACHE=false)"


def _limit_size(user_cache: pathlib.Path) -> None:
    """Deletes the oldest programs, of other versions and processors too, above _LARGEST_CACHE.

    JAX's own limit, jax_compilation_cache_max_size, needs the package filelock; and a process that
    is killed while it writes leaves an entry without a time stamp, after which JAX stores no more.
    """
    entries = []
    for path in user_cache.glob("programs-*/*-cache"):
        with contextlib.suppress(FileNotFoundError):  # Another process may delete it, too.
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    left = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if left <= _LARGEST_CACHE:
            break
        path.unlink(missing_ok=True)
        left -= size


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
