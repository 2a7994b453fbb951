"""Files in a local folder or an object store (gs://bucket/folder), under one interface.

Every path of a run is an `etils.epath.Path`, local or remote; fsspec accesses the store. This
module adds what these two lack. Its functions raise OSError for every error of these libraries.

- An object is written atomically and cannot be appended to. An object store has no folders.
- A disk or store that cannot be reached is an error, not an absent file: `exists` and `names`
  raise, where `epath.Path.exists` returns False for an unreachable disk.
- Local files are written atomically, and reads can be bounded; etils and fsspec do neither.

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
import stat
import threading
from collections.abc import Iterator
from importlib.util import find_spec

from etils import epath

from vit_jax.errors import ConfigError, VitJaxError

STORE = "gs"  # Google Cloud Storage is the only store to which Orbax 0.12 writes checkpoints.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>.*)", re.DOTALL)
# etils treats the local folders /gs, /s3, ... as the stores of these names.
_RESERVED = re.compile(r"/+(gs|s3|az|hf)(/|$)")
# The class of all paths, local and remote; etils exports no name for it.
_Path = type(epath.Path())
_etils_glob = _Path.glob


def _glob(self: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Matches `pattern` in a folder whose own path is taken literally, as `pathlib.Path.glob` does.

    etils 1.15 joins folder and pattern, so characters of the folder's path act as wildcards. Orbax
    calls `glob` to write arrays and read metadata, TFDS to find data sets, JAX in its compilation
    cache. Below a folder `exp[1]` they would find nothing; below `exp*` also files of `exp1`.
    """
    if is_local(self):
        yield from (self / name for name in glob.iglob(pattern, root_dir=self))
    else:  # `as_path` refuses remote addresses that contain wildcards.
        yield from _etils_glob(self, pattern)


_Path.glob = _glob


def as_path(path: epath.PathLike, *, name: str = "path") -> epath.Path:
    """Returns the path that a user has named, with ~ expanded.

    Args:
      path: a local path, or gs://bucket/folder.
      name: the flag or key that holds the path, such as "--workdir"; for errors.

    Raises:
      ConfigError: the path is empty or cannot be used, or gcsfs is needed and not installed.
    """
    text = os.fspath(path)
    argument = f"{name}={text}"
    if not text:
        raise ConfigError(f"{name} is empty: give a path, or gs://bucket/folder.")
    if "\0" in text:
        raise ConfigError(f"{name}={text!r}: no path has a zero byte.")
    if match := _ADDRESS.match(text):
        _check_address(match["scheme"], match["rest"], argument)
        _configure_gcsfs(argument)
        return epath.Path(text)
    if match := _RESERVED.match(text):
        raise ConfigError(
            f"{argument}: a path below /{match[1]} is read as one of an object "
            "store. Use a path with another name, for example through a symbolic link."
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{argument}: there is no such home folder. If ~ is meant literally, write ./{text}."
        )
    return epath.Path(expanded)


def _check_address(scheme: str, rest: str, argument: str) -> None:
    if scheme != STORE:
        raise ConfigError(
            f"{argument}: use a folder of this machine (mounted ones, too) or {STORE}://."
        )
    slash, bucket, *parts = rest.split("/") if rest.startswith("/") else ("no slash", "")
    if slash or not bucket or not any(parts):
        raise ConfigError(f"{argument}: write gs://bucket/folder.")
    if {".", ".."} & {bucket, *parts}:
        raise ConfigError(
            f"{argument}: an object store has no . and ..: write the address in full."
        )
    if wildcards := set(re.findall(r"[*?\[\]{}#\x00-\x1f]", rest)):
        raise ConfigError(
            f"{argument}: {' '.join(map(repr, sorted(wildcards)))} would be read as a pattern. "
            "Choose a name without it."
        )


