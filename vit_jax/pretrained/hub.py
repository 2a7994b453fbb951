"""Resolves the name of a published checkpoint to a local file or folder, downloading if needed.

    hf:google/vit-base-patch16-224[@revision]   a repository of the Hugging Face Hub
    timm:vit_base_patch16_224.augreg_in21k      hf:timm/...
    gs://vit_models/augreg/B_16-....npz         a file in a public bucket of Google Cloud Storage
    https://storage.googleapis.com/...          the same

Downloads are cached and then used without a network: the Hub's files in the cache of its own client
(HF_HOME), the buckets' in $XDG_CACHE_HOME/vit_jax, commonly ~/.cache/vit_jax.
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

from absl import logging
from rich import progress as bars

from vit_jax import storage
from vit_jax.errors import CheckpointError
from vit_jax.telemetry.progress import terminal

if TYPE_CHECKING:
    import gcsfs

_HUB = re.compile(r"(?P<scheme>hf|timm):(?P<name>[^@]*)(@(?P<revision>.+))?")
_OBJECT = re.compile(r"(gs://|https://storage\.googleapis\.com/)(?P<bucket>[^/]*)/?(?P<name>.*)")

_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")

_CHUNK = 2**23  # Bytes.


def resolve(name: str | os.PathLike) -> pathlib.Path:
    """Returns the local file or folder of a checkpoint, downloading it if needed.

    Args:
      name: one of the forms above; anything else is a local path, which need not exist.

    Raises:
      CheckpointError: the checkpoint does not exist or cannot be downloaded; the message says how
        to download it by hand.
    """
    text = os.fspath(name)
    if match := _HUB.fullmatch(text):
        repository = f"timm/{match['name']}" if match["scheme"] == "timm" else match["name"]
        return _from_hub(text, repository, match["revision"])
    if match := _OBJECT.fullmatch(text):
        return _from_bucket(text, match["bucket"], match["name"])
    if re.match(r"https?://", text):
        raise CheckpointError(
            f"{text}: of web addresses, only https://storage.googleapis.com/... is supported. "
            "Download the file, and name it by its path."
        )
    return pathlib.Path(os.path.expanduser(text))


# --- The Hugging Face Hub


def _from_hub(name: str, repository: str, revision: str | None) -> pathlib.Path:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise CheckpointError(
            f"{name} names no repository: write hf:OWNER/NAME, hf:OWNER/NAME@REVISION or timm:NAME."
        )
    if find_spec("huggingface_hub") is None:
        raise _download_error(
            name, repository, 'huggingface_hub is not installed (pip install "vit_jax[hub]")'
        )
    import huggingface_hub

    try:
        for weights in (_SAFETENSORS, _PICKLED):
            folder = huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=[*_DESCRIPTIONS, *weights]
            )
            if any(path for pattern in weights for path in pathlib.Path(folder).glob(pattern)):
                return pathlib.Path(folder)
    except Exception as error:  # From the client, its HTTP library, or the disk.
        raise _download_error(name, repository, _explain(error)) from error
    raise CheckpointError(
        f"{name}: the repository has neither {_SAFETENSORS[0]} nor {_PICKLED[0]}, nor shards of "
        f"them. If its weights have another name, download them with {_DESCRIPTIONS[0]} into a "
        "folder, and name the file."
    )


def _explain(error: Exception) -> str:
    """Returns the reason of a failed download in a few words."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "its licence must be accepted on its page first, then log in with: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private: then log in with: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "the Hub cannot be reached (or HF_HUB_OFFLINE is set), and no copy is in its cache"
    return f"{type(error).__name__}: {str(error).split(chr(10))[0][:300]}"


def _download_error(name: str, repository: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot be downloaded: {reason}. By hand: download {', '.join(_DESCRIPTIONS)} and "
        f"{_SAFETENSORS[0]} (or {_PICKLED[0]}) of the Hugging Face repository {repository} into a "
        f"folder, and name that folder instead of {name}."
    )


# --- Google Cloud Storage


def _from_bucket(address: str, bucket: str, name: str) -> pathlib.Path:
    parts = [bucket, *name.split("/")]
    if not all(re.fullmatch(r"[\w.+=,@ -]+", part) and set(part) != {"."} for part in parts):
        raise CheckpointError(f"{address} names no file: write gs://BUCKET/FOLDER/FILE.npz.")
    target = storage.user_cache().joinpath("gs", *parts)
    if target.is_file():
        return target
    try:
        if find_spec("gcsfs") is None:
            raise OSError('gcsfs is not installed (pip install "vit_jax[gcs]")')
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(f"{bucket}/{name}", target)
    except Exception as error:  # From gcsfs, aiohttp or the disk.
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        reason = " ".join(reason.split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{address} cannot be downloaded: {reason}. By hand: download "
            f"https://storage.googleapis.com/{bucket}/{name} to {target} (the cache), or to any "
            "folder and name the file by its path."
        ) from error
    return target


def _download(source: str, target: pathlib.Path) -> None:
    """Downloads an object atomically, and verifies its checksum."""
    import gcsfs

    storage.as_path(f"gs://{source}")  # Configures gcsfs not to print tracebacks.
    store = gcsfs.GCSFileSystem(token="anon", use_listings_cache=False)
    logging.info("Downloading gs://%s to %s", source, target)
    info = store.info(source)
    if info["type"] != "file":
        raise FileNotFoundError(source)
    partial = target.with_name(f".{target.name}.partial")
    with open(partial, "ab") as file:
        with contextlib.suppress(OSError):  # Some file systems have no locks.
            fcntl.flock(file, fcntl.LOCK_EX)
        if target.is_file():  # Another process has downloaded it while this one waited.
            return
        file.truncate(0)
        if not _copy(store, source, file, info):
            raise OSError("the download has another checksum than the stored file. Try again")
        os.fsync(file.fileno())
        os.replace(partial, target)


def _copy(
    store: "gcsfs.GCSFileSystem",
    source: str,
    file: BinaryIO,
    info: dict[str, Any],
) -> bool:
    """Copies an object to a file, and returns whether the checksum is the store's."""
    import google_crc32c  # Installed with gcsfs.

    kind = "md5Hash" if "md5Hash" in info else "crc32c"  # Composite objects have no MD5.
    checksum = hashlib.md5() if kind == "md5Hash" else google_crc32c.Checksum()
    size = int(info["size"])
    console = terminal(sys.stderr)
    columns = ("{task.description}", bars.BarColumn(), bars.DownloadColumn())
    with bars.Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task(source.rpartition("/")[2], total=size)
        for start in range(0, size, _CHUNK):
            chunk = store.cat_file(source, start, min(start + _CHUNK, size))
            assert isinstance(chunk, bytes)  # fsspec also declares str, for text mode.
            file.write(chunk)
            checksum.update(chunk)
            progress.advance(task, len(chunk))
    file.flush()
    return base64.b64encode(checksum.digest()).decode() == info[kind]
