"""Two runs in one folder of an object store: the second is refused, no line is overwritten."""

import json
import os
import subprocess
import threading
import time

import pytest
from etils import epath

from tests.small_run import small_config, train_on_one
from vit_jax.errors import ConfigError, DataError
from vit_jax.rundir import lease as lease_module
from vit_jax.rundir.lock import lock
from vit_jax.telemetry import MetricWriter, read_jsonl

pytestmark = pytest.mark.medium

RUN = epath.Path("gs://bucket/run")


def test_of_two_runs_in_one_folder_one_ends(gcs):
    def write(writer, step):
        writer.write(step, {"train/loss": 1.0})
        writer.commit(step)

    one = MetricWriter(RUN, resume_step=None, tensorboard=False, wandb_project="", config={})
    write(one, 1)
    one.flush()
    two = MetricWriter(RUN, resume_step=1, tensorboard=False, wandb_project="", config={})
    write(one, 2)
    write(two, 2)
    two.flush()
    with pytest.raises(DataError, match=r"metrics.jsonl was replaced .* let that one finish"):
        one.flush()
    two.close()
    assert [line["step"] for line in read_jsonl(RUN / "metrics.jsonl")] == [1, 2]
    with pytest.raises(DataError, match="was replaced"):
        one.close()


def test_a_run_ends_when_its_lines_were_deleted(gcs):
    writer = MetricWriter(RUN, resume_step=None, tensorboard=False, wandb_project="", config={})
    writer.flush()
    gcs.delete("run/metrics.jsonl")
    with pytest.raises(
        DataError, match=r"metrics\.jsonl was deleted while the run was writing to it"
    ):
        writer.flush()


def test_a_second_run_is_refused_until_the_first_ends(gcs):
    refused = pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on .*SIGTERM")
    with lock(RUN), refused:
        train_on_one(small_config(), RUN)
    assert gcs.objects().keys() == set()
    with lock(RUN):  # The lease was released.
        pass


@pytest.mark.parametrize("left", [b"", b"[1]"])
def test_an_unreadable_claim_is_replaced(gcs, left):
    gcs.put("run/lock", left)
    with lock(RUN):
        assert b'"machine"' in gcs.objects()["run/lock"]


def test_a_claim_that_this_process_left_behind_is_replaced(gcs):
    with lock(RUN):
        left = gcs.objects()["run/lock"]
    gcs.put("run/lock", left)
    with lock(RUN):
        pass


def test_the_claim_of_another_machine_is_refused_with_how_to_remove_it(gcs):
    left = b'{"pid": 1, "machine": ["x"]}'
    gcs.put("run/lock", left)
    with pytest.raises(ConfigError, match="gcloud storage rm gs://bucket/run/lock"), lock(RUN):
        pass
    assert gcs.objects()["run/lock"] == left
    gcs.delete("run/lock")
    with lock(RUN):
        pass


def test_a_claim_of_a_process_that_ended_on_this_machine_is_replaced(gcs):
    with subprocess.Popen(["true"]) as ended:
        pass
    left = {"pid": ended.pid, "machine": lease_module._machine(), "owner": "x"}
    gcs.put("run/lock", json.dumps(left).encode())
    with lock(RUN):
        assert str(os.getpid()).encode() in gcs.objects()["run/lock"]


def test_of_two_simultaneous_runs_one_is_refused(gcs):
    both, outcomes = threading.Barrier(2), []

    def begin():
        both.wait()
        try:
            with lock(RUN):
                outcomes.append("holds")
                time.sleep(0.5)
        except ConfigError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("holds") == 1 and any("is in use by" in outcome for outcome in outcomes)
