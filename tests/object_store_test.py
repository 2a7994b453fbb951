"""Work directories in an object store: the same bits as on a disk, whatever the store does.

The store is `tests.fake_gcs`: a real server, with gcsfs, Orbax and TensorStore as they are.
"""

import asyncio
import importlib.util
import json
import threading
import time
import types

import jax
import pytest
from etils import epath

from tests.small_run import run, small_config, train_on_one
from tests.train_run_test import Killed, arrays, assert_same_bits, kill_at
from vit_jax.checkpoints.store import Store
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.predict import predict
from vit_jax.inference.results import write
from vit_jax.rundir.workdir import read_config
from vit_jax.telemetry import StepProfiler, read_jsonl

pytestmark = [
    pytest.mark.medium,
    # Not imported here: gcsfs reads its environment on import.
    pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs"),
    # Orbax leaves tasks of a failed read to a closed event loop.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leaves_nothing"),
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),  # gcsfs does.
]


RUN = epath.Path("gs://bucket/run")


@pytest.fixture
def impatient(monkeypatch):
    """Makes retries few and immediate."""
    hurried = types.SimpleNamespace(**{**vars(asyncio), "sleep": lambda seconds: asyncio.sleep(0)})
    monkeypatch.setattr("gcsfs.retry.asyncio", hurried)
    from orbax.checkpoint._src.serialization import tensorstore_utils

    quick = {"max_retries": 3, "initial_delay": "10ms", "max_delay": "20ms"}
    for context in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        changed = {**getattr(tensorstore_utils, context), "gcs_request_retries": quick}
        monkeypatch.setattr(tensorstore_utils, context, changed)


