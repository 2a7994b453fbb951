"""File operations in a local folder or in an object store (gs://bucket/folder).

Every path of a run is an `etils.epath.Path`, local or not; fsspec accesses the store. This module
adds what these two lack. Its functions convert all errors of the layers below to OSError.

- Objects are written atomically, and cannot be appended to; a store has no folders.
- `exists` and `names` raise if a disk or store is unreachable; `epath.Path.exists` returns False
  for an unreachable disk.
- etils and fsspec cannot write a local file atomically, nor limit the size of a read.

Importing this module replaces `epath.Path.glob`, for every library that uses it: see `_glob`.
"""

import contextlib
import errno
import functools
import glob
import logging
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from importlib.util import find_spec

from etils import epath

from vit_jax.errors import ConfigError, VitJaxError

# Orbax 0.12 writes checkpoints to folders and to Google Cloud Storage only.
STORE = "gs"
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>.*)", re.DOTALL)
# etils interprets the local folders /gs, /s3, ... as the stores of these names.
_RESERVED = re.compile(r"/+(gs|s3|az|hf)(/|$)")
# The class of all paths, local and remote; etils exports no name for it.
_PATH = type(epath.Path())
_etils_glob = _PATH.glob


def _glob(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Matches `pattern` in a folder whose path is taken literally, like `pathlib.Path.glob`.

    etils 1.15 matches the joined path instead. Orbax (which writes arrays and reads metadata), TFDS
    and JAX's compilation cache call it: below a folder `exp[1]` they would find nothing, and below
    `exp*` also the files of `exp1`.
    """
    if is_local(folder):
        yield from (folder / name for name in glob.iglob(pattern, root_dir=folder))
    else:  # `as_path` refuses addresses with such characters.
        yield from _etils_glob(folder, pattern)


_PATH.glob = _glob


def as_path(path: epath.PathLike, *, name: str = "path") -> epath.Path:
    """Checks a path or address that a user wrote; expands ~ to the home folder.

    Args:
      path: a local path, or gs://bucket/folder.
      name: name of the setting in error messages, such as "--workdir".

    Raises:
      ConfigError: the path is empty, the address is not supported, or gcsfs is not installed.
    """
    text = os.fspath(path)
    setting = f"{name}={text}"
    if not text:
        raise ConfigError(f"{name} is empty: give a path, or gs://bucket/folder.")
    if "\0" in text:
        raise ConfigError(f"{name}={text!r}: a path cannot contain a zero byte.")
    if match := _ADDRESS.match(text):
        _check_address(match["scheme"], match["rest"], setting)
        _prepare(setting)
        return epath.Path(text)
    if match := _RESERVED.match(text):
        raise ConfigError(
            f"{setting}: folders below /{match[1]} would be interpreted as an object store. "
            "Create a link to the folder with another name, and use that."
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{setting}: there is no such home folder. For a folder named so, write ./{text}."
        )
    return epath.Path(expanded)


def _check_address(scheme: str, rest: str, setting: str) -> None:
    if scheme != STORE:
        raise ConfigError(
            f"{setting}: only local or mounted folders and {STORE}:// addresses are supported."
        )
    slash, bucket, *parts = rest.split("/") if rest.startswith("/") else ("no slash", "")
    if slash or not bucket or not any(parts):
        raise ConfigError(f"{setting}: write gs://bucket/folder.")
    if {".", ".."} & {bucket, *parts}:
        raise ConfigError(
            f"{setting}: an object store does not resolve . and ..: write the address in full."
        )
    if strange := set(re.findall(r"[*?\[\]{}#\x00-\x1f]", rest)):
        raise ConfigError(
            f"{setting}: {' '.join(map(repr, sorted(strange)))} would be interpreted as a pattern: "
            "choose a name without it."
        )


@functools.cache
def _prepare(setting: str) -> None:
    """Checks that gcsfs is installed, and configures it."""
    if find_spec("gcsfs") is None:
        raise ConfigError(
            f'{setting}: gcsfs is not installed. Install it with: pip install -e ".[gcs]".'
        )
    import fsspec.config

    # TensorStore and other processes also write to the store: cached listings would be stale.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # gcsfs logs the tracebacks of errors that it also raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def is_local(path: epath.PathLike) -> bool:
    """Returns whether a path belongs to the local file system."""
    return not os.fspath(path).startswith(f"{STORE}://")


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path, without resolving links and ..."""
    return epath.Path(pathlib.Path(path).absolute()) if is_local(path) else epath.Path(path)


def exists(path: epath.PathLike) -> bool:
    """Returns whether a file or folder exists."""
    with _os_errors(path):
        if not is_local(path):
            return epath.Path(path).exists()
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def names(folder: epath.PathLike) -> list[str]:
    """Returns the sorted names in a folder; an empty list if the folder does not exist."""
    with _os_errors(folder):
        try:
            if is_local(folder):
                return sorted(os.listdir(folder))
            return sorted(path.name for path in epath.Path(folder).iterdir())
        except FileNotFoundError:
            return []


def make_folder(folder: epath.PathLike) -> None:
    """Creates a folder and its parents; in a store, checks that the bucket exists."""
    with _os_errors(folder):
        if is_local(folder):
            os.makedirs(folder, exist_ok=True)
            return
        bucket = os.fspath(folder).split("/")[2]
        if not epath.Path(f"{STORE}://{bucket}").exists():
            raise FileNotFoundError(f"there is no bucket {bucket}")


def make_subfolder(folder: epath.PathLike) -> None:
    """Creates a folder in a work directory; the folder must not be a link (its parent may be)."""
    check_no_link(folder)
    make_folder(folder)


def check_no_link(path: epath.PathLike) -> None:
    """Raises OSError if the path is a link: files would be read or written elsewhere."""
    if is_local(path) and os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a link, and would lead out of the work directory")


def read_bytes(path: epath.PathLike, *, limit: int | None = None) -> bytes:
    """Returns the content of a file.

    Args:
      path: the file.
      limit: maximum size in bytes; a larger file raises OSError.
    """
    with _os_errors(path):
        with epath.Path(path).open("rb") as file:
            content = file.read(-1 if limit is None else limit + 1)
        if limit is not None and len(content) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes")
        return content


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file atomically; it is on the disk when this returns."""
    with _os_errors(path):
        if not is_local(path):
            epath.Path(path).write_bytes(content)
            return
        path = pathlib.Path(path)
        # Each writer has its own temporary file: of two concurrent writers, the last one wins.
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def create(path: epath.PathLike, content: bytes) -> None:
    """Creates an object in a store atomically; raises FileExistsError if it exists."""
    import fsspec

    with _os_errors(path):
        system, name = fsspec.url_to_fs(os.fspath(path))
        system.pipe_file(name, content, mode="create")


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes new names in a folder survive a power failure, if the file system supports it."""
    with contextlib.suppress(OSError):
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def rename(source: epath.PathLike, target: epath.PathLike) -> None:
    """Renames a file or folder; `target` must not exist."""
    with _os_errors(source):
        epath.Path(source).rename(target)


def delete(path: epath.PathLike) -> None:
    """Deletes a file."""
    with _os_errors(path):
        epath.Path(path).unlink()


def identity(path: epath.PathLike) -> tuple[int | str, ...] | None:
    """Returns a value that changes when a file is replaced; None if the file does not exist.

    The value is the device and inode of a local file, or the generation of an object, which every
    write changes.
    """
    with _os_errors(path):
        try:
            if is_local(path):
                status = os.stat(path)
                return status.st_dev, status.st_ino
            import fsspec

            system, name = fsspec.url_to_fs(os.fspath(path))
            return (system.info(name)["generation"],)
        except (FileNotFoundError, NotADirectoryError):
            return None


def explain(error: OSError) -> str:
    """Returns a short description of an error."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def reported(kind: type[VitJaxError], what: str, *, hint: str = "") -> Iterator[None]:
    """Converts an OSError to an error that the user can correct: "WHAT: why. HINT".

    Args:
      kind: type of the new error.
      what: what failed, such as "runs/a cannot be written".
      hint: what to do about it.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {explain(error)}.{hint and ' '}{hint}") from error


@contextlib.contextmanager
def _os_errors(path: epath.PathLike) -> Iterator[None]:
    """Converts any error of a remote path to an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # An error of gcsfs, aiohttp, requests or google.auth.
        if is_local(path):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def user_cache() -> pathlib.Path:
    """Returns the user's cache folder; need not exist.

    Source: the XDG Base Directory Specification, which requires absolute paths.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    home = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "vit_jax"
