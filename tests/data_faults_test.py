"""Loader processes that are killed, stopped or hung: the batches stay the same, nothing hangs."""

import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from tests.conftest import ROOT, slow
from tests.data_pipeline_test import (
    Numbers,
    assert_nothing_lives,
    assert_same,
    expected_batch,
    live_threads,
    noisy,
    one_device,
)
from tests.data_sources_test import write_image
from vit_jax.data import batches as batches_module
from vit_jax.data import pipeline, workers
from vit_jax.data.blocks import ExampleLoader
from vit_jax.data.image_folder import ImageFolder
from vit_jax.errors import DataError


def start(source=None, *, start_step=0, count=2, transform=noisy, **kwargs):
    loader = {"batch_size": 64, "workers": count, "threads": 1, "prefetch": 1, **kwargs}
    return pipeline.train_batches(
        source or Numbers(100),
        transform,
        seed=3,
        start_step=start_step,
        sharding=one_device(),
        **loader,
    )


def take(batches, number):
    return [jax.device_get(next(batches)) for _ in range(number)]


def expected(steps):
    return [expected_batch(step, batch_size=64) for step in steps]


def living(count=2):
    """The worker processes, once all have begun to count."""
    deadline = time.monotonic() + 60
    while len(found := multiprocessing.active_children()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return sorted(found, key=lambda process: process.pid)


def restarts(caplog):
    return [r.getMessage() for r in caplog.records if "started again" in r.getMessage()]


@pytest.mark.medium
def test_a_killed_worker_is_replaced_and_no_batch_is_another(caplog):
    with start(start_step=5) as batches:
        got = take(batches, 2)
        os.kill(living()[0].pid, signal.SIGKILL)
        got += take(batches, 8)
        assert_same(got, expected(range(5, 15)))
        assert len(living()) == 2
    (message,) = restarts(caplog)
    assert "1 of at most 3 times" in message and "exit code -9" in message
    assert_nothing_lives()


@pytest.mark.slow
def test_workers_killed_again_and_again_end_the_run_with_what_to_do(caplog):
    got = []
    with start() as batches:
        for times in range(batches_module.MAX_RESTARTS):
            got += take(batches, 3)
            for worker in living():
                os.kill(worker.pid, signal.SIGKILL)
            got += take(batches, 4)
            assert len(restarts(caplog)) == times + 1
        assert_same(got, expected(range(len(got))))
        os.kill(living()[1].pid, signal.SIGKILL)
        with pytest.raises(
            DataError,
            match=r"loader failed after 3 new starts: .*exit code -9\)\. .*lower data\.workers",
        ):
            take(batches, 9)
        assert list(batches) == []
    assert_nothing_lives()


@pytest.mark.slow
def test_a_stopped_worker_is_replaced(caplog, monkeypatch):
    monkeypatch.setattr(workers, "SILENCE", 3)
    with start() as batches:
        got = take(batches, 1)
        os.kill(living()[1].pid, signal.SIGSTOP)
        got += take(batches, 9)
    assert_same(got, expected(range(10)))
    (message,) = restarts(caplog)
    assert "has not moved for 3 s" in message
    assert_nothing_lives()


class Slow(Numbers):
    """Takes longer for an example than a silent worker is given."""

    def __getitem__(self, index):
        time.sleep(0.1)
        return super().__getitem__(index)


@pytest.mark.slow
def test_a_slow_worker_is_not_taken_for_a_hung_one(caplog, monkeypatch):
    monkeypatch.setattr(workers, "SILENCE", 2)  # A block of 32 takes 3.2 s.
    with start(Slow(100), count=1) as batches:
        assert_same(take(batches, 2), expected(range(2)))
    assert not restarts(caplog)


PAUSED = """
import sys
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from tests.data_faults_test import Slow, expected, assert_same, start, take
    from vit_jax.data import workers
    workers.SILENCE = 3
    with start(Slow(100), count=1) as batches:
        first = take(batches, 1)
        print("begun", flush=True)
        assert_same(first + take(batches, 3), expected(range(4)))
    print("done", flush=True)
"""


@pytest.mark.slow
def test_a_pause_of_all_processes_is_not_silence(tmp_path):
    """As after Ctrl-Z and fg: only while the main process waits does the silence count."""
    (tmp_path / "paused.py").write_text(PAUSED)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, tmp_path / "paused.py", ROOT]
    with subprocess.Popen(command, start_new_session=True, **pipes) as paused:
        assert paused.stdout.readline() == "begun\n"
        os.killpg(paused.pid, signal.SIGSTOP)
        time.sleep(5)
        os.killpg(paused.pid, signal.SIGCONT)
        out, err = paused.communicate(timeout=60)
    assert out == "done\n" and "started again" not in err, err


