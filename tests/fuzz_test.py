"""Whatever a config, an image or a work directory holds: only our own errors come out of it.

The number of examples is for a few seconds a target. For a long search, a hundred times as many:

    VIT_JAX_FUZZ_EXAMPLES=100 python -m pytest tests/fuzz_test.py -m slow --timeout=0
"""

import contextlib
import io
import json
import math
import os
import pathlib
import resource
import shutil
import sys
import time
import warnings

import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from tests.conftest import ROOT
from tests.mistakes import contents
from tests.pictures import photographs
from tests.small_run import small_config, train_on_one
from vit_jax import cli
from vit_jax import workdir as workdirs
from vit_jax.analysis import curves
from vit_jax.checkpoints.load import load_run, locate
from vit_jax.checkpoints.store import Store
from vit_jax.config import base_config, check_best, freeze, validate
from vit_jax.data import transforms
from vit_jax.data.base import split_range
from vit_jax.data.decode import FORMATS, MAX_PIXELS, decode_image
from vit_jax.errors import DataError, VitJaxError
from vit_jax.evals.build import Evaluation
from vit_jax.models import param_shapes, train_flops, vit_config
from vit_jax.optim import loss_by_name, make_optimizer, make_schedule, total_steps
from vit_jax.parallel.mesh import make_mesh, mesh_shape
from vit_jax.telemetry.jsonlines import read_jsonl

pytestmark = pytest.mark.slow

TIMES = float(os.environ.get("VIT_JAX_FUZZ_EXAMPLES", "1"))
SECONDS = 30  # For one example on a busy machine: more is work without bound.
MEMORY = 3 * 2**30  # For the whole process, which has JAX and TFDS in it.


def fuzz(examples, **strategies):
    """A test of `examples` examples, times VIT_JAX_FUZZ_EXAMPLES; each is bounded in time."""

    def decorate(test):
        quick = settings(
            max_examples=max(1, round(examples * TIMES)),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=TIMES == 1,
            database=None,
        )
        return quick(given(**strategies)(test))

    return decorate


@contextlib.contextmanager
def bounded():
    """Only our errors leave what is inside, which ends soon and needs no memory to speak of."""
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # As users run it: a warning is no error.
        with contextlib.suppress(VitJaxError):
            yield
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY


# ------------------------------------------------------------------------------------- configs

FLAT = workdirs.flatten(workdirs.config_to_json(small_config()))
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(-2, 2),
    st.floats(),
    st.sampled_from([2**31, 2**32, 2**63, 10**30, 1e-45, 1e300, -0.0]),
)
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "None", "nan", "-inf", "1e5", "true", "no", "B/16", "Ti/2", "mu/4", "22B/1", ".*", "(",
         "head/.*", "a" * 5000, "\ud800", "\x1b[31m", "../../etc/passwd", "gs://b/c", "train[:9%]",
         "cosine", "rsqrt", "adafactor", "muon", "lamb", "map", "sincos2d", "sigmoid_xent", "skip",
         "full", "test/top1", "fashion_mnist", "{'a': 1}", "((1, 2), 3)", "[" * 90, "1,2", "\0"]
    ),
)  # fmt: skip
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
        Evaluation(entry.every_steps, print).due(5, 10)
    mesh_shape(config.mesh, 8)
    loss_by_name(config.loss.name)
    cfg = vit_config(config.model, num_classes=10)
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
    assert train_flops(cfg) > 0
    tx = make_optimizer(config.optim, shapes, schedule=schedule)
    jax.eval_shape(tx.init, shapes)
    event("all of it was used")


HOLDER = cli.define_config()


