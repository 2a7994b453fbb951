"""The folder that `tests.mistakes_table` is about: runs, images and data sets, good and bad."""

import json
import pathlib
import shutil

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from tests.commands import ROOT
from tests.small_run import train_on_one
from vit_jax import cli
from vit_jax.config import freeze
from vit_jax.data import fashion_mnist

SMALL = ("--config.model.depth=1", "--config.log.tensorboard=False")


def make_files(folder: pathlib.Path) -> None:
    """Fills an empty folder with what takes no time to make."""
    for classes in ("pictures/cat", "pictures/dog", "hollow/cat", "hollow/dog", "differ/train/cat",
                    "differ/train/dog", "differ/test/cat", "differ/test/cow"):  # fmt: skip
        _pictures(folder / classes)
    (folder / "hollow" / "eel").mkdir()
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no picture and no config")
    (folder / "settings.json").write_text("{}")
    (folder / "bare.py").write_text("from vit_jax.config import base_config\n")


def make_runs(folder: pathlib.Path) -> None:
    """Adds the work directories."""
    _run(folder / "run", evals=True)
    _run(folder / "other", "--config.model.width=32", evals=False)
    shutil.copytree(folder / "run", folder / "newer")
    config = json.loads((folder / "run" / "config.json").read_text())
    (folder / "newer" / "config.json").write_text(json.dumps(config | {"fancy_new_key": 1}))
    shutil.copytree(folder / "run", folder / "damaged")
    for part in ("params", "opt_state"):
        for file in (folder / "damaged" / "checkpoints" / "2" / part / "d").iterdir():
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


def _run(workdir: pathlib.Path, *flags: str, evals: bool) -> None:
    config = ConfigDict(
        cli.config_of(
            [f"--config={ROOT}/configs/quickstart.py", "--config.total_steps=2", *SMALL, *flags]
        )
    )
    if not evals:
        config.evals = {}
    assert train_on_one(freeze(config), workdir) == 0
