"""From what a user points to, to the settings of `config.data` that open it."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Mapping

from vit_jax import storage
from vit_jax.data import hf_datasets, table_source, webdataset
from vit_jax.data.decode import EXTENSIONS
from vit_jax.data.listing import is_image
from vit_jax.errors import ConfigError, DataError

Settings = dict[str, str]

# "cifar10:3.0.2" is a version of a data set, "cifar10:test[:100]" a split of it.
_SPLIT = re.compile(r"(?P<where>.+):(?P<split>[A-Za-z][\w.-]*(\[-?[\d%]*:-?[\d%]*\])?)")
_MAX_DEPTH, _MAX_LISTED = 3, 1000  # Of a folder whose kind is looked for.
_BUILT_IN = ("digits", "fashion_mnist")
_NAMES = {"tfds:": "tfds", "hf:": "hf_datasets"}
_EXPECTED = (
    "Give a folder with a folder of images for each class; a table FILE.csv, FILE.tsv or "
    "FILE.parquet; a folder of Parquet files or one saved by Hugging Face's datasets; a folder of "
    "tar files or a pattern such as train-{000..099}.tar; digits or fashion_mnist; or a name: "
    "tfds:NAME or hf:NAME. :SPLIT may follow."
)


def locate_data(text: str) -> Settings:
    """Returns the keys of `config.data` that open what a text names.

    The text is a path or a name, and optionally a colon and a split: a folder with a folder of
    images for each class; a table (CSV, TSV, Parquet); a folder that Hugging Face's `datasets` has
    saved or cached, or one of Parquet files; a tar file, a folder of tar files or a pattern with
    braces (WebDataset); a folder that TFDS has prepared; `digits`; `fashion_mnist`; or the name of
    a data set of TFDS or in Hugging Face's cache, which `tfds:` or `hf:` before it decides
    (`hf:NAME:CONFIG` if there are several configurations).

    Only names of files and the metadata of tables are read.

    Returns:
      Such as {"source": "tfds", "name": "cifar10", "split": "test"}. `split` is absent if the text
      has none; `image_key` and `label_key` are those of a table's only candidates, if its columns
      are not called image and label.

    Raises:
      ConfigError: the text is empty, or may mean several things; the message says which.
      DataError: there is nothing of this name, or it is of no known kind.
    """
    if not text:
        raise ConfigError(f"No data are named. {_EXPECTED}")
    match = _SPLIT.fullmatch(text)
    is_path = os.path.exists(os.path.expanduser(text))
    is_configuration = text.startswith("hf:") and hf_datasets.cache_folders(text[len("hf:") :])
    if match and not is_path and not is_configuration:
        return {**_locate(match["where"]), "split": match["split"]}
    return _locate(text)


def _locate(text: str) -> Settings:
    if text in _BUILT_IN:
        return {"source": text}
    for prefix, source in _NAMES.items():
        if text.startswith(prefix):
            return {"source": source, "name": text.removeprefix(prefix)}
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return _locate_folder(path)
    if os.path.isfile(path):
        return _locate_file(path)
    if "{" in path and path.endswith(".tar"):
        webdataset.find_shards(path)
        return {"source": "webdataset", "data_dir": path}
    if (
        text.startswith(("/", ".", "~"))
        or text.lower().endswith((*table_source.EXTENSIONS, ".tar"))
        or text.count("/") > 1
    ):
        raise DataError(f"{text} does not exist. {_EXPECTED}")
    return _locate_name(text)


def _locate_file(path: str) -> Settings:
    extension = os.path.splitext(path)[1].lower()
    if extension in table_source.EXTENSIONS:
        return {"source": "table", "data_dir": path, **_columns(path, table_source.open_tables)}
    if extension == ".tar":
        return {"source": "webdataset", "data_dir": path}
    if extension in EXTENSIONS:
        raise DataError(f"{path} is an image, without a label. {_EXPECTED}")
    if extension == ".arrow":
        raise DataError(f"{path} is a part of a data set: give its folder.")
    raise DataError(f"{path} is of no known kind. {_EXPECTED}")


def _locate_folder(path: str) -> Settings:
    if hf_datasets.is_saved(path):
        columns = _columns(os.path.realpath(path), hf_datasets.open_folder)
        return {"source": "hf_datasets", "data_dir": path, **columns}
    if os.path.isfile(os.path.join(path, "features.json")):
        return _locate_prepared(path)
    kinds = {
        "tar files": {"source": "webdataset"},
        "Parquet files": {"source": "hf_datasets"},
        "tables": {"source": "table"},
        "folders of images": {"source": "image_folder"},
    }
    found = [kind for kind, is_kind in _inside(path).items() if is_kind]
    if not found:
        raise DataError(f"{path} has no data of a known kind. {_EXPECTED}")
    if len(found) > 1:
        raise ConfigError(
            f"{path} has {' and '.join(found)}: give the one that is meant, "
            "or set data.source and data.data_dir."
        )
    settings = {**kinds[found[0]], "data_dir": path}
    if settings["source"] == "table":
        settings |= _columns(os.path.realpath(path), table_source.open_tables)
    if settings["source"] == "hf_datasets":
        settings |= _columns(os.path.realpath(path), hf_datasets.open_folder)
    return settings


def _inside(path: str) -> Mapping[str, bool]:
    """Returns which kinds of data a folder holds, by the first entries of its first folders."""
    found: dict[str, bool] = dict.fromkeys(
        ("tar files", "Parquet files", "tables", "folders of images"), False
    )
    folders = [(path, 0)]
    for folder, depth in folders:  # Grows inside the loop.
        with storage.reported(DataError, f"{folder} cannot be listed"), os.scandir(folder) as scan:
            entries = [e for e in itertools.islice(scan, _MAX_LISTED) if e.name[0] != "."]
        for entry in entries:
            if entry.is_dir():
                if depth < _MAX_DEPTH and len(folders) < _MAX_LISTED:
                    folders.append((entry.path, depth + 1))
                continue
            name = entry.name.lower()
            found["tar files"] |= name.endswith(".tar")
            found["Parquet files"] |= name.endswith(".parquet")
            found["tables"] |= name.endswith((".csv", ".tsv")) and depth == 0
            found["folders of images"] |= is_image(name) and depth > 0
    return found


def _locate_prepared(path: str) -> Settings:
    """Returns the settings of a folder ROOT/NAME/VERSION or ROOT/NAME/CONFIG/VERSION of TFDS."""
    parts = os.path.realpath(path).split(os.sep)
    version = parts[-1]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or len(parts) < 4:
        raise DataError(
            f"{path} was prepared by TFDS, and is not called NAME/VERSION: set data.source=tfds, "
            "data.name and data.data_dir."
        )
    # A configuration's folder is beside others in that of the data set; only the latter's
    # parent has folders of several data sets. TFDS writes the name into the file's names.
    files = glob.glob("*-*.tfrecord*", root_dir=path) + glob.glob(
        "*-*.array_record*", root_dir=path
    )
    names = {file.split("-")[0] for file in files}
    depth = 2 if parts[-2] in names or not names else 3
    name = "/".join(parts[-depth:-1])
    return {
        "source": "tfds",
        "name": f"{name}:{version}",
        "data_dir": os.sep.join(parts[:-depth]),
    }


def _locate_name(name: str) -> Settings:
    from vit_jax.data import tfds_source  # Importing TFDS takes seconds.

    is_cached = bool(hf_datasets.cache_folders(name))
    try:
        tfds_source.find_builder(name, data_dir="")
    except DataError as error:
        if is_cached:
            folder = hf_datasets.find_cached(name)
            columns = _columns(os.path.realpath(folder), hf_datasets.open_folder)
            return {"source": "hf_datasets", "name": name, **columns}
        raise DataError(
            f"{name} is no file or folder, and no data set of this name is in Hugging Face's "
            f"cache. {error}"
        ) from error
    if is_cached:
        raise ConfigError(
            f"{name} is a data set of TFDS, and one in Hugging Face's cache: write tfds:{name} or "
            f"hf:{name}."
        )
    return {"source": "tfds", "name": name}


def _columns(path: str, open_tables: Callable[[str], Mapping]) -> Settings:
    """Returns image_key and label_key of a table whose columns are not called image and label.

    Raises:
      ConfigError: several columns may be the label, or none.
      DataError: the table cannot be read.
    """
    schema = next(iter(open_tables(path).values())).schema
    names = schema.names
    keys: Settings = {}
    if "image" not in names:
        candidates = [f.name for f in schema if table_source.is_image_type(f.type)] or [
            name for name in names if name in ("path", "file", "filename", "file_name", "img")
        ]
        keys["image_key"] = _only(candidates, names, key="image_key", path=path)
    if "label" not in names:
        candidates = [n for n in names if table_source.class_label_names(schema.metadata, n)] or [
            name for name in names if name in ("class", "target", "category", "labels")
        ]
        keys["label_key"] = _only(candidates, names, key="label_key", path=path)
    return keys


def _only(candidates: list[str], names: list[str], *, key: str, path: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    several = f"{' and '.join(candidates)} may be it" if candidates else "none has a usual name"
    raise ConfigError(
        f"{path}: which column is data.{key}? Of {', '.join(names)}, {several}. Pass "
        f"--config.data.{key}=COLUMN with data.source and data.data_dir."
    )
