"""Every config: it builds, it is what its golden file says, its real model and optimizer fit a mesh
(by shape), and a run of it, shrunk, goes to the end.

The golden files say what each recipe is, key by key, so that a change shows in review. To accept
one, look at it and write them anew:

    python -m tests.configs_test --update
"""

import copy
import difflib
import importlib.util
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image

from tests.mock_tfds import mock_tfds
from vit_jax import workdir as workdirs
from vit_jax.config import freeze
from vit_jax.data import transforms
from vit_jax.data.recipes import AUGREG_LEVELS
from vit_jax.errors import ConfigError
from vit_jax.models import Vit, num_params, param_shapes, vit_config
from vit_jax.models.variants import parse_variant
from vit_jax.optim import make_optimizer, make_schedule, total_steps
from vit_jax.parallel.mesh import check_batch_size, make_mesh
from vit_jax.state import make_init, state_layout
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.train import train

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens" / "configs"
UPDATE = "python -m tests.configs_test --update"

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
# Arguments that are tried beside none.
ARGUMENTS = {
    "vit_i1k": ["variant=L/16,aug=strong2,reg=true", "variant=Ti/16,aug=none", "variant=S/32"],
    "vit_s16_i1k": ["epochs=300"],
    "vit_i21k": ["variant=L/16,aug=medium2,epochs=30", "variant=H/14"],
    "vit_g_scaling": [
        "variant=s/28,steps=20000",
        "variant=B/28,steps=60000",
        "variant=G/14,steps=1000000",
        "variant=e/14",
        "variant=22B/14",
    ],
    "finetune": [
        "model=L/16,dataset=imagenet2012",
        "model=H/14,dataset=cifar100",
        "model=B/32,dataset=oxford_iiit_pet",
        "model=S/16,dataset=oxford_flowers102,size=224",
    ],
    "image_folder": ["root=/data/birds,variant=S/16,size=224,epochs=30"],
}
CASES = [(name, arg) for name in NAMES for arg in ("", *ARGUMENTS.get(name, ()))]
each_config = pytest.mark.parametrize("name", NAMES)
each_case = pytest.mark.parametrize(("name", "arg"), CASES)

# Training examples and classes: by data.name, else data.source.
DATA_SETS = {
    "imagenet2012": (1_281_167, 1000),
    "imagenet21k": (14_197_122, 21_843),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "oxford_iiit_pet": (3_680, 37),
    "oxford_flowers102": (1_020, 102),
    "digits": (1_437, 10),
    "fashion_mnist": (60_000, 10),
    "image_folder": (1_000, 5),
}


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


