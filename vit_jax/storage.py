"""Where files are: in a folder of this machine, or in an object store (gs://bucket/folder).

Every path of a run is an `etils.epath.Path`, local or not, and fsspec reaches the store. What these
two do not do is here; the functions raise nothing but OSError, whatever the layers below raise:

- An object appears whole or not at all, and cannot be appended to; there are no folders.
- That a disk or store cannot be reached is not the same as that there is nothing: `exists` and
  `names` raise, where `epath.Path.exists` says of a disk that there is no such file.
- etils and fsspec cannot write a local file whole or not at all, nor bound what is read.

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

# Orbax 0.12 writes checkpoints to folders and to Google Cloud Storage, to no other store.
STORE = "gs"
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>.*)", re.DOTALL)
# etils takes the local folders /gs, /s3, ... for the stores of these names.
_TAKEN = re.compile(r"/+(gs|s3|az|hf)(/|$)")
# The class of all paths, local and remote; etils exports no name for it.
_PATH = type(epath.Path())
_etils_glob = _PATH.glob


def _glob(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Matches `pattern` in a folder whose own path is taken literally, as `pathlib.Path.glob` does.

    etils 1.15 joins the two and matches the whole. Orbax calls it while it writes arrays and reads
    metadata, TFDS while it looks for data sets, JAX in its compilation cache: below a folder named
    `exp[1]` they would find nothing, and below `exp*` also the files below `exp1`.
    """
    if is_local(folder):
        yield from (folder / name for name in glob.iglob(pattern, root_dir=folder))
    else:  # `as_path` refuses addresses with such characters.
        yield from _etils_glob(folder, pattern)


_PATH.glob = _glob


