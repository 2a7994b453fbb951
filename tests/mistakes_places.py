"""The folder that `tests.mistakes_table` is about: runs, images and data sets, good and bad."""

import json
import pathlib
import shutil

import numpy as np
from PIL import Image

from tests.small_run import FinishedRuns, run
from vit_jax.data import fashion_mnist


def make_files(folder: pathlib.Path) -> None:
    """Fills an empty folder with what takes no time to make."""
    for classes in ("images/cat", "images/dog", "hollow/cat", "hollow/dog", "differ/train/cat",
                    "differ/train/dog", "differ/test/cat", "differ/test/cow"):  # fmt: skip
        _pictures(folder / classes)
    (folder / "hollow" / "eel").mkdir()
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no image and no config")
    (folder / "settings.json").write_text("{}")
    (folder / "bare.py").write_text("from vit_jax.config import base_config\n")


CONFIG = """
from ml_collections import ConfigDict
from tests.small_run import small_config
from vit_jax.config import base_config

def get_config():
    c = base_config()  # Its keys have types.
    c.unlock().update(ConfigDict(small_config()))
    c.data.train_transforms = tuple(map(dict, c.data.train_transforms))
    return c
"""


def make_runs(folder: pathlib.Path, finished_run: FinishedRuns) -> None:
    """Adds the work directories, and the config small.py of `run`."""
    (folder / "small.py").write_text(CONFIG)
    finished_run(folder / "run")
    small = {"model__depth": 1, "model__width": 16, "model__mlp_dim": 16, "model__num_heads": 2}
    run(folder / "other", **small, total_steps=3, evals={})
    shutil.copytree(folder / "run", folder / "newer")
    config = json.loads((folder / "run" / "config.json").read_text())
    (folder / "newer" / "config.json").write_text(json.dumps(config | {"fancy_new_key": 1}))
    shutil.copytree(folder / "run", folder / "damaged")
    shutil.rmtree(folder / "damaged" / "checkpoints" / "8")
    for part in ("params", "opt_state"):
        for file in (folder / "damaged" / "checkpoints" / "12" / part / "d").iterdir():
            file.write_bytes(file.read_bytes()[:100])
    shutil.copytree(
        folder / "run", folder / "nothing_saved", ignore=lambda *_: ["checkpoints", "lock"]
    )


def _pictures(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (20 + i, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def make_data_sets(folder: pathlib.Path) -> None:
    """Adds a TFDS data set twice: as ArrayRecord, and as what claims to be TFRecord."""
    files = fashion_mnist._FILES
    idx = folder / "idx"
    idx.mkdir()
    try:
        fashion_mnist._FILES = {
            split: (images, labels, 20) for split, (images, labels, _) in files.items()
        }
        for images, labels, count in fashion_mnist._FILES.values():
            _write_idx(idx / images, np.zeros((count, 28, 28), np.uint8))
            _write_idx(idx / labels, (np.arange(count) % 10).astype(np.uint8))
        fashion_mnist.open_fashion_mnist(
            split="train", data_dir=str(folder / "tfds"), manual_dir=str(idx)
        )
    finally:
        fashion_mnist._FILES = files
    shutil.rmtree(idx)
    shutil.copytree(folder / "tfds", folder / "tfrecord")
    (info,) = (folder / "tfrecord").rglob("dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    for file in info.parent.glob("*.array_record-*"):
        file.rename(str(file).replace("array_record", "tfrecord"))


def _write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())
