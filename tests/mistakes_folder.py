"""The folder in which the mistakes of `tests.mistakes_table` are made: runs and images."""

import json
import pathlib
import shutil

import numpy as np
from PIL import Image

from tests.small_run import FinishedRuns, run


def make_files(folder: pathlib.Path) -> None:
    """Adds images and files that are no config."""
    for name in ("images/cat", "images/dog"):
        _write_images(folder / name)
    shutil.copytree(folder / "images", folder / "nest" / "all")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no image and no config")
    for name in ("old.jsonl", "old.npz"):
        (folder / name).write_text("predictions of yesterday")
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


def _write_images(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (20 + i, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
