"""data.on_bad="skip" in whole runs: skipped examples are named and counted once, despite kills."""

import contextlib
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.images import make
from tests.same_run import checkpoint
from tests.small_run import run, small_config, train_on_one
from vit_jax.data import headers, order, pipeline
from vit_jax.data.bad_examples import BadExamples, summary
from vit_jax.data.image_folder import ImageFolder
from vit_jax.errors import ConfigError, DataError
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.results import table, write
from vit_jax.rundir.workdir import has_checkpoints
from vit_jax.telemetry.jsonlines import read_jsonl

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 images, 12 of them for testing; in each split, some are damaged."""
    root = tmp_path_factory.mktemp("folder") / "images"
    make(root / "train", each=16)
    make(root / "test", each=4, seed=1)
    spoil(root / "train" / "flower" / "003.JPEG", b"no image")
    spoil(root / "train" / "temple" / "008.jpg", (root / "train/temple/008.jpg").read_bytes()[:500])
    spoil(root / "train" / "portrait" / "001.png", b"")
    spoil(root / "test" / "flower" / "002.webp", b"RIFF")
    return root


def spoil(path, content):
    assert path.exists()
    path.write_bytes(content)


BAD = ("flower/003.JPEG", "temple/008.jpg", "portrait/001.png")  # Of the training split.
TRANSFORMS = ({"op": "decode"}, {"op": "resize"}, {"op": "value_range"})


def on(folder, **changes):
    return {
        "data__source": "image_folder", "data__data_dir": str(folder), "model__channels": 3,
        "data__train_transforms": TRANSFORMS, "data__eval_transforms": TRANSFORMS,
        "evals": ConfigDict({"test": {"type": "classification", "split": "test",
                                      "every_steps": 6}}),
        "data__on_bad": "skip", **changes,
    }  # fmt: skip


def expected_report(folder, steps, *, after_steps=()):
    """Returns (step, split, row, path) of each line, from the order's definition."""
    train = ImageFolder(folder, split="train")
    lines = []
    for step in steps:
        ids = order.example_ids(step, batch_size=16, num_examples=len(train), seed=0)
        for row, i in enumerate(ids.tolist()):
            path = pathlib.Path(train.describe(i))
            if "/".join(path.parts[-2:]) in BAD:
                lines.append((step + 1, "train", row, str(path)))
    lines += [(step, "test", None, f"{folder}/test/flower/002.webp") for step in after_steps]
    return sorted(lines, key=str)


def report(workdir, name="bad_examples.jsonl"):
    return sorted(
        [
            (line["step"], line["split"], line.get("row"), line["place"])
            for line in read_jsonl(workdir / name)
        ],
        key=str,
    )


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A finished run on these images, and its output."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(workdir, log__every_steps=1, **on(folder))
    return workdir, out.getvalue()


def test_a_run_skips_names_and_counts_them(folder, whole):
    workdir, out = whole
    lines = read_jsonl(workdir / "metrics.jsonl")
    expected = expected_report(folder, range(12), after_steps=(6, 12))
    assert report(workdir) == expected
    reported = read_jsonl(workdir / "bad_examples.jsonl")
    assert {line["error"].split(":")[0].split(" of ")[0] for line in reported} == {
        "Not an image", "Broken image",
    }  # fmt: skip
    for line in lines:
        skipped = [entry for entry in expected if entry[:2] == (line["step"], "train")]
        assert line["train/skipped"] == len(skipped)
    assert [line["test/count"] for line in lines if "test/count" in line] == [11, 11]
    assert "train: up to 48 images" in out
    assert f"Skipped: 4 bad examples, {len(expected)} times in all: see {workdir}" in out


def test_without_the_policy_the_first_bad_example_ends_the_run(tmp_path, folder):
    with pytest.raises(DataError, match=r"/images/.*: (Not an|Broken) image.*\n.*on_bad=skip leav"):
        run(tmp_path / "run", **on(folder, data__on_bad="error"))
    assert not (tmp_path / "run" / "bad_examples.jsonl").exists()


