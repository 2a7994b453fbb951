"""A small run that takes seconds: digits, a ViT of one to three blocks; and meshes for it."""

import json
import pathlib
import shutil
from unittest import mock

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.analysis import figures
from vit_jax.config import base_config, classification_eval, freeze
from vit_jax.parallel.mesh import make_mesh
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.run import train

# Every kind of randomness that a run can have, and the average of its parameters.
STOCHASTIC = {
    "model__dropout": 0.1,
    "model__attention_dropout": 0.1,
    "model__stochastic_depth": 0.1,
    "mix__mixup_alpha": 0.2,
    "optim__ema_decay": 0.9,
}


def small_config(**changes) -> FrozenConfigDict:
    """A config for 12 steps on digits; `changes` are dotted keys with double underscores."""
    c = base_config()
    c.batch_size, c.total_steps = 16, 12
    c.model.update(
        {"variant": "mu/4", "depth": 2, "image_size": (8,), "channels": 1, "pool": "token"}
    )
    crop = {"op": "random_crop", "padding": 1}
    decode = {"op": "decode", "channels": 1}
    c.data.train_transforms = (decode, crop, {"op": "value_range"})
    c.data.eval_transforms = (decode, {"op": "resize"}, {"op": "value_range"})
    c.data.threads = 2
    c.optim.lr, c.optim.clip_norm, c.optim.weight_decay = 3e-3, 1.0, 0.01
    c.optim.schedule.warmup_steps = 2
    c.evals = ConfigDict({"test": classification_eval(split="test[:50]", every_steps=6)})
    c.checkpoint.every_steps = 4
    c.log.every_steps, c.log.tensorboard = 2, False
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        target = c
        for part in section.split("__") if section else ():
            target = target[part]
        target[leaf] = value
    return freeze(c)


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of these sizes, on the first of the eight devices that the tests have."""
    sizes = ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor})
    return make_mesh(sizes, devices=jax.devices()[: data * fsdp * tensor])


def train_on_one(
    config: FrozenConfigDict, workdir: pathlib.Path, *, draw_curves: bool = False, **kwargs
) -> int:
    """`train` on one of the eight devices that the tests have.

    Drawing curves.png takes a fifth of so short a run: unless asked for, an empty file replaces it.
    """

    def leave_undrawn(metrics_jsonl, out_png, **kwargs):
        out_png.touch()

    drawing = figures.curves if draw_curves else leave_undrawn
    with mock.patch.object(figures, "curves", drawing):
        return train(config, workdir, devices=jax.devices()[:1], **kwargs)


def run(workdir: pathlib.Path, **changes) -> list[dict]:
    """Trains to the end on one device; gives the lines of metrics.jsonl."""
    assert train_on_one(small_config(**changes), workdir) == 0
    return read_jsonl(workdir / "metrics.jsonl")


class FinishedRuns:
    """Runs that are trained once for all tests of a process, and copied for each."""

    def __init__(self, folder: pathlib.Path):
        """`folder` holds the originals, which no test changes."""
        self._folder, self._runs = folder, {}

    def __call__(self, workdir: pathlib.Path, **changes) -> list[dict]:
        """Copies the finished run of these changes to `workdir`, as `run` would leave it there.

        Returns:
          The lines of metrics.jsonl.
        """
        key = repr(sorted(changes.items()))
        if key not in self._runs:
            original = self._folder / str(len(self._runs))
            run(original, **changes)
            self._runs[key] = original
        shutil.copytree(self._runs[key], workdir, dirs_exist_ok=True)
        return read_jsonl(workdir / "metrics.jsonl")


def dataset(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "dataset.json").read_text())
