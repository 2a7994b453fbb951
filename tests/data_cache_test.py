"""`data.cache`: batches equal those without it; what a full disk, a kill or a change leaves."""

import io
import pickle
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import features

from tests.conftest import ROOT
from tests.data_fast_decode_test import jpeg, photograph
from tests.data_pipeline_test import assert_nothing_lives, assert_same, one_device
from tests.small_run import run, small_config
from vit_jax.config import base_config, validate
from vit_jax.data import decoded_cache, recipes
from vit_jax.data.base import Source
from vit_jax.data.batches import LoaderOptions
from vit_jax.data.decode import decode_image
from vit_jax.data.decoded_cache import DecodedCache, ImageMemory, open_cache
from vit_jax.data.pipeline import eval_batches, train_batches
from vit_jax.data.pixel_files import PixelFiles
from vit_jax.data.transforms import compose
from vit_jax.errors import ConfigError

ENOUGH = 10**9
EVALUATED = ({"op": "decode"}, {"op": "resize_small"}, {"op": "center_crop"}, {"op": "value_range"})


def png(height, width, mode):
    file = io.BytesIO()
    photograph().resize((width, height)).convert(mode).save(file, "PNG")
    return file.getvalue()


class Mixed(Source):
    """Images of all kinds: JPEG, turned by EXIF, PNG with alpha, 1-bit, gray, broken, an array."""

    name, split, class_names = "mixed", "train", ("a", "b")

    def __init__(self, offset=0):
        self.images = [jpeg(61 + i, 93 - i) for i in range(offset, offset + 8)]
        self.images += [jpeg(70, 80, orientation=6), jpeg(70, 81, mode="L"), png(50, 61, "RGBA")]
        self.images += [png(51, 62, "1"), b"broken", np.full((40, 50, 3), 7, np.uint8)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 2}


GOOD = 12  # Encoded images of `Mixed` that can be decoded.


def batches(cache, source, *, steps=6, start_step=0, workers=0, level="medium1"):
    """The first training batches of 8, and the bad examples."""
    transform = compose(recipes.augreg(level)[0], image_size=32, channels=3, cache=cache)
    bad = []
    with train_batches(
        source,
        transform,
        batch_size=8,
        seed=3,
        start_step=start_step,
        sharding=one_device(),
        options=LoaderOptions(workers, 1, 1),
        on_bad=lambda *args: bad.append(args[:-1]),
    ) as iterator:
        got = [jax.device_get(next(iterator)) for _ in range(steps)]
    assert_nothing_lives()  # The loader's threads would go on to decode.
    return got, bad


def evaluated(cache, source):
    transform = compose(EVALUATED, image_size=32, channels=3, cache=cache)
    with eval_batches(
        source,
        transform,
        batch_size=8,
        sharding=one_device(),
        options=LoaderOptions(0, 2, 1),
        on_bad=lambda *args: None,
    ) as iterator:
        return [jax.device_get(batch) for batch in iterator]


def make(kind, folder, *, limit_bytes=ENOUGH):
    if kind == "ram":
        return DecodedCache(ImageMemory(limit_bytes=limit_bytes))
    folder.mkdir(exist_ok=True)
    return DecodedCache(PixelFiles(str(folder), limit_bytes=limit_bytes))


@pytest.fixture
def decoded(monkeypatch):
    """The images that the cache has decoded, in order."""
    images = []

    def spy(data, **kwargs):
        pixels = decode_image(data, **kwargs)
        images.append(data)
        return pixels

    monkeypatch.setattr(decoded_cache, "decode_image", spy)
    return images


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("level", ["none", "medium1"])
def test_batches_are_the_same_and_each_image_is_decoded_once(kind, level, tmp_path, decoded):
    source, cache = Mixed(), make(kind, tmp_path / "cache")
    want, want_bad = batches(None, source, level=level)
    got, bad = batches(cache, source, level=level)
    assert_same(got, want)
    assert bad == want_bad != []
    assert len(decoded) == len(set(decoded)) == GOOD
    assert_same(evaluated(cache, source), evaluated(None, source))
    assert len(decoded) == GOOD
    if kind == "disk":  # A run that continues, in another process.
        restored = pickle.loads(pickle.dumps(cache))
        assert_same(batches(restored, source, steps=2, start_step=2, level=level)[0], want[2:4])
        assert len(decoded) == GOOD


def test_what_decoding_depends_on_is_distinguished(tmp_path):
    cache, image = make("disk", tmp_path / "cache"), jpeg(30, 40, orientation=6)
    for _ in range(2):
        for channels in (1, 3):
            for exif in (True, False):
                want = decode_image(image, channels=channels, exif=exif)
                got = cache.decoded(image, channels=channels, exif=exif)
                np.testing.assert_array_equal(got, want)