@pytest.mark.slow
def test_a_run_that_a_bad_example_ended_continues_as_if_it_had_skipped_from_the_start(
    tmp_path, folder, monkeypatch
):
    """Also with mixing and accumulation, on which the weights of a batch have an effect."""
    # The start of a run checks as many files as time allows: here none.
    monkeypatch.setattr(headers, "MAX_SECONDS", -1.0)
    only_train = shutil.copytree(folder, tmp_path / "images")
    flower = only_train / "test" / "flower"
    good = next(path for path in flower.iterdir() if "002" not in path.name)
    spoil(flower / "002.webp", good.read_bytes())
    changes = on(
        only_train, batch_size=4, total_steps=12, model__depth=1, evals=ConfigDict(),
        seed=first_bad_after_step_4(only_train),
        mix__mixup_alpha=0.2, optim__accum_steps=2, checkpoint__every_steps=4,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"/images/.*: (Not an|Broken) image"):
        run(tmp_path / "run", **changes | {"data__on_bad": "error"})
    assert has_checkpoints(tmp_path / "run")

    got = run(tmp_path / "run", **changes)
    expected = run(tmp_path / "whole", **changes)
    assert sum(line.get("train/skipped", 0) for line in got) > 0
    for line in (*got, *expected):
        line.pop("train/skipped", None)  # It is logged from the change on.
    assert got == expected
    arrays, expected_arrays = (checkpoint(tmp_path / name, 12)[0] for name in ("run", "whole"))
    for name, array in expected_arrays.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    for name in ("bad_examples.jsonl", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ConfigError, match=r"data\.on_bad: 'skip' -> 'error'"):
        run(tmp_path / "run", **changes | {"data__on_bad": "error"})


def first_bad_after_step_4(folder):
    """Returns the first seed with which no batch of 4 before step 4 has a bad example."""
    train = ImageFolder(folder, split="train")
    bad = {i for i in range(len(train)) if train.describe(i).endswith(BAD)}
    return next(
        seed
        for seed in range(1, 1000)
        if bad.isdisjoint(order.examples_at(np.arange(16), num_examples=len(train), seed=seed)[0])
    )


@pytest.mark.slow
def test_after_a_kill_no_line_is_duplicated_or_lost(tmp_path, folder, monkeypatch):
    class Killed(BaseException):
        pass

    run(tmp_path / "whole", **on(folder))
    original, drawn = pipeline.Batches.__next__, []

    def draw_or_die(self):
        if len(drawn) == 13:
            raise Killed
        drawn.append(None)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Batches, "__next__", draw_or_die)
        with pytest.raises(Killed):
            train_on_one(small_config(**on(folder)), tmp_path / "run")
    killed = report(tmp_path / "run")
    assert max(step for step, *_ in killed) > 8  # After the checkpoint that the run continues from.
    with open(tmp_path / "run" / "bad_examples.jsonl", "ab") as file:
        file.write(b'{"step": 11, "spl')  # A torn last line.
    run(tmp_path / "run", **on(folder))
    for name in ("bad_examples.jsonl", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_files_of_earlier_processes_are_truncated_too(tmp_path):
    for name in ("bad_examples.jsonl", "bad_examples.1.jsonl", "bad_examples.12.jsonl"):
        lines = [{"step": step, "place": "p"} for step in (1, 5, 9)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "bad_examples.old.jsonl").write_text("not ours")
    BadExamples(tmp_path, on_bad="skip", resume_step=5).close()
    assert "Skipped: 1 bad example, 6 times" in summary(tmp_path)
    BadExamples(tmp_path, on_bad="error", resume_step=None).close()
    assert summary(tmp_path) == ""


@pytest.mark.slow
def test_a_batch_without_a_good_example_ends_the_run(tmp_path, folder):
    """As when the disk with the images is unmounted: nothing would be learned from then on."""
    folder = shutil.copytree(folder, tmp_path / "images")
    config = small_config(**on(folder, checkpoint__every_steps=4))
    original, drawn = pipeline.Batches.__next__, []

    def draw_and_take_away(self):
        drawn.append(None)
        if len(drawn) == 2:
            (folder / "train").rename(folder / "gone")
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.Batches, "__next__", draw_and_take_away)
        with pytest.raises(DataError, match=r"Every example of the batch of update \d+ is bad"):
            train_on_one(config, tmp_path / "run")
    errors = {line["error"] for line in read_jsonl(tmp_path / "run" / "bad_examples.jsonl")}
    assert any("No such file" in error for error in errors)
    (folder / "gone").rename(folder / "train")
    run(tmp_path / "run", **on(folder))  # It goes on.


def test_an_evaluation_skips_bad_examples_and_shows_the_others(folder, whole, caplog):
    workdir, _ = whole
    evaluation = evaluate(workdir)
    write(evaluation)
    assert evaluation.count == 11 and evaluation.report.confusion.sum() == 11
    assert "not read 1 example, not counted" in table(evaluation)
    (location,) = evaluation.bad
    assert location.endswith("flower/002.webp")
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if m.startswith(f"{location}: it is not counted: ")]
    # The samples are the good examples, in order, each with its label.
    test = ImageFolder(folder, split="test")
    good = [i for i in range(12) if not test.describe(i).endswith("flower/002.webp")]
    for number, i in enumerate(good[:10]):
        label = test.class_names[test[i]["label"]]
        sample = workdir / "samples" / f"{number}-{label}.png"
        with Image.open(sample) as image:
            assert image.size == (8, 8)