def parse(words):
    """The config of a command line, or None and one message."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    argv = ["train", f"--config={ROOT}/configs/quickstart.py", *words]
    said, before = io.StringIO(), sys.argv
    sys.argv = argv  # Where ml_collections looks.
    try:
        with contextlib.redirect_stderr(said):
            cli._parse_flags(argv)
        return cli.read_config(HOLDER)
    except SystemExit as end:
        assert end.code == 2 and said.getvalue().startswith("error: "), said.getvalue()
        assert "Traceback" not in said.getvalue(), said.getvalue()
        return None
    finally:
        sys.argv = before


@fuzz(
    500,
    overrides=st.lists(st.tuples(KEYS, st.one_of(WORDS, NUMBERS.map(str))), min_size=1, max_size=2),
)
def test_overrides_of_a_command_line(overrides):
    with bounded():
        config = parse([f"--config.{key}={value}" for key, value in overrides])
        if config is not None:
            use(config)


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


# -------------------------------------------------------------------------------------- images


def encoded():
    """Small pictures in every format that is read, several ways each."""
    photo = photographs()["flower"].resize((40, 31))
    exif = Image.Exif()
    exif[0x0112] = 6
    high = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    ways = {
        "JPEG": [(photo, {"exif": exif}), (photo, {"progressive": True}),
                 (photo.convert("CMYK"), {}), (photo.convert("L"), {})],
        "PNG": [(photo, {}), (photo.convert("P"), {}), (photo.convert("RGBA"), {"exif": exif}),
                (high, {}), (photo.convert("1"), {}), (photo.convert("LA"), {})],
        "WEBP": [(photo, {}), (photo, {"lossless": True}), (photo.convert("RGBA"), {})],
        "GIF": [(photo, {}), (photo, {"save_all": True, "append_images": [photo.rotate(90)]})],
        "BMP": [(photo, {}), (photo.convert("P"), {})],
        "TIFF": [(photo, {}), (photo, {"compression": "tiff_lzw"}), (high, {}),
                 (photo, {"compression": "jpeg"}), (photo.convert("1"), {"compression": "group4"})],
        "PPM": [(photo, {}), (photo.convert("L"), {}), (high, {})],
        "JPEG2000": [(photo, {}), (photo, {"irreversible": True}), (photo.convert("L"), {})],
    }  # fmt: skip
    assert set(ways) == set(FORMATS)
    for kind, images in ways.items():
        for image, options in images:
            file = io.BytesIO()
            image.save(file, format=kind, **options)
            yield file.getvalue()


ENCODED = list(encoded())
EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x7f\xff",
            b"\x80\0\0\0", b"\1\0\0\0", b"65535 65535 ", b"\0\1\0\0"]  # fmt: skip
PLACE = st.floats(0, 1)


def mutate(data, kind, where, length, other, piece):
    """A flip, a cut, an insertion, an extreme number or a piece of another file."""
    at = int(where * len(data))
    span = int(length * len(data) ** 0.5) + 1
    match kind:
        case "flip":
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ (1 << len(piece) % 8)]) + data[at + 1 :]
        case "cut":
            return data[:at] + data[at + span :]
        case "end":
            return data[:at]
        case "insert":
            return data[:at] + piece + data[at:]
        case "number":
            number = EXTREMES[span % len(EXTREMES)]
            return data[:at] + number + data[at + len(number) :]
        case "splice":
            start = int(length * len(other))
            return data[:at] + other[start : start + span * 8] + data[at:]


def mutations(others):
    """A list of changes, as arguments of `mutate`."""
    kinds = st.sampled_from(["flip", "flip", "cut", "end", "insert", "number", "number", "splice"])
    return st.lists(
        st.tuples(kinds, st.one_of(PLACE, PLACE.map(lambda x: x**4)), PLACE, others,
                  st.binary(min_size=1, max_size=8)),
        min_size=1, max_size=4,
    )  # fmt: skip


@fuzz(4000, data=st.sampled_from(ENCODED), changes=mutations(st.sampled_from(ENCODED)),
      channels=st.sampled_from([1, 3]), exif=st.booleans())  # fmt: skip
def test_bytes_of_images(data, changes, channels, exif):
    for change in changes:
        data = mutate(data, *change) or b"\0"
    with bounded():
        try:
            pixels = decode_image(data, channels=channels, exif=exif)
        except DataError:
            return
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (channels,)
        assert 0 < math.prod(pixels.shape[:2]) <= MAX_PIXELS


# ----------------------------------------------------------------------------- work directories


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a finished run, and what must not change beside it."""
    folder = tmp_path_factory.mktemp("fuzz")
    config = small_config(
        model__depth=1, total_steps=2, log__every_steps=1, optim__schedule__warmup_steps=1
    )
    assert train_on_one(config, folder / "run") == 0
    (folder / "beside").mkdir()
    (folder / "beside" / "file").write_text("left alone")
    return folder