def test_other_images_are_never_served(tmp_path):
    """Of another data set of the same length, or of a file that has changed."""
    first, second = Mixed(), Mixed(offset=1)
    for source in (first, second):
        cache = make("disk", tmp_path / "cache")
        assert_same(batches(cache, source, steps=3)[0], batches(None, source, steps=3)[0])
    first.images[0] = jpeg(61, 93, quality=30)
    assert_same(batches(cache, first, steps=3)[0], batches(None, first, steps=3)[0])


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_the_limit_is_kept_and_said_once(kind, tmp_path, caplog, decoded):
    source, limit = Mixed(), 100_000
    with caplog.at_level("WARNING", logger="vit_jax"):
        cache = make(kind, tmp_path / kind, limit_bytes=limit)
        assert_same(batches(cache, source)[0], batches(None, source)[0])
    (message,) = [r.getMessage() for r in caplog.records if "takes no more" in r.getMessage()]
    assert "its limit is 0.00 GB (data.cache_gb)" in message
    decoded.clear()
    evaluated(cache, source)
    assert 3 < len(decoded) < 9  # Some are kept.
    if kind == "disk":
        used = sum(file.stat().st_size for file in (tmp_path / kind).glob("*.pixels"))
        assert limit / 2 < used <= limit


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path, caplog, decoded):
    """A real partial write: of the last image that begins below a limit of the file's size."""
    source, soft = Mixed(), resource.getrlimit(resource.RLIMIT_FSIZE)
    want = batches(None, source)[0]
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, soft[1]))
    try:
        with caplog.at_level("WARNING", logger="vit_jax"):
            assert_same(batches(make("disk", tmp_path / "full"), source)[0], want)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        signal.signal(signal.SIGXFSZ, before)
    assert sum("a file cannot be written" in r.getMessage() for r in caplog.records) == 1
    # What was written before is used, and the rest is stored by the next run.
    for count in (9, 0):
        decoded.clear()
        evaluated(make("disk", tmp_path / "full"), source)
        assert len(decoded) == count


def stored(folder, count=3):
    """Stores some arrays; returns them by key."""
    rng = np.random.default_rng(0)
    files, images = PixelFiles(str(folder), limit_bytes=ENOUGH), {}
    for i in range(count):
        images[bytes([i] * 16)] = rng.integers(1, 256, (5 + i, 7, 3), dtype=np.uint8)
        files.put(*list(images.items())[-1])
    return images


def check(folder, images):
    """Returns how many images a new process finds; none may be another."""
    files = PixelFiles(str(folder), limit_bytes=ENOUGH)
    found = {key: files.get(key) for key in images}
    for key, pixels in found.items():
        if pixels is not None:
            np.testing.assert_array_equal(pixels, images[key])
    return sum(pixels is not None for pixels in found.values())


@pytest.mark.parametrize("extension", ["pixels", "index"])
def test_torn_and_damaged_files_serve_no_wrong_image(extension, tmp_path):
    images = stored(tmp_path)
    (file,) = tmp_path.glob(f"*.{extension}")
    content = file.read_bytes()
    counts = set()
    for end in range(0, len(content), 5):  # A torn end; and pages that were never written.
        for damaged in (content[:end], content[:end].ljust(len(content), b"\0")):
            file.write_bytes(damaged)
            counts.add(check(tmp_path, images))
    assert counts >= {0, 1, 2}
    file.unlink()
    assert check(tmp_path, images) == 0
    files = PixelFiles(str(tmp_path), limit_bytes=ENOUGH)
    for key, pixels in images.items():  # What cannot be read is stored again.
        assert files.get(key) is None
        files.put(key, pixels)
    assert check(tmp_path, images) == 3


WRITER = """
import sys
import numpy as np
from vit_jax.data.pixel_files import PixelFiles
files = PixelFiles(sys.argv[1], limit_bytes=10**9)
for i in range(10_000):
    files.put(i.to_bytes(16, "little"), np.full((100, 300, 3), i % 256, np.uint8))
    if i == 3:
        print("begun", flush=True)
"""