def steps(gcs, folder="run/checkpoints"):
    """Returns the steps that have any object, complete or not."""
    depth = folder.count("/") + 1
    return sorted(
        {int(name.split("/")[depth]) for name in gcs.objects() if name.startswith(folder + "/")}
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The reference run, on a disk."""
    workdir = tmp_path_factory.mktemp("local")
    run(workdir)
    return workdir


@pytest.fixture(scope="module")
def objects_of_a_killed_run(gcs_server):
    """The objects of a run that was killed after its saves of steps 4 and 8."""
    gcs_server.buckets["bucket"] = {}
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 14)
        with pytest.raises(Killed):
            train_on_one(small_config(), RUN)
    return gcs_server.objects()


@pytest.fixture
def killed(objects_of_a_killed_run, gcs):
    """The killed run in the store, and its objects."""
    for name, content in objects_of_a_killed_run.items():
        gcs.put(name, content)
    return gcs.objects()


def assert_same_run(gcs, local, folder="run"):
    assert gcs.objects()[f"{folder}/metrics.jsonl"] == (local / "metrics.jsonl").read_bytes()
    assert_same_bits(arrays(epath.Path(f"gs://bucket/{folder}"), 12), arrays(local, 12))


# ----------------------------------------------------------------------------- a store that works


@pytest.mark.slow
def test_a_run_in_a_store_is_the_run_on_a_disk(gcs, local):
    run(RUN, log__tensorboard=True)
    assert_same_run(gcs, local)
    left = {name.split("/")[1] for name in gcs.objects()}
    assert left == {
        "config.json", "dataset.json", "run.json", "metrics.jsonl", "timing.jsonl", "curves.png",
        "checkpoints", "tb",
    }  # fmt: skip
    assert steps(gcs) == [8, 12]
    on_disk = json.loads((local / "config.json").read_text())
    on_disk["log"]["tensorboard"] = True
    assert json.loads(gcs.objects()["run/config.json"]) == on_disk


@pytest.mark.slow
def test_evaluations_and_predictions_are_the_same(gcs, local, tmp_path):
    run(RUN)
    here, there = evaluate(local), evaluate(RUN)
    assert here.report.to_json() == there.report.to_json()
    write(here), write(there)
    objects = gcs.objects()
    assert json.loads(objects["run/evaluation.json"])["top1"] == here.top1
    for name in ("predictions.png", "classes.png"):  # confusion.png names the checkpoint.
        assert objects[f"run/{name}"] == (local / name).read_bytes(), name
    assert "run/confusion.png" in objects
    samples = sorted(path.name for path in (local / "samples").iterdir())
    assert samples == [n.split("/")[2] for n in objects if n.startswith("run/samples/")]
    images = [str(local / "samples" / name) for name in samples]
    assert list(predict(RUN, images)) == list(predict(local, images))
    write(evaluate(RUN / "checkpoints" / "8"))
    assert json.loads(gcs.objects()["run/evaluation-step-8/evaluation.json"])["step"] == 8
    assert gcs.objects()["run/evaluation.json"] == objects["run/evaluation.json"]


@pytest.mark.slow
def test_the_state_goes_from_a_disk_to_the_store_and_back(gcs, local, tmp_path):
    resumed = small_config(total_steps=14, resume=str(local))
    assert train_on_one(resumed, RUN) == 0
    back = small_config(total_steps=16, resume="gs://bucket/run")
    assert train_on_one(back, tmp_path / "back") == 0
    assert [line["step"] for line in read_jsonl(tmp_path / "back" / "metrics.jsonl")] == [16]
    started = small_config(total_steps=3, init_from="gs://bucket/run/checkpoints/14")
    assert train_on_one(started, tmp_path / "started") == 0


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [8, 12])
def test_a_killed_run_resumes_to_the_same_bits(gcs, local, monkeypatch, killed_at):
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            train_on_one(small_config(), RUN)
    run(RUN)
    assert_same_run(gcs, local)


def test_a_trace_is_copied_to_the_store(gcs):
    with StepProfiler(RUN, steps=(0, 1)) as profiler:
        for step in range(3):
            with profiler.step(step):
                result = jax.numpy.ones(3) + step
            profiler.after(step, result)
    assert any(name.endswith(".xplane.pb") for name in gcs.objects())


# ------------------------------------------------------------------------------- the store fails


@pytest.mark.slow
def test_requests_to_a_busy_store_are_retried(gcs, local, impatient):
    refused = {}

    def busy(method, path):
        """Refuses every request the first time."""
        if (method, path) in refused:
            return None
        refused[method, path] = [503, 429, 500, 502][len(refused) % 4]
        return refused[method, path]

    gcs.fault = busy
    run(RUN)
    gcs.fault = None
    assert len(refused) > 200
    assert_same_run(gcs, local)


def stop_at(gcs, part, *, method="POST"):
    """Stops the store at the first request of this method with `part` in its path."""

    def fault(asked, path):
        if asked == method and part in path:
            gcs.fault = None
            threading.Thread(target=gcs.stop).start()
            time.sleep(0.1)

    gcs.fault = fault


@pytest.mark.slow
@pytest.mark.parametrize("part", ["checkpoints/8/params", "run/metrics.jsonl"])
def test_an_outage_during_a_run_ends_it_and_keeps_the_checkpoints(gcs, local, impatient, part):
    with pytest.raises((CheckpointError, DataError)) as error:
        stop_at(gcs, part)
        train_on_one(small_config(), RUN)
    print(error.value)
    assert "gs://bucket/run" in str(error.value)
    assert "same command" in str(error.value)
    gcs.start()
    run(RUN)
    assert_same_run(gcs, local)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["config.json", "params", "run/metrics.jsonl"])
def test_an_outage_at_the_start_is_not_an_empty_store(gcs, local, killed, impatient, part):
    """If the store does not answer, no run is restarted and nothing is quarantined or deleted."""
    stop_at(gcs, part, method="GET")
    with pytest.raises((CheckpointError, ConfigError, DataError)) as error:
        train_on_one(small_config(), RUN)
    print(error.value)
    gcs.start()
    after = gcs.objects()
    after.pop("run/lock", None)  # It could not be released.
    assert after == killed
    run(RUN)
    assert_same_run(gcs, local)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "status"), [("params/_METADATA", 403), ("params/manifest", 503)])
def test_a_refused_read_does_not_quarantine_a_checkpoint(
    gcs, local, killed, impatient, part, status
):
    gcs.fault = lambda method, path: status if f"checkpoints/8/{part}" in path else None
    with pytest.raises(CheckpointError, match=r"checkpoints/8 cannot be read now: .*"):
        train_on_one(small_config(), RUN)
    assert gcs.objects() == killed
    gcs.fault = None
    run(RUN)
    assert_same_run(gcs, local)


@pytest.mark.slow
@pytest.mark.usefixtures("killed")
def test_an_incomplete_checkpoint_is_ignored_and_deleted(gcs, local):
    # Killed just before the last object of a save, which marks it as complete.
    gcs.delete("run/checkpoints/8/commit_success.txt")
    gcs.delete("run/checkpoints/8/params/manifest.ocdbt")
    with Store(RUN / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [4]
    assert steps(gcs) == [4, 8]  # A reader deletes nothing.
    with pytest.raises(CheckpointError, match="8 is not a complete checkpoint"):
        evaluate(RUN / "checkpoints" / "8")
    run(RUN)
    assert_same_run(gcs, local)
    assert not any("broken" in name for name in gcs.objects())


def flip(gcs, name):
    content = bytearray(gcs.objects()[name])
    content[len(content) // 2] ^= 1
    gcs.put(name, bytes(content))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_quarantined(gcs, local, killed):
    largest = max(
        (name for name in killed if "checkpoints/8/params" in name and "/d/" in name),
        key=lambda name: len(killed[name]),
    )
    flip(gcs, largest)
    damaged = gcs.objects()
    run(RUN)
    assert_same_run(gcs, local)
    for name, content in damaged.items():  # Kept for inspection.
        if name.startswith("run/checkpoints/8/"):
            kept = name.replace("checkpoints/8", "checkpoints.broken.8")
            assert gcs.objects()[kept] == content


def test_a_missing_bucket_and_a_forbidden_one(gcs, impatient):
    with pytest.raises(ConfigError, match=r"cannot be made: there is no bucket nowhere"):
        train_on_one(small_config(), epath.Path("gs://nowhere/run"))
    assert set(gcs.buckets) == {"bucket"}
    gcs.fault = lambda method, path: 403
    with pytest.raises(ConfigError, match=r"gs://bucket/run cannot be made: .*Forbidden"):
        train_on_one(small_config(), RUN)
    with pytest.raises(CheckpointError, match=r"gs://bucket/run cannot be opened: .*Forbidden"):
        evaluate(RUN)
    gcs.fault = lambda method, path: 403 if method == "POST" else None
    with pytest.raises(ConfigError, match=r"gs://bucket/run cannot be written: .*Forbidden"):
        train_on_one(small_config(), RUN)


def test_an_address_without_a_run_is_an_error(gcs):
    with pytest.raises(CheckpointError, match="gs://bucket/run cannot be downloaded: there is no"):
        evaluate(RUN)
    gcs.put("run/config.json", b"{}")
    gcs.put("run/dataset.json", b"{}")
    with pytest.raises(CheckpointError, match="gs://bucket/run has no checkpoint yet"):
        evaluate(RUN)
    gcs.put("run/config.json", b'{"x": NaN}')
    with pytest.raises(CheckpointError, match=r"run/config.json cannot be read"):
        read_config(RUN)