def load(name: str) -> Any:
    """The module configs/NAME.py, read as the front doors read it: by its path."""
    spec = importlib.util.spec_from_file_location(f"config_{name}", ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(name: str, arg: str = "") -> ConfigDict:
    return load(name).get_config(arg or None)


def data_set(config: ConfigDict | FrozenConfigDict) -> tuple[int, int]:
    return DATA_SETS[config.data.name or config.data.source]


# ------------------------------------------------------------------------------- what they are


@each_case
def test_it_is_locked_and_freezes(name, arg):
    config = get_config(name, arg)
    for section in (config, config.model, config.optim.schedule, config.data):
        with pytest.raises(AttributeError, match="locked"):
            section.no_such_key = 1
    frozen = freeze(config)
    with pytest.raises(AttributeError):
        frozen.seed = 1
    with pytest.raises(TypeError):
        frozen.data.train_transforms[0]["op"] = "resize"


@each_case
def test_it_survives_json(name, arg):
    frozen = freeze(get_config(name, arg))
    text = json.dumps(workdirs.config_to_json(frozen))
    again = freeze(workdirs.config_from_json(json.loads(text)))
    assert again == frozen
    assert json.dumps(workdirs.config_to_json(again)) == text  # 1 and 1.0 are equal, but differ.


@each_config
def test_calls_do_not_share_what_can_change(name):
    one, before = get_config(name), workdirs.config_to_json(freeze(get_config(name)))
    for entry in (*one.data.train_transforms, *one.data.eval_transforms):
        entry["changed"] = True
    assert workdirs.config_to_json(freeze(get_config(name))) == before


@each_config
def test_docstring_says_how_and_what(name):
    doc = load(name).__doc__
    assert f"python -m vit_jax.train --config=configs/{name}.py" in doc
    assert "--workdir" in doc
    assert f"{name} " in load("__init__").__doc__, "the table of contents, configs/__init__.py"


@each_config
def test_files_are_short(name):
    assert len((ROOT / f"configs/{name}.py").read_text().splitlines()) <= 120


def test_arguments_reach_the_config():
    c = get_config("vit_i1k", "variant=L/16,aug=strong2,reg=true")
    assert (c.model.variant, c.mix.mixup_alpha) == ("L/16", 0.8)
    assert c.model.dropout == c.model.stochastic_depth == 0.1
    assert {"op": "randaugment", "num_layers": 2, "magnitude": 20} in c.data.train_transforms
    assert get_config("vit_s16_i1k", "epochs=150").total_epochs == 150.0
    assert get_config("vit_g_scaling", "steps=60000").optim.schedule.cooldown_steps == 10_000
    assert get_config("vit_g_scaling", "steps=60001").optim.schedule.cooldown_steps == 50_000
    c = get_config("finetune", "model=H/14,dataset=oxford_iiit_pet")
    assert c.model.image_size == (378,)  # 27 patches; 384 is no multiple of 14.
    assert (c.data.split, c.total_steps, c.optim.lr) == ("train[:90%]", 500, 0.003)
    assert get_config("image_folder", "root=~/my=pictures").data.data_dir == "~/my=pictures"


@pytest.mark.parametrize(
    ("name", "arg", "hint"),
    [
        ("vit_i1k", "varant=L/16", 'Did you mean "variant"?'),
        ("vit_i1k", "aug=medum1", 'Did you mean "medium1"?'),
        ("vit_i1k", "reg=yes", 'reg="yes" is not a bool'),
        ("vit_i1k", "L/16", "write key=value"),
        ("vit_s16_i1k", "epoch=90", 'Did you mean "epochs"?'),
        ("vit_s16_i1k", "epochs=long", 'epochs="long" is not a float'),
        ("vit_i21k", "augs=light1", 'Did you mean "aug"?'),
        ("vit_g_scaling", "step=1000", 'Did you mean "steps"?'),
        ("finetune", "dataset=cifar11", 'Did you mean "cifar10"?'),
        ("finetune", "model=So400/14", 'Did you mean "So400m"?'),
        ("image_folder", "rot=/data", 'Did you mean "root"?'),
    ],
)
def test_bad_arguments_name_the_nearest(name, arg, hint):
    with pytest.raises(ConfigError) as error:
        get_config(name, arg)
    assert hint in str(error.value)


def test_every_augreg_level_is_an_argument():
    for level in AUGREG_LEVELS:
        assert get_config("vit_i1k", f"aug={level}").mix.mixup_alpha == AUGREG_LEVELS[level][2]


# ------------------------------------------------------------------------------------ goldens


def golden_text(name: str) -> str:
    """Every key of a config; for each of its other arguments, the keys that differ from that."""
    flat = {
        arg: workdirs.flatten(
            json.loads(json.dumps(workdirs.config_to_json(get_config(name, arg))))
        )
        for arg in ("", *ARGUMENTS.get(name, ()))
    }
    changed = {
        arg: {key: value for key, value in keys.items() if not arg or value != flat[""].get(key)}
        for arg, keys in flat.items()
    }

    def section(keys):  # A line a key: so a difference reads well.
        return ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(keys.items()))

    return (
        "{\n"
        + ",\n".join(f"  {json.dumps(arg)}: {{\n{section(k)}\n  }}" for arg, k in changed.items())
        + "\n}\n"
    )


@each_config
def test_it_is_what_its_golden_file_says(name):
    path = GOLDENS / f"{name}.json"
    golden, ours = path.read_text() if path.exists() else "", golden_text(name)
    diff = list(
        difflib.unified_diff(
            golden.splitlines(), ours.splitlines(), "golden", "config", n=0, lineterm=""
        )
    )
    if diff:
        pytest.fail(
            f"configs/{name}.py is not what {path.relative_to(ROOT)} says:\n"
            + "\n".join(diff)
            + f"\nIf that is meant: {UPDATE}",
            pytrace=False,
        )


def test_there_is_no_golden_without_a_config():
    assert sorted(path.stem for path in GOLDENS.glob("*.json")) == NAMES, UPDATE


def update_goldens() -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for path in GOLDENS.glob("*.json"):
        path.unlink()
    for name in NAMES:
        (GOLDENS / f"{name}.json").write_text(golden_text(name))


# -------------------------------------------------------------- the real thing, by shape alone


