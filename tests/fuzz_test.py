"""Whatever a config holds: only our own errors come out of it, soon. See `tests.fuzzing`."""

import contextlib
import json

import jax
import numpy as np
import pytest
from hypothesis import event
from hypothesis import strategies as st
from ml_collections import ConfigDict

from tests.conftest import ROOT
from tests.fuzzing import NUMBERS, WORDS, bounded, fuzz
from tests.small_run import small_config
from vit_jax import cli
from vit_jax.config import base_config, check_best, freeze, validate
from vit_jax.data import transforms
from vit_jax.data.base import split_range
from vit_jax.evals.build import Evaluation
from vit_jax.models import param_shapes, read_section, train_flops_per_image
from vit_jax.optim import loss_by_name, make_optimizer, make_schedule, total_steps
from vit_jax.parallel.mesh import mesh_shape
from vit_jax.rundir import workdir as workdirs

pytestmark = pytest.mark.slow

FLAT = workdirs.flatten(workdirs.config_to_json(small_config()))
OPS = st.sampled_from([*transforms.OPS, "decod", None, 3])


def op_arguments(op):
    """Arguments of a transform: most of them are ones that it has."""
    fields = list(getattr(transforms.OPS.get(op), "__dataclass_fields__", {})) or ["size"]
    values = st.one_of(NUMBERS, WORDS, st.booleans(), st.tuples(NUMBERS, NUMBERS), st.none())
    return st.dictionaries(st.sampled_from([*fields, "x"]), values, max_size=3).map(
        lambda arguments: {"op": op, **arguments}
    )


PIPELINES = st.lists(OPS.flatmap(op_arguments), max_size=4).map(
    lambda ops: ({"op": "decode"}, *ops, {"op": "value_range"})
)
OBJECTS = st.recursive(
    st.one_of(NUMBERS, WORDS, st.booleans(), st.none(), st.binary(max_size=4), PIPELINES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(WORDS, st.integers()), inner, max_size=3),
        st.frozensets(st.integers(), max_size=2),
    ),
    max_leaves=6,
)
KEYS = st.one_of(
    st.sampled_from(sorted(FLAT)),
    st.sampled_from(sorted(FLAT)).map(lambda key: key.rpartition(".")[0] or "evals"),
    st.builds(lambda key, tail: key + tail, st.sampled_from(sorted(FLAT)), st.text(max_size=3)),
    st.text(max_size=8),
    st.sampled_from(["data.train_transforms[1].size", "data.eval_transforms[7]", "optim['lr']",
                     "evals.test.split", "evals.x.split", "model.image_size[0]", "", ".", "a.b"]),
)  # fmt: skip


def use(config):
    """All that a start makes of a config before it touches data and devices."""
    validate(config)
    plain = json.loads(json.dumps(workdirs.config_to_json(config), allow_nan=False))
    assert workdirs.config_to_json(freeze(workdirs.config_from_json(plain))) == plain
    for path in (config.data.split, *(entry.split for entry in config.evals.values())):
        split_range(path, num_examples=1442)
    for entry in config.evals.values():
        Evaluation(entry.every_steps, "", print).due(5, 10)
    mesh_shape(config.mesh, 8)
    loss_by_name(config.loss.name)
    cfg = read_section(config.model, num_classes=10)
    for key in ("train_transforms", "eval_transforms"):
        transform = transforms.build(
            config.data[key], image_size=cfg.image_size, channels=cfg.channels, key=key
        )
        if max(cfg.image_size) <= 64:
            picture = np.zeros((9, 8, 1), np.uint8)
            with contextlib.suppress(
                MemoryError, ValueError, OverflowError
            ):  # The loader's to say.
                transform({"image": picture, "label": 0}, np.random.default_rng(0))
    total = total_steps(config, 1442)
    check_best(config, total_steps=total)
    schedule = make_schedule(
        config.optim.schedule, total_steps=total, batch_size=config.batch_size, num_examples=1442
    )
    shares = [float(schedule(step)) for step in (0, total // 2, total)]
    assert all(0 <= share <= 1 for share in shares)
    shapes = param_shapes(cfg)
    assert train_flops_per_image(cfg) > 0
    tx = make_optimizer(config.optim, shapes, schedule=schedule)
    jax.eval_shape(tx.init, shapes)
    event("all of it was used")


@fuzz(
    500,
    overrides=st.lists(st.tuples(KEYS, st.one_of(WORDS, NUMBERS.map(str))), min_size=1, max_size=2),
)
def test_overrides_of_a_command_line(overrides):
    with bounded():
        words = [f"--config.{key}={value}" for key, value in overrides]
        use(cli.config_of([f"--config={ROOT}/configs/quickstart.py", *words]))


def set_key(config, key, value):
    """Sets a key as a config's file could, types and all."""
    *path, leaf = key.split(".")
    for part in path:
        config = config[part]
    with config.unlocked(), config.ignore_type():
        config[leaf] = value


@fuzz(
    500, changes=st.lists(st.tuples(st.sampled_from(sorted(FLAT)), OBJECTS), min_size=1, max_size=2)
)
def test_values_that_a_file_sets(changes):
    config = ConfigDict(small_config()).unlock()
    with bounded():
        for key, value in changes:
            with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
                set_key(config, key, value)  # What ml_collections refuses is the file's own error.
        use(freeze(config))


@fuzz(300, key=st.sampled_from(sorted(k for k in FLAT if not k.endswith("_transforms"))),
      value=st.one_of(NUMBERS, WORDS, st.booleans()), pipeline=st.none() | PIPELINES)  # fmt: skip
def test_values_of_the_right_type(key, value, pipeline):
    """What is of the type of its key gets further: to the model, the optimizer, the schedule."""
    config = ConfigDict(small_config()).unlock()
    kind = base_config().get_type(key) if "." not in key else type(FLAT[key])
    with bounded():
        config.data.train_transforms = pipeline or config.data.train_transforms
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            set_key(config, key, (value,) if kind in (tuple, list) else kind(value))
        use(freeze(config))