@functools.cache
def _configure_gcsfs(argument: str) -> None:
    if find_spec("gcsfs") is None:
        raise ConfigError(
            f'{argument}: gcsfs is not installed. Install it with: pip install -e ".[gcs]".'
        )
    import fsspec.config

    # A cached listing would be stale: TensorStore and other processes write without gcsfs.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # gcsfs logs the traceback of every error that it raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def is_local(path: epath.PathLike) -> bool:
    """Returns whether a path is in this machine's file system."""
    return not os.fspath(path).startswith(f"{STORE}://")


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path; links and .. are not resolved."""
    return epath.Path(pathlib.Path(path).absolute()) if is_local(path) else epath.Path(path)


def exists(path: epath.PathLike) -> bool:
    """Returns whether a file or folder exists; raises OSError if that cannot be determined."""
    with _os_errors(path):
        if not is_local(path):
            return epath.Path(path).exists()
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def names(folder: epath.PathLike) -> list[str]:
    """Returns the sorted names of a folder's entries; none if the folder does not exist."""
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
        else:
            _check_bucket(folder)


def check_folder(folder: epath.PathLike) -> None:
    """Raises OSError if `make_folder` could not create a folder, or it is not writable.

    Nothing is created.
    """
    with _os_errors(folder):
        if not is_local(folder):
            _check_bucket(folder)
            return
        nearest = os.path.abspath(folder)
        while True:  # Ends at the root at the latest.
            try:
                is_folder = stat.S_ISDIR(os.stat(nearest).st_mode)
                break
            except FileNotFoundError:
                nearest = os.path.dirname(nearest)
        if not is_folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), nearest)
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), nearest)


def _check_bucket(folder: epath.PathLike) -> None:
    bucket = os.fspath(folder).split("/")[2]
    if not epath.Path(f"{STORE}://{bucket}").exists():
        raise FileNotFoundError(f"there is no bucket {bucket}")


def make_subfolder(folder: epath.PathLike) -> None:
    """Creates a folder in a work directory; the work directory may be a link, the folder not."""
    check_no_link(folder)
    make_folder(folder)


def check_no_link(path: epath.PathLike) -> None:
    """Raises OSError if a local path is a symbolic link."""
    if is_local(path) and os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a link, and would lead out of the work directory")


def read_bytes(path: epath.PathLike, *, limit: int | None = None) -> bytes:
    """Returns the contents of a file; raises OSError if it has more than `limit` bytes."""
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
        # Each writer has a temporary file of its own: with two at once, the last one wins.
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


def apply_umask(path: epath.PathLike) -> None:
    """Gives a local file the permissions of a file that `open` creates, as the umask says.

    Temporary files of `tempfile`, and files that safetensors writes, are readable by their owner
    alone.
    """
    mask = os.umask(0)  # Only setting it returns it.
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def create(path: epath.PathLike, content: bytes) -> None:
    """Creates an object in a store; raises FileExistsError, atomically, if it exists."""
    import fsspec

    with _os_errors(path):
        system, name = fsspec.url_to_fs(os.fspath(path))
        system.pipe_file(name, content, mode="create")


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes new names in a folder survive a power failure, if the file system can."""
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
    """Returns a value that changes when another file takes this one's place; None if none exists.

    It is the device and inode of a local file, or the generation of an object (every write changes
    it).
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
    """Returns the reason of an error in a few words."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def reported(kind: type[VitJaxError], what: str, *, hint: str = "") -> Iterator[None]:
    """Turns an OSError into a `kind` with the message "WHAT: reason. HINT".

    Args:
      kind: the type of error to raise.
      what: such as "runs/a cannot be written".
      hint: what the user can do about it.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {explain(error)}.{hint and ' '}{hint}") from error


@contextlib.contextmanager
def _os_errors(path: epath.PathLike) -> Iterator[None]:
    """Turns every exception about a remote path into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # gcsfs, aiohttp, requests and google.auth raise types of their own.
        if is_local(path):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def user_cache() -> pathlib.Path:
    """Returns this user's cache folder, which may not exist yet.

    Source: the XDG Base Directory Specification, which requires absolute paths.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    home = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "vit_jax"
