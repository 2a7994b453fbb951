"""Whatever an image or a work directory holds: only our own errors come out of it, soon."""

import contextlib
import io
import json
import math
import os
import shutil

import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from tests.folders import contents
from tests.fuzzing import NUMBERS, WORDS, bounded, fuzz
from tests.images import photographs
from tests.small_run import small_config, train_on_one
from vit_jax.analysis import curves
from vit_jax.checkpoints.load import load_run, locate
from vit_jax.checkpoints.store import Store
from vit_jax.data.decode import FORMATS, MAX_PIXELS, decode_image
from vit_jax.errors import DataError
from vit_jax.parallel.mesh import make_mesh
from vit_jax.telemetry.jsonlines import read_jsonl

pytestmark = pytest.mark.slow

# -------------------------------------------------------------------------------------- images


def encoded():
    """Small images in every format that is read, several ways each."""
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


def test_the_search_is_in_every_kind_of_file(runs):
    small = {path.name for path in (runs / "run").rglob("*") if path.is_file()}
    assert {"config.json", "dataset.json", "metrics.jsonl", "_METADATA", "_CHECKPOINT_METADATA",
            "manifest.ocdbt", "metadata"} <= small, small  # fmt: skip
