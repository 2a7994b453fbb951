"""Real processes with their work directory in an object store: killed, cut off, two at once."""

import importlib.util
import json
import random
import signal
import threading
import time

import pytest

from tests import forked
from tests.fake_gcs import FakeGcs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs"),
]

FLAGS = (
    "--config=configs/quickstart.py", "--config.total_steps=40", "--config.model.depth=1",
    "--config.checkpoint.every_steps=5", "--config.log.every_steps=1", "--config.model.dropout=0.1",
)  # fmt: skip


@pytest.fixture
def store():
    with FakeGcs() as server:
        yield server


def start(store, verb, *flags):
    """Starts `python -m vit_jax.VERB`."""
    return forked.start(f"vit_jax.{verb}", *flags, env=store.environment)


def call(store, verb, *flags):
    process = forked.run(f"vit_jax.{verb}", *flags, env=store.environment)
    assert "Traceback" not in process.err, process.err
    return process.returncode, process.out, process.err


def train(store, name):
    return call(store, "train", *FLAGS, f"--workdir=gs://bucket/{name}")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The metrics of the same run on a disk."""
    workdir = tmp_path_factory.mktemp("local")
    code, _, err = call(FakeGcs(), "train", *FLAGS, f"--workdir={workdir}")
    assert code == 0, err
    return (workdir / "metrics.jsonl").read_bytes()


def test_a_repeatedly_killed_run_ends_in_the_same_bits(store, local, tmp_path):
    moments = random.Random(0)
    kills = 0
    while True:
        process = start(store, "train", *FLAGS, "--workdir=gs://bucket/run")
        # A kill at any request: during start-up, a step, or a save.
        last = len(store.requests) + moments.randrange(20, 1000)
        while process.poll() is None and len(store.requests) < last:
            time.sleep(0.001)
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
        assert kills < 30
    print(f"{kills} kills")
    assert kills >= 4
    objects = store.objects()
    assert objects["run/metrics.jsonl"] == local
    assert not any("broken" in name for name in objects)
    assert {name.split("/")[2] for name in objects if "/checkpoints/" in name} == {"35", "40"}

    code, out, err = call(store, "evaluate", "--workdir=gs://bucket/run")
    assert code == 0 and "written  to gs://bucket/run" in out, err
    sample = tmp_path / "sample.png"
    sample.write_bytes(next(c for n, c in store.objects().items() if n.startswith("run/samples/")))
    code, out, err = call(
        store, "predict", "--checkpoint=gs://bucket/run/checkpoints/35",
        "--output=gs://bucket/out/predictions.csv", str(sample),
    )  # fmt: skip
    assert code == 0 and "1 prediction and 0 errors" in out, err
    assert store.objects()["out/predictions.csv"].count(b"\n") == 2


def test_a_store_that_is_unreachable_for_a_while_during_a_save(store, local):
    def fault(method, path):
        if method == "POST" and "checkpoints/10/params" in path:
            store.fault = None
            threading.Thread(target=store.stop).start()
            threading.Timer(4, store.start).start()
            time.sleep(0.2)

    store.fault = fault
    code, _, err = train(store, "run")
    assert code == 0, err
    assert store.objects()["run/metrics.jsonl"] == local


def test_of_two_processes_in_one_folder_the_second_is_refused(store):
    longer = [*FLAGS, "--config.total_steps=40000", "--config.checkpoint.every_steps=10"]
    with start(store, "train", *longer, "--workdir=gs://bucket/run") as one:
        while "run/lock" not in store.objects():
            time.sleep(0.01)
            assert one.poll() is None, one.err
        code, _, err = call(store, "train", *longer, "--workdir=gs://bucket/run")
        assert code == 2, err
        assert f"gs://bucket/run is in use by process {one.pid} on" in err
        one.send_signal(signal.SIGTERM)
        assert one.wait(250) == 75, one.err
    steps = [json.loads(line)["step"] for line in store.objects()["run/metrics.jsonl"].splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert "run/lock" not in store.objects()
