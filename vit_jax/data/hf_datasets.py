"""Data sets of Hugging Face's `datasets`, read with pyarrow alone.

Three layouts are read: a folder that `save_to_disk` has written, a data set in the cache of
`load_dataset` (Arrow files), and a folder of Parquet files as on the hub.
"""

import glob
import os
import re

from ml_collections import ConfigDict

from vit_jax.data.reading import read_json
from vit_jax.data.shards.rows import Rows, open_rows
from vit_jax.data.table_source import TableSource, open_tables
from vit_jax.errors import ConfigError, DataError

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"


def from_config(data_config: ConfigDict, *, split: str) -> TableSource:
    """Opens a split of the folder `data.data_dir`, or of the data set `data.name` in the cache.

    Raises:
      ConfigError: neither or both are set, or as `TableSource`.
      DataError: there is no such data set, it is broken, or as `TableSource`.
    """
    if bool(data_config.data_dir) == bool(data_config.name):
        raise ConfigError(
            'data.source="hf_datasets" needs either data.data_dir, a folder of Parquet files or '
            'one written by save_to_disk, or data.name, such as "uoft-cs/cifar10", of a data set '
            "in Hugging Face's cache."
        )
    folder = data_config.data_dir or find_cached(data_config.name)
    root = os.path.realpath(os.path.expanduser(folder))
    return TableSource(
        open_folder(root),
        root=root,
        name=data_config.name or root,
        split=split,
        image_key=data_config.image_key,
        label_key=data_config.label_key,
        # The user's own cache may refer to files anywhere.
        follow_links=data_config.follow_links or bool(data_config.name),
        test_fraction=data_config.test_fraction,
    )


def is_saved(folder: str) -> bool:
    """Whether `datasets` has written a folder: by `save_to_disk`, or in its cache."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (_STATE, _DICT)) or bool(
        glob.glob("*.arrow", root_dir=folder)
    )


def open_folder(folder: str) -> dict[str, Rows]:
    """Opens the tables of each split in a folder.

    Raises:
      DataError: it has none of the three layouts, or is broken.
    """
    if os.path.isfile(os.path.join(folder, _DICT)):
        splits = read_json(os.path.join(folder, _DICT)).get("splits")
        if not isinstance(splits, list) or not splits:
            raise DataError(f"{folder}/{_DICT} lists no splits. Save the data set again.")
        return {str(split): _open_saved(os.path.join(folder, str(split))) for split in splits}
    if os.path.isfile(os.path.join(folder, _STATE)):
        split = read_json(os.path.join(folder, _STATE)).get("_split")
        return {str(split or ""): _open_saved(folder)}
    if glob.glob("*.arrow", root_dir=folder):
        return _open_cached(folder)
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder, or cannot be reached.")
    return open_tables(_only_configuration(folder))


def _open_saved(folder: str) -> Rows:
    state = read_json(os.path.join(folder, _STATE))
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    # A name is that of a file in this folder: one from elsewhere was not written by datasets.
    if not names or any(os.path.basename(name) != name for name in names):
        raise DataError(f"{folder}/{_STATE} lists no data files. Save the data set again.")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} was saved with indices by an old version of datasets. Load it and save it "
            "again with flatten_indices()."
        )
    return open_rows([os.path.join(folder, name) for name in names])


def _open_cached(folder: str) -> dict[str, Rows]:
    """Opens NAME-SPLIT.arrow or NAME-SPLIT-00000-of-00002.arrow of a data set in the cache."""
    info = read_json(os.path.join(folder, _INFO))
    splits = info.get("splits")
    if not isinstance(splits, dict) or not splits:
        raise DataError(f"{folder}/{_INFO} lists no splits. Load the data set again.")
    tables = {}
    for split in splits:
        pattern = re.compile(rf".*-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
        names = [
            name
            for name in sorted(glob.glob("*.arrow", root_dir=folder))
            if pattern.fullmatch(name) and not name.startswith("cache-")
        ]
        if not names:
            raise DataError(f'{folder} lacks the files of "{split}". Load the data set again.')
        tables[split] = open_rows([os.path.join(folder, name) for name in names])
    return tables


def _only_configuration(folder: str) -> str:
    """Returns the folder of Parquet files, which on the hub may be one of several configurations.

    Raises:
      DataError: there are several; the message lists them.
    """
    configurations = sorted(
        {
            file.split(os.sep)[0]
            for file in glob.glob("**/*.parquet", root_dir=folder, recursive=True)
        }
    )
    named = [name for name in configurations if os.path.isdir(os.path.join(folder, name))]
    # data/train-00000-of-00001.parquet and train/0000.parquet have splits, not configurations.
    is_split = all(
        re.search(r"(^|[^a-z])(data|train|val|valid|validation|test)([^a-z]|$)", name.lower())
        for name in named
    )
    if is_split:
        return folder
    if len(configurations) == 1:
        return os.path.join(folder, named[0])
    raise DataError(
        f"{folder} has several configurations of a data set, {', '.join(configurations[:8])}: set "
        "data.data_dir to one of these folders."
    )


def cache_folders(name: str) -> list[str]:
    """Returns the folders of a data set in Hugging Face's caches, the newest first.

    Args:
      name: NAME, OWNER/NAME or OWNER/NAME:CONFIG.
    """
    repository, colon, configuration = name.partition(":")
    if not repository or (colon and not configuration):
        return []
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    arrow = os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    owner = glob.escape(repository.replace("/", "___"))
    # NAME/CONFIG/VERSION/HASH/dataset_info.json
    found = glob.glob(f"{owner}/{glob.escape(configuration) or '*'}/*/*/{_INFO}", root_dir=arrow)
    folders = [os.path.join(arrow, os.path.dirname(file)) for file in found]
    if not folders:  # A snapshot of the hub's files.
        snapshots = os.path.join(hub, f"datasets--{repository.replace('/', '--')}", "snapshots")
        inside = f"*/{glob.escape(configuration)}" if configuration else "*"
        folders = [
            os.path.join(snapshots, folder)
            for folder in glob.glob(inside, root_dir=snapshots)
            if glob.glob("**/*.parquet", root_dir=os.path.join(snapshots, folder), recursive=True)
        ]
    return sorted(folders, key=os.path.getmtime, reverse=True)


def find_cached(name: str) -> str:
    """Returns the folder of a data set in Hugging Face's cache.

    Raises:
      DataError: there is none, or one for each of several configurations.
    """
    folders = cache_folders(name)
    if not folders:
        raise DataError(
            f"Hugging Face's cache has no data set {name!r}. Fetch it once, where there is a "
            f'network: python -c "import datasets; datasets.load_dataset({name!r})", or '
            f"hf download {name} --repo-type dataset; or set data.data_dir to its folder."
        )
    configurations = {os.path.normpath(folder).split(os.sep)[-3]: folder for folder in folders}
    is_arrow = os.path.isfile(os.path.join(folders[0], _INFO))
    if is_arrow and ":" not in name and len(configurations) > 1:
        raise ConfigError(
            f"{name} has several configurations in the cache: set data.name to "
            + " or ".join(f"{name}:{configuration}" for configuration in sorted(configurations))
            + "."
        )
    return folders[0]