def test_the_models_are_the_published_ones():
    def params(name, arg, **changes):
        config = get_config(name, arg)
        config.model.update(changes)
        return num_params(vit_config(config.model, num_classes=data_set(config)[1]))

    assert params("vit_i1k", "variant=B/16") == 86_567_656
    assert params("vit_i1k", "variant=Ti/16") == 5_717_416
    assert params("vit_i1k", "variant=L/16") == 304_326_632
    assert params("vit_s16_i1k", "", rep_size=0) == 22_049_896 - 196 * 384  # No learned positions.
    assert 1.0e9 < params("vit_g_scaling", "") < 1.1e9
    assert 21e9 < params("vit_g_scaling", "variant=22B/14") < 23e9


def shape_evaluate(config: FrozenConfigDict) -> None:
    """All that `train` builds before it allocates: transforms, schedule, optimizer, state, mesh."""
    num_examples, num_classes = data_set(config)
    cfg = vit_config(config.model, num_classes=num_classes)
    for entry in (config.data.train_transforms, config.data.eval_transforms):
        transforms.build(entry, image_size=cfg.image_size)
    total = total_steps(config, num_examples)
    schedule = make_schedule(
        config.optim.schedule,
        total_steps=total,
        batch_size=config.batch_size,
        num_examples=num_examples,
    )
    assert max(schedule(step) for step in np.linspace(0, total, 64)) > 0.5
    assert schedule(total) < 1e-6
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)
    with jax.set_mesh(mesh):
        tx = make_optimizer(config.optim, param_shapes(cfg), schedule=schedule)
        shapes = jax.eval_shape(make_init(config, Vit(cfg), tx), jax.random.key(0))
        layout = state_layout(shapes, mesh)
    assert jax.tree.structure(layout) == jax.tree.structure(shapes)
    # Every parameter that is large is split, where the mesh splits any.
    if config.mesh.fsdp > 1:
        for leaf, sharding in zip(
            jax.tree.leaves(shapes.params), jax.tree.leaves(layout.params), strict=True
        ):
            assert leaf.size < 2**18 or not sharding.is_fully_replicated


@each_case
def test_real_model_on_its_own_mesh(name, arg):
    shape_evaluate(freeze(get_config(name, arg)))


@each_case
def test_real_model_on_a_mesh_of_all_three_axes(name, arg):
    config = get_config(name, arg)
    variant, _ = parse_variant(config.model.variant)
    # Three heads (Ti) cannot be split in two.
    tensor = 2 if (config.model.num_heads or variant.num_heads) % 2 == 0 else 1
    config.mesh.update({"data": -1, "fsdp": 2, "tensor": tensor})
    shape_evaluate(freeze(config))


# ------------------------------------------------------------------------------ one shrunk step


def shrink(config: ConfigDict) -> FrozenConfigDict:
    """The same run with the smallest model and images that are not trivial, for one step."""
    c = copy.deepcopy(config)
    variant, patch = parse_variant(c.model.variant)
    del variant
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


def write_pictures(root: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50 + i, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")


# What runs in the fast suite; the others differ little from one of these.
FAST = ("quickstart", "vit_s16_i1k")


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        pytest.param(name, arg, marks=() if not arg and name in FAST else pytest.mark.slow)
        for name, arg in [
            *((name, "") for name in NAMES),
            ("vit_i1k", "aug=strong2,reg=true"),
            ("finetune", "model=B/32,dataset=oxford_iiit_pet"),
        ]
    ],
)
def test_one_shrunk_step(name, arg, tmp_path):
    config = get_config(name, arg)
    if config.data.source == "image_folder":
        write_pictures(tmp_path / "pictures")
        config.data.data_dir = str(tmp_path / "pictures")
    devices = jax.devices()[: config.mesh.fsdp * config.mesh.tensor]
    with mock_tfds():
        assert train(shrink(config), tmp_path / "run", devices=devices) == 0

    (line,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert line["step"] == 1
    assert line["train/update_norm"] > 0
    for split in config.evals:
        assert {f"{split}/top1", f"{split}/loss"} <= line.keys()
    assert json.loads((tmp_path / "run" / "dataset.json").read_text())["num_classes"] == (
        2 if config.data.source == "image_folder" else data_set(config)[1]
    )


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(f"Usage: {UPDATE}")
    update_goldens()
    print(f"Wrote {len(NAMES)} files to {GOLDENS.relative_to(ROOT)}: look at git diff.")
