"""Broken image files are found before a run begins, and no others."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data_fingerprint_test import on
from tests.small_run import small_config, train_on_one
from vit_jax.config import classification_eval
from vit_jax.data import headers
from vit_jax.data.image_folder import ImageFolder
from vit_jax.data.subset import random_subset
from vit_jax.errors import DataError
from vit_jax.sweeps.costs import cost
from vit_jax.sweeps.plan import PlannedRun


def encoded(kind):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of whole images, some of them unusual, in two splits."""
    jpeg, png = encoded("jpeg"), encoded("png")
    files = {
        "whole.jpg": jpeg,
        "whole.png": png,
        "webp.webp": encoded("webp"),
        "followed.jpg": jpeg + b"more after the end",
        # A comment with a wrong checksum, after the signature and the header (8 and 25 bytes).
        "comment.png": png[:33] + b"\0\0\0\1tEXtx\0\0\0\0" + png[33:],
    }
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for file, data in files.items():
                (tmp_path / split / name / file).write_bytes(data)
    return tmp_path


BROKEN = {
    "train/cat/cut.jpg": encoded("jpeg")[:-200],
    "train/dog/cut.png": encoded("png")[:-200],
    "train/dog/text.jpg": b"<html>404</html>",
    "test/cat/empty.png": b"",
}


def check(folder, *, skip_bad=False):
    train, test = (ImageFolder(folder, split=split) for split in ("train", "test"))
    subset = random_subset(train, len(train), seed=0)
    headers.check_headers([subset, test, train], skip_bad=skip_bad)


def test_all_broken_files_are_named_once_and_no_others(folder, caplog, monkeypatch):
    check(folder)
    for name, data in BROKEN.items():
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=r"^4 of 24 checked images cannot be read:") as error:
        check(folder)
    lines = str(error.value).splitlines()
    named = {line.partition(": ")[0] for line in lines[1:5]}
    assert named == {str(folder / name) for name in BROKEN}
    assert "data.on_bad=skip" in lines[5]
    check(folder, skip_bad=True)
    assert "4 of 24 checked images are broken, and skipped: " in caplog.text
    assert sum(str(folder / name) in caplog.text for name in BROKEN) == 3
    assert "; and 1 more" in caplog.text
    monkeypatch.setattr(headers, "MAX_SECONDS", -1.0)  # No time for any.
    check(folder)


def test_a_run_does_not_begin_with_broken_files(folder, tmp_path):
    config = small_config(
        **on(folder, evals={"test": classification_eval(split="test", every_steps=1)})
    )
    (folder / "train/cat/cut.jpg").write_bytes(BROKEN["train/cat/cut.jpg"])
    (folder / "test/cat/empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)^2 of 22 checked.*(cut\.jpg.*empty|empty.*cut\.jpg)"):
        train_on_one(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # A dry run says the same, and nothing where the files are whole.
    with pytest.raises(DataError, match=r"^2 of 22 checked images"):
        cost(PlannedRun("broken", {}, (), config, tmp_path / "run"))
    (folder / "train/cat/cut.jpg").unlink()
    (folder / "test/cat/empty.png").unlink()
    folder = folder.rename(tmp_path.with_name("whole"))
    config = small_config(**on(folder, data__follow_links=True))
    cost(PlannedRun("whole", {}, (), config, tmp_path / "run"))
