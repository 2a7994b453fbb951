"""Every config runs: its real model and optimizer fit a mesh (by shape), and it trains, shrunk."""

import copy
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image

from tests import config_cases
from tests.config_cases import CASES, NAMES, data_set
from tests.conftest import campaign, slow
from tests.mock_tfds import mock_tfds
from vit_jax.config import freeze
from vit_jax.data import inherit, transforms
from vit_jax.data.recipes import evaluation
from vit_jax.models import build, num_params, param_shapes, read_section
from vit_jax.models.variants import parse_variant
from vit_jax.optim import make_optimizer, make_schedule, total_steps
from vit_jax.parallel.mesh import check_batch_size, make_mesh
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.run import train
from vit_jax.training.state import TrainState, make_init, state_layout


class Imagenet21k(tfds.core.GeneratorBasedBuilder):
    """What `configs/vit_i21k.py` asks its users to prepare; TFDS knows it from here on."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=21_843),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        raise NotImplementedError

    def _generate_examples(self):
        raise NotImplementedError


def get_config(name: str, arg: str = "") -> ConfigDict:
    """The config, with a usual model and preprocessing where it takes those of a checkpoint."""
    config = config_cases.get_config(name, arg)
    config.model.variant = config.model.variant or "B/16"
    if config.model.image_size is None:
        config.model.image_size = (384,)
    for key in ("train_transforms", "eval_transforms"):
        published = evaluation("timm_imagenet")
        config.data[key] = inherit.resolve(config.data[key], published, key=key)
    return config


# -------------------------------------------------------------- the real thing, by shape alone


@pytest.mark.medium
def test_the_models_are_the_published_ones():
    def params(name, arg, **changes):
        config = get_config(name, arg)
        config.model.update(changes)
        return num_params(read_section(config.model, num_classes=data_set(config)[1]))

    assert params("vit_i1k", "variant=B/16") == 86_567_656
    assert params("vit_i1k", "variant=Ti/16") == 5_717_416
    assert params("vit_i1k", "variant=L/16") == 304_326_632
    assert params("vit_s16_i1k", "", rep_size=0) == 22_049_896 - 196 * 384  # No learned positions.
    assert 1.0e9 < params("vit_g_scaling", "") < 1.1e9
    assert 21e9 < params("vit_g_scaling", "variant=22B/14") < 23e9


def shapes_of_state(config: FrozenConfigDict) -> TrainState:
    """All that `train` builds before it allocates: transforms, schedule, optimizer and state."""
    num_examples, num_classes = data_set(config)
    cfg = read_section(config.model, num_classes=num_classes)
    for entry in (config.data.train_transforms, config.data.eval_transforms):
        transforms.compose(entry, image_size=cfg.image_size)
    total = total_steps(config, num_examples)
    schedule = make_schedule(
        config.optim.schedule,
        total_steps=total,
        batch_size=config.batch_size,
        num_examples=num_examples,
    )
    assert max(schedule(step) for step in np.linspace(0, total, 64)) > 0.5
    assert schedule(total) < 1e-6
    params = param_shapes(cfg)  # Traced once for each distinct model.
    tx = make_optimizer(config.optim, params, schedule=schedule)
    return jax.eval_shape(make_init(config, build(cfg), tx), jax.random.key(0), params)


def assert_split(config: FrozenConfigDict, sizes: ConfigDict, shapes: TrainState) -> None:
    """The batch and the state can be split over a mesh."""
    mesh = make_mesh(sizes)
    check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)
    layout = state_layout(shapes, mesh)
    assert jax.tree.structure(layout) == jax.tree.structure(shapes)
    # The state really is split: a device holds its share, and little beside.
    size, local_size = 0, 0
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True):
        size += math.prod(leaf.shape)
        local_size += math.prod(sharding.shard_shape(leaf.shape))
    assert local_size < 1.1 * size / mesh.shape["fsdp"]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "arg"), [slow(*case) if "BiT-R152x2" in case[1] else case for case in CASES]
)
def test_real_model_on_its_own_mesh_and_one_of_all_three_axes(name, arg):
    config = get_config(name, arg)
    shapes = shapes_of_state(freeze(config))
    assert_split(config, config.mesh, shapes)
    variant, _ = parse_variant(config.model.variant)
    # Three heads (Ti) cannot be split in two.
    heads = config.model.num_heads or getattr(getattr(variant, "vit", variant), "num_heads", 2)
    tensor = 2 if heads % 2 == 0 else 1
    assert_split(config, ConfigDict({"data": -1, "fsdp": 2, "tensor": tensor}), shapes)


# ------------------------------------------------------------------------------ one shrunk step


def shrink(config: ConfigDict) -> FrozenConfigDict:
    """The same run with the smallest model and images that are not trivial, for one step."""
    c = copy.deepcopy(config)
    _, patch = parse_variant(c.model.variant)
    if c.model.image_size[0] > 32:  # What is small stays: its transforms may count on its size.
        patch, c.model.image_size = 16, (32,)
    c.model.variant = f"mu/{patch}"
    c.model.width = c.model.depth = c.model.mlp_dim = c.model.num_heads = None
    c.batch_size, c.optim.accum_steps = 8, 1
    c.total_steps, c.total_epochs, c.total_examples = 1, None, None
    for key in c.optim.schedule:
        if key.startswith(("warmup", "cooldown")):
            c.optim.schedule[key] = None
    c.data.workers, c.data.threads = 0, 2
    c.log.tensorboard = False
    return freeze(c)


@pytest.fixture
def fast_compilation():
    """The compiler costs more than one step of a small model can: it need not do its best."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def write_pictures(root: pathlib.Path) -> int:
    """A folder with train and test; gives the number of its classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50 + i, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    return 2


def run_shrunk(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains one step, evaluations included; gives what it measured."""
    devices = jax.devices()[: config.mesh.fsdp * config.mesh.tensor]
    with mock_tfds():
        assert train(shrink(config), workdir, devices=devices) == 0
    (line,) = read_jsonl(workdir / "metrics.jsonl")
    assert line["step"] == 1
    return line


# Of what configs are made of (data source, transforms, loss, optimizer, kind of model), these have
# all; the others differ little from one of them. `cli_test.py` trains the quickstart's.
SAMPLE = (
    ("fashion_mnist", ""),
    ("image_folder", ""),
    ("scaling/vit_vs_cnn", ""),
    ("vit_g_scaling", ""),
    ("vit_i1k", "aug=strong2,reg=true"),
    ("vit_s16_i1k", ""),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arg"),
    [
        *SAMPLE,
        *(campaign(name, "") for name in NAMES if (name, "") not in SAMPLE),
        campaign("finetune", "model=B/32,dataset=oxford_iiit_pet"),
    ],
)
def test_one_shrunk_step(name, arg, tmp_path, fast_compilation):
    config = get_config(name, arg)
    num_classes = data_set(config)[1]
    if config.data.source == "image_folder":
        num_classes = write_pictures(tmp_path / "images")
        config.data.data_dir = str(tmp_path / "images")

    line = run_shrunk(config, tmp_path / "run")
    assert line["train/update_norm"] > 0
    for split in config.evals:
        assert {f"{split}/top1", f"{split}/loss"} <= line.keys()
    dataset = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert dataset["num_classes"] == num_classes