def as_path(path: epath.PathLike, *, name: str = "path") -> epath.Path:
    """A path or address that a user has named; ~ is the home folder.

    Args:
      path: a local path, or gs://bucket/folder.
      name: what it is called where the user wrote it, such as "--workdir"; for errors.

    Raises:
      ConfigError: it is empty, or an address that cannot be used; or what is needed to use it is
        not installed.
    """
    text = os.fspath(path)
    said = f"{name}={text}"
    if not text:
        raise ConfigError(f"{name} is empty: give a path, or gs://bucket/folder.")
    if "\0" in text:
        raise ConfigError(f"{name}={text!r}: no path has a zero byte.")
    if match := _ADDRESS.match(text):
        _check_address(match["scheme"], match["rest"], said)
        _prepare(said)
        return epath.Path(text)
    if _TAKEN.match(text):
        raise ConfigError(
            f"{said}: folders below /{_TAKEN.match(text)[1]} are taken for an object store's. Give "
            "the folder another name, by a link."
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(f"{said}: there is no such home folder. If ~ is meant, write ./{text}.")
    return epath.Path(expanded)


def _check_address(scheme: str, rest: str, said: str) -> None:
    if scheme != STORE:
        raise ConfigError(
            f"{said}: only folders of this machine (mounted ones, too) and {STORE}:// will do."
        )
    slash, bucket, *parts = rest.split("/") if rest.startswith("/") else ("no slash", "")
    if slash or not bucket or not any(parts):
        raise ConfigError(f"{said}: write gs://bucket/folder.")
    if {".", ".."} & {bucket, *parts}:
        raise ConfigError(f"{said}: an object store knows no . and ..: write the address in full.")
    if strange := set(re.findall(r"[*?\[\]{}#\x00-\x1f]", rest)):
        raise ConfigError(
            f"{said}: {' '.join(map(repr, sorted(strange)))} would be taken for a pattern: choose "
            "a name without."
        )


@functools.cache
def _prepare(said: str) -> None:
    """Makes ready for the object store."""
    if find_spec("gcsfs") is None:
        raise ConfigError(
            f'{said}: gcsfs is not installed. Install it with: pip install -e ".[gcs]".'
        )
    import fsspec.config

    # Arrays are written past gcsfs, and other processes write, too: what it remembers of folders
    # would be wrong.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # It prints tracebacks of what it raises as well.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is one of this machine's file system."""
    return not os.fspath(path).startswith(f"{STORE}://")


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root on, with its links and .. as they are."""
    return epath.Path(pathlib.Path(path).absolute()) if is_local(path) else epath.Path(path)


def exists(path: epath.PathLike) -> bool:
    """Whether there is a file or folder of this name."""
    with _os_errors(path):
        if not is_local(path):
            return epath.Path(path).exists()
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def names(folder: epath.PathLike) -> list[str]:
    """Names in a folder, sorted; none if there is no such folder."""
    with _os_errors(folder):
        try:
            if is_local(folder):
                return sorted(os.listdir(folder))
            return sorted(path.name for path in epath.Path(folder).iterdir())
        except FileNotFoundError:
            return []


def make_folder(folder: epath.PathLike) -> None:
    """Makes a folder and those above it; in a store, checks that there is such a bucket."""
    with _os_errors(folder):
        if is_local(folder):
            os.makedirs(folder, exist_ok=True)
            return
        bucket = os.fspath(folder).split("/")[2]
        if not epath.Path(f"{STORE}://{bucket}").exists():
            raise FileNotFoundError(f"there is no bucket {bucket}")


def make_subfolder(folder: epath.PathLike) -> None:
    """Makes a folder in a work directory, which may itself be a link; what is in it may not."""
    check_no_link(folder)
    make_folder(folder)


def check_no_link(path: epath.PathLike) -> None:
    """Raises OSError if what is read and written there would be elsewhere."""
    if is_local(path) and os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a link, and would lead out of the work directory")


def read_bytes(path: epath.PathLike, *, limit: int | None = None) -> bytes:
    """All that a file holds.

    Args:
      path: of the file.
      limit: in bytes; what is larger is an error.
    """
    with _os_errors(path):
        with epath.Path(path).open("rb") as file:
            content = file.read(-1 if limit is None else limit + 1)
        if limit is not None and len(content) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes")
        return content


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all; it is on the disk when this returns."""
    with _os_errors(path):
        if not is_local(path):
            epath.Path(path).write_bytes(content)
            return
        path = pathlib.Path(path)
        # Each writer has its own: of two that write at once, the last one's file stays.
        unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        _sync_folder(path.parent)


def create(path: epath.PathLike, content: bytes) -> None:
    """Creates an object in a store; raises FileExistsError, atomically, if it is there."""
    import fsspec

    with _os_errors(path):
        system, name = fsspec.url_to_fs(os.fspath(path))
        system.pipe_file(name, content, mode="create")


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes new names in a folder outlive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def rename(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives a file or folder another name; `target` must not be there."""
    with _os_errors(source):
        epath.Path(source).rename(target)


def delete(path: epath.PathLike) -> None:
    """Deletes a file."""
    with _os_errors(path):
        epath.Path(path).unlink()


def identity(path: epath.PathLike) -> tuple[int | str, ...] | None:
    """What tells a file from another that has taken its place; None if there is none.

    It is the device and inode of a local file, and the generation of an object, which every write
    to it changes.
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
    """What went wrong, in a few words."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def reported(kind: type[VitJaxError], what: str, *, hint: str = "") -> Iterator[None]:
    """Makes an OSError an error that the user can correct: "WHAT: why. HINT".

    Args:
      kind: of the error.
      what: such as "runs/a cannot be written".
      hint: what to do about it.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {explain(error)}.{hint and ' '}{hint}") from error


@contextlib.contextmanager
def _os_errors(path: epath.PathLike) -> Iterator[None]:
    """Everything that goes wrong with a remote path becomes an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # Of gcsfs, aiohttp, requests or google.auth.
        if is_local(path):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def user_cache() -> pathlib.Path:
    """The folder of this user for what can be made or downloaded again; need not be there.

    Source: the XDG Base Directory Specification, which wants absolute paths.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    home = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "vit_jax"