@pytest.mark.medium
@pytest.mark.parametrize("stopped", [slow(0), 1, slow(2)])
def test_closing_does_not_wait_for_stopped_workers(stopped):
    batches = start(count=max(1, stopped))
    next(batches)
    for worker in living(max(1, stopped))[:stopped]:
        os.kill(worker.pid, signal.SIGSTOP)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 3
    assert not live_threads() and not multiprocessing.active_children()  # At once.


class Stuck(Numbers):
    """Reading example 40 waits, as for a file server that is gone, until it is let go."""

    go_on = threading.Event()

    def __getitem__(self, index):
        if index == 40:
            self.go_on.wait()
        return super().__getitem__(index)


@pytest.mark.medium
def test_closing_does_not_wait_for_a_read_that_hangs(monkeypatch):
    monkeypatch.setattr(batches_module, "_GRACE", 0.5)
    Stuck.go_on.clear()
    batches = start(Stuck(100), count=0)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 4
    Stuck.go_on.set()
    assert_nothing_lives()


@pytest.mark.medium
def test_a_wait_for_a_batch_can_be_interrupted():
    """So that a watch in another thread, or a second Ctrl-C, can end it."""
    Stuck.go_on.clear()
    with start(Stuck(100), count=0) as batches:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                take(batches, 9)
        finally:
            signal.signal(signal.SIGALRM, before)
            Stuck.go_on.set()
    assert_nothing_lives()


class Exhausted(Numbers):
    """The machine has nothing left when example 40 is read."""

    def __init__(self, size, error):
        super().__init__(size)
        self.error = error

    def __getitem__(self, index):
        if index == 40:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.medium
@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "")],
)
def test_what_the_machine_lacks_is_no_bad_example(error):
    """Skipped, a run would be a function of the machine's memory."""
    bad = []
    source = Exhausted(100, error)
    with (
        start(source, count=0, on_bad=lambda *report: bad.append(report)) as batches,
        pytest.raises(DataError, match=r"The data loader failed: .*lower data\.workers"),
    ):
        take(batches, 3)
    assert not bad


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_what_the_machine_lacks_is_no_bad_picture(tmp_path, monkeypatch, number):
    write_image(tmp_path / "train" / "cat" / "0.png")
    write_image(tmp_path / "test" / "cat" / "0.png")
    folder = ImageFolder(tmp_path, split="train")
    load = ExampleLoader(folder, lambda example, rng: example, 0)

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match=os.strerror(number)):
            load(0, epoch=0)
    assert load(0, epoch=0)["label"] == 0


@pytest.mark.slow
def test_restarts_are_forgiven_after_a_while(caplog, monkeypatch):
    monkeypatch.setattr(batches_module, "MAX_RESTARTS", 1)
    monkeypatch.setattr(batches_module, "FORGIVEN", 4)
    with start() as batches:
        got = []
        for _ in range(3):
            got += take(batches, 12)  # Some of which were ready when the worker was killed.
            os.kill(living()[0].pid, signal.SIGKILL)
        got += take(batches, 12)
        assert_same(got, expected(range(48)))
    assert len(restarts(caplog)) == 3


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="shared memory has names elsewhere")
def test_a_kill_of_all_processes_leaves_no_memory():
    program = (
        "from tests.data_faults_test import start\n"
        "if __name__ == '__main__':\n"
        "    with start() as batches:\n"
        "        next(batches), next(batches)\n"
        "        print('fed', flush=True)\n"
        "        input()\n"
    )
    before = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as run:
        assert run.stdout.readline() == "fed\n"
        named = set(os.listdir("/dev/shm")) - before
        os.killpg(run.pid, signal.SIGKILL)
    assert not [name for name in named if name.startswith("psm_")]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_starts_is_replaced(caplog):
    """It has not counted yet."""
    caplog.set_level(logging.WARNING)
    with start() as batches:
        deadline = time.monotonic() + 60
        while len(multiprocessing.active_children()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        assert_same(take(batches, 3), expected(range(3)))
    assert len(restarts(caplog)) == 1
    assert_nothing_lives()


@pytest.mark.medium
def test_workers_are_deaf_to_signals_of_the_group_from_their_first_moment(caplog):
    over = threading.Event()

    def pester():
        while not over.wait(0.01):
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGINT)
                os.kill(process.pid, signal.SIGTERM)

    pestering = threading.Thread(target=pester)
    pestering.start()
    try:
        with start(count=1) as batches:
            assert_same(take(batches, 4), expected(range(4)))
    finally:
        over.set()
        pestering.join()
    assert not restarts(caplog)


def test_rows_are_reported_by_the_first_process_that_holds_them():
    rows = batches_module.first_held_rows(one_device(), batch_size=16)
    np.testing.assert_array_equal(rows, np.arange(16))
