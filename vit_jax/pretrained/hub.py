"""Where a published checkpoint is: its name becomes a file or folder of this machine.

    hf:google/vit-base-patch16-224[@revision]   a repository of the Hugging Face Hub
    timm:vit_base_patch16_224.augreg_in21k      hf:timm/...
    gs://vit_models/augreg/B_16-....npz         a file in a public bucket of Google Cloud Storage
    https://storage.googleapis.com/...          the same

What was downloaded once is kept and used without a network: the Hub's files in the cache of its own
client (HF_HOME), the buckets' in $XDG_CACHE_HOME/vit_jax, commonly ~/.cache/vit_jax.
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

import tqdm
from absl import logging

from vit_jax import storage
from vit_jax.errors import CheckpointError

if TYPE_CHECKING:
    import gcsfs

_HUB = re.compile(r"(?P<scheme>hf|timm):(?P<name>[^@]*)(@(?P<revision>.+))?")
_OBJECT = re.compile(r"(gs://|https://storage\.googleapis\.com/)(?P<bucket>[^/]*)/?(?P<name>.*)")

_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")

_CHUNK = 2**23  # Bytes.


def resolve(name: str | os.PathLike) -> pathlib.Path:
    """The file or folder of a checkpoint, downloaded if it has to be.

    Args:
      name: one of the names above; any other is a path, and returned as it is.

    Raises:
      CheckpointError: it is not there, or cannot be downloaded: what to do by hand.
    """
    text = os.fspath(name)
    if match := _HUB.fullmatch(text):
        repository = f"timm/{match['name']}" if match["scheme"] == "timm" else match["name"]
        return _from_hub(text, repository, match["revision"])
    if match := _OBJECT.fullmatch(text):
        return _from_bucket(text, match["bucket"], match["name"])
    if re.match(r"https?://", text):
        raise CheckpointError(
            f"{text}: only storage.googleapis.com is downloaded from. Download the file, and name "
            "it by its path."
        )
    return pathlib.Path(os.path.expanduser(text))


# --- The Hugging Face Hub


def _from_hub(said: str, repository: str, revision: str | None) -> pathlib.Path:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise CheckpointError(
            f"{said} names no repository: write hf:OWNER/NAME, hf:OWNER/NAME@REVISION or timm:NAME."
        )
    if find_spec("huggingface_hub") is None:
        raise _by_hand(
            said, repository, 'huggingface_hub is not installed (pip install "vit_jax[hub]")'
        )
    import huggingface_hub

    try:
        for weights in (_SAFETENSORS, _PICKLED):
            folder = huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=[*_DESCRIPTIONS, *weights]
            )
            if any(found for pattern in weights for found in pathlib.Path(folder).glob(pattern)):
                return pathlib.Path(folder)
    except Exception as error:  # Of the client, of its HTTP library, of the disk.
        raise _by_hand(said, repository, _explain(error)) from error
    raise CheckpointError(
        f"{said}: the repository has neither {_SAFETENSORS[0]} nor {_PICKLED[0]}, nor parts of "
        f"them. If its weights have another name, download them with {_DESCRIPTIONS[0]} into a "
        "folder, and name the file."
    )


def _explain(error: Exception) -> str:
    """Why the client could not do it, in a few words."""
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


def _by_hand(said: str, repository: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{said} cannot be downloaded: {why}. By hand: download {', '.join(_DESCRIPTIONS)} and "
        f"{_SAFETENSORS[0]} (or {_PICKLED[0]}) of the Hugging Face repository {repository} into a "
        f"folder, and name that folder instead of {said}."
    )


# --- Google Cloud Storage


def _from_bucket(said: str, bucket: str, name: str) -> pathlib.Path:
    parts = [bucket, *name.split("/")]
    if not all(re.fullmatch(r"[\w.+=,@ -]+", part) and set(part) != {"."} for part in parts):
        raise CheckpointError(f"{said} names no file: write gs://BUCKET/FOLDER/FILE.npz.")
    target = storage.user_cache().joinpath("gs", *parts)
    if target.is_file():
        return target
    try:
        if find_spec("gcsfs") is None:
            raise OSError('gcsfs is not installed (pip install "vit_jax[gcs]")')
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(f"{bucket}/{name}", target)
    except Exception as error:  # Of gcsfs, aiohttp or the disk.
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        why = " ".join(why.split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{said} cannot be downloaded: {why}. By hand: download "
            f"https://storage.googleapis.com/{bucket}/{name} to {target} (where it is "
            "looked for), or anywhere, and name it by its path."
        ) from error
    return target


def _download(source: str, target: pathlib.Path) -> None:
    """Copies an object to a file that has its name only when it is whole, and as it was."""
    import gcsfs

    storage.as_path(f"gs://{source}")  # Makes gcsfs ready: it would print tracebacks.
    store = gcsfs.GCSFileSystem(token="anon", use_listings_cache=False)
    logging.info("Downloading gs://%s to %s", source, target)
    described = store.info(source)
    if described["type"] != "file":
        raise FileNotFoundError(source)
    partial = target.with_name(f".{target.name}.partial")
    with open(partial, "ab") as file:
        with contextlib.suppress(OSError):  # Where there are no locks, nobody waits.
            fcntl.flock(file, fcntl.LOCK_EX)
        if target.is_file():  # Another process has downloaded it while this one waited.
            return
        file.truncate(0)
        if not _copy(store, source, file, described):
            raise OSError("what came is not what is stored there (checksum). Try again")
        os.fsync(file.fileno())
        os.replace(partial, target)


def _copy(
    store: "gcsfs.GCSFileSystem",
    source: str,
    file: BinaryIO,
    described: dict[str, Any],
) -> bool:
    """Copies all bytes.

    Returns:
      Whether their checksum is the store's. Objects that were composed of parts have no MD5 there.
    """
    import google_crc32c  # Which gcsfs needs, too.

    kind = "md5Hash" if "md5Hash" in described else "crc32c"
    checksum = hashlib.md5() if kind == "md5Hash" else google_crc32c.Checksum()
    size = int(described["size"])
    with tqdm.tqdm(
        total=size, desc=source.rpartition("/")[2], unit="B", unit_scale=True, disable=None
    ) as bar:
        for start in range(0, size, _CHUNK):
            chunk = store.cat_file(source, start, min(start + _CHUNK, size))
            file.write(chunk)
            checksum.update(chunk)
            bar.update(len(chunk))
    file.flush()
    return base64.b64encode(checksum.digest()).decode() == described[kind]