@pytest.fixture(scope="module")
def mesh():
    sizes = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    return make_mesh(sizes, devices=jax.devices()[:1])


SMALL = 100_000  # Bytes: JSON and the databases' indices, and small arrays.
PATHS = ["../../beside/file", "/etc/passwd", "run", "..", "gs://bucket/x", "\0", "a" * 5000]


def change_json(data, where, value):
    """One value, somewhere in the tree, is another one, or lacking, or has another name."""
    tree = json.loads(data)
    places = []

    def walk(node):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(tree if isinstance(tree, dict | list) else [tree])
    if not places:
        return data
    node, key = places[min(int(where * len(places)), len(places) - 1)]
    if value == "lacking":
        del node[key]
    elif value == "renamed" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    else:
        node[key] = value
    return json.dumps(tree).encode()


JSON_VALUES = st.one_of(
    st.sampled_from(["lacking", "renamed", None, True, [], {}, [[[]]], *PATHS]), NUMBERS, WORDS,
    st.lists(NUMBERS, max_size=3),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads.
@fuzz(60, which=PLACE, where=PLACE, value=JSON_VALUES, as_json=st.booleans(),
      changes=mutations(st.binary(min_size=1, max_size=50)))  # fmt: skip
def test_files_of_a_work_directory(runs, mesh, which, where, value, as_json, changes):
    with contextlib.ExitStack() as stack:
        workdir = runs / "copy"
        stack.callback(shutil.rmtree, workdir, ignore_errors=True)
        shutil.copytree(runs / "run", workdir)
        files = [
            path for path in sorted(workdir.rglob("*"))
            if path.is_file() and path.stat().st_size < SMALL
            and path.name not in ("lock", "curves.png", "timing.jsonl")
        ]  # fmt: skip
        file = files[min(int(which * len(files)), len(files) - 1)]
        file.write_bytes(damaged(file.read_bytes(), as_json, where, value, changes))
        outside = contents(runs / "beside")
        names = {path.name for path in runs.iterdir()}
        here = set(os.listdir())

        if file.name == "metrics.jsonl":
            with bounded():
                read_jsonl(file)
            with bounded():
                curves(file, workdir / "curves.png")
        with bounded():
            locate(workdir)
        with bounded():
            load_run(workdir, mesh=mesh)
        with bounded(), Store(workdir / "checkpoints") as store:
            items = {"params": store.shapes(2, "params")}
            on_mesh = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
                ),
                items,
            )
            store.restore_newest(on_mesh)
        assert contents(runs / "beside") == outside
        assert {path.name for path in runs.iterdir()} == names and set(os.listdir()) == here


def damaged(data, as_json, where, value, changes):
    if as_json:
        with contextlib.suppress(ValueError):
            return change_json(data, where, value)
    for change in changes:
        data = mutate(data or b"\0", *change)
    return data


def test_nothing_is_in_the_copy_that_the_search_leaves_out(runs):
    """The search above changes every kind of file that a checkpoint has."""
    small = {path.name for path in (runs / "run").rglob("*") if path.is_file()}
    assert {"config.json", "dataset.json", "metrics.jsonl", "_METADATA", "_CHECKPOINT_METADATA",
            "manifest.ocdbt", "metadata"} <= small, small  # fmt: skip
    assert isinstance(runs, pathlib.Path)