@pytest.mark.medium
def test_a_killed_writer_leaves_only_whole_images(tmp_path):
    command = [sys.executable, "-c", WRITER, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        time.sleep(0.05)
        writer.kill()
    images = {
        i.to_bytes(16, "little"): np.full((100, 300, 3), i % 256, np.uint8) for i in range(10_000)
    }
    assert check(tmp_path, images) >= 4


def test_processes_see_what_others_store(tmp_path):
    ours, others = (PixelFiles(str(tmp_path), limit_bytes=ENOUGH) for _ in range(2))
    image = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    for key in (b"0" * 16, b"1" * 16):
        others.put(key, image)
        np.testing.assert_array_equal(ours.get(key), image)
    ours.put(b"2" * 16, image)
    np.testing.assert_array_equal(others.get(b"2" * 16), image)


@pytest.mark.slow
def test_worker_processes_share_a_folder(tmp_path, decoded):
    source, cache = Mixed(), make("disk", tmp_path / "cache")
    want, got = batches(None, source), batches(cache, source, workers=2)
    assert_same(got[0], want[0])
    assert got[1] == want[1]
    assert len(list((tmp_path / "cache").glob("*.pixels"))) > 1
    assert_same(evaluated(cache, source), evaluated(None, source))
    assert len(decoded) == 1  # The first one, for its shape: workers have stored the others.


def test_a_folder_that_is_emptied_is_filled_again(tmp_path):
    ours, others = (PixelFiles(str(tmp_path), limit_bytes=ENOUGH) for _ in range(2))
    for i in (0, 1, 2, None, 2, 1):
        if i is None:
            for file in tmp_path.iterdir():
                file.unlink()
            continue
        key, pixels = bytes([i] * 16), np.full((5 + i, 7, 3), i, np.uint8)
        assert ours.get(key) is None
        ours.put(key, pixels)
        others.get(b"x" * 16)  # Reads the index.
        for files in (ours, others):
            np.testing.assert_array_equal(files.get(key), pixels)


def test_files_that_cannot_be_read_hide_no_others(tmp_path):
    for name in ("0.index", "0.pixels", "g.index", "g.pixels"):  # Before and after hexadecimals.
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    (tmp_path / "1.index").mkdir()
    images = stored(tmp_path)
    assert check(tmp_path, images) == 3


def test_the_process_that_starts_loader_processes_says_that_the_limit_is_reached(tmp_path, caplog):
    files = PixelFiles(str(tmp_path), limit_bytes=1000)
    with caplog.at_level("WARNING", logger="vit_jax"):
        copy = pickle.loads(pickle.dumps(files))
        for i in range(6):
            copy.put(bytes([i] * 16), np.full((10, 10, 3), i, np.uint8))
        assert not caplog.records
        later = [pickle.loads(pickle.dumps(files)) for _ in range(2)]
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith(str(tmp_path)) and "takes no more" in message
    later[0].put(b"x" * 16, np.zeros((1, 1, 3), np.uint8))
    assert check(tmp_path, {b"x" * 16: None}) == 0


def test_the_key_depends_on_the_decoders_version(monkeypatch):
    versions = decoded_cache._decoder.__wrapped__
    before = versions()
    with monkeypatch.context() as patch:
        patch.setattr(decoded_cache, "DECODING_VERSION", 0)
        assert versions() != before
    installed = features.version
    monkeypatch.setattr(
        features, "version", lambda name: "0" if name == "libjpeg_turbo" else installed(name)
    )
    assert versions() != before


def test_ram_loads_in_this_process(monkeypatch):
    seen = []
    original = LoaderOptions.resolved

    def spy(self, **kwargs):
        seen.append(self.workers)
        return original(self, **kwargs, cores=64)

    monkeypatch.setattr(LoaderOptions, "resolved", spy)
    batches(make("ram", None), Mixed(), steps=1, workers=-1)
    assert seen == [0]


@pytest.mark.slow
def test_a_run_with_a_cache_equals_one_without(tmp_path, decoded):
    """Training and evaluations use the same one, and so does another run."""
    for split, count in (("train", 6), ("test", 2)):
        for label in ("a", "b"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for i in range(count):
                name = tmp_path / "images" / split / label / f"{i}.jpg"
                name.write_bytes(jpeg(20 + i, 30 + count, quality=ord(label) - 20))
    decode = {"op": "decode", "channels": 1}
    data = {
        "data__source": "image_folder", "data__data_dir": str(tmp_path / "images"),
        "data__train_transforms": (
            decode, {"op": "random_resized_crop"}, {"op": "value_range"},
        ),
        "evals__test__split": "test",
        "data__threads": 1,  # Two may decode an image that is in a batch twice at the same time.
    }  # fmt: skip
    want = run(tmp_path / "plain", **data)
    assert not decoded
    data["data__cache"] = str(tmp_path / "cache")
    assert run(tmp_path / "cached", **data) == want
    assert len(decoded) == 16
    assert run(tmp_path / "again", **data) == want
    assert len(decoded) == 16


def test_mistakes(tmp_path):
    def message(**changes):
        config = base_config()
        config.data.update(changes)
        with pytest.raises(ConfigError) as error:
            validate(config)
        return str(error.value)

    assert "./none" in message(cache="none")
    assert "folder of this machine" in message(cache="gs://bucket/cache")
    assert "data.workers=0" in message(cache="ram", workers=2)
    assert "data.decode=exact" in message(cache="ram", decode="fast")
    assert "data.cache_gb" in message(cache_gb=-1.0)
    (tmp_path / "file").touch()
    config = small_config(data__cache=str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"data\.cache=.* cannot be used"):
        open_cache(config.data, processes=1)


def test_the_limit_in_memory():
    config = small_config(data__cache="ram")
    assert open_cache(config.data, processes=1).store.limit_bytes > 0
    with pytest.raises(ConfigError, match=r"2 processes .* Set data\.cache_gb"):
        open_cache(config.data, processes=2)
    config = small_config(data__cache="ram", data__cache_gb=0.5)
    assert open_cache(config.data, processes=2).store.limit_bytes == 5e8
