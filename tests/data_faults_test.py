"""Loader processes and reads that are killed, interrupted or hang: the run ends, and so do they."""

import collections
import contextlib
import errno
import multiprocessing
import os
import signal
import threading
import time

import jax
import pytest
from jax.sharding import Sharding

from tests.data_pipeline_test import (
    Numbers,
    assert_nothing_lives,
    assert_same,
    expected_batch,
    training,
)
from tests.data_sources_test import write_image
from vit_jax.data import batches as batches_module
from vit_jax.data import reading
from vit_jax.data.blocks import ExampleLoader
from vit_jax.data.image_folder import ImageFolder
from vit_jax.errors import DataError, ExitCode, LostError, exit_code


def start(source=None, *, count=2, **arguments):
    arguments = {"workers": count, "threads": 1, "prefetch": 1, **arguments}
    return training(source or Numbers(100), **arguments)


def take(batches, number):
    return [jax.device_get(next(batches)) for _ in range(number)]


def expected(steps):
    return [expected_batch(step, batch_size=64) for step in steps]


def living(count=2):
    """Returns the worker processes when all have been started."""
    deadline = time.monotonic() + 60
    while len(workers := multiprocessing.active_children()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return sorted(workers, key=lambda process: process.pid)


@pytest.mark.medium
def test_a_killed_worker_ends_the_run_with_advice():
    with start(start_step=5) as batches:
        got = take(batches, 2)
        os.kill(living()[0].pid, signal.SIGKILL)
        with pytest.raises(LostError, match=r"exit code -9.* Start the same command again") as lost:
            while True:
                got += take(batches, 1)
        assert exit_code(lost.value) == ExitCode.LOST
        assert list(batches) == []
    assert_same(got, expected(range(5, 5 + len(got))))
    assert_nothing_lives()


class Stuck(Numbers):
    """Reading example 40 hangs, as with an unreachable file server, until `go_on` is set."""

    go_on = threading.Event()

    def __getitem__(self, index):
        if index == 40:
            self.go_on.wait()
        return super().__getitem__(index)


@pytest.mark.medium
def test_closing_does_not_wait_for_a_read_that_hangs(monkeypatch):
    monkeypatch.setattr(batches_module, "_CLOSE_TIMEOUT_SECONDS", 0.5)
    Stuck.go_on.clear()
    batches = start(Stuck(100), count=0)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 4
    Stuck.go_on.set()
    assert_nothing_lives()


@pytest.mark.medium
def test_a_wait_for_a_batch_can_be_interrupted():
    """By a watchdog in another thread, or by a second Ctrl-C."""
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
    """The machine is out of resources when example 40 is read."""

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
    [MemoryError(), OSError(errno.EMFILE, "Too many open files")],
)
def test_a_lack_of_memory_or_files_does_not_make_an_example_bad(error):
    """If the example were skipped, the run would depend on the machine's memory."""
    bad = []
    source = Exhausted(100, error)
    with (
        start(source, count=0, on_bad=lambda *report: bad.append(report)) as batches,
        pytest.raises(DataError, match=r"The data loader failed: .*lower data\.workers"),
    ):
        take(batches, 3)
    assert not bad


def test_an_unreachable_file_system_does_not_make_an_image_bad(tmp_path, monkeypatch):
    write_image(tmp_path / "train" / "cat" / "0.png")
    write_image(tmp_path / "test" / "cat" / "0.png")
    folder = ImageFolder(tmp_path, split="train")
    load = ExampleLoader(folder, lambda example, rng: example, 0)

    def refuse(*args, **kwargs):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(reading, "open", refuse, raising=False)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            load(0, epoch=0)
    assert load(0, epoch=0)["label"] == 0


@pytest.mark.medium
def test_signals_of_the_group_do_not_end_workers():
    ended = threading.Event()

    def send_signals():
        while not ended.wait(0.01):
            for process in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):  # It has just ended.
                    os.kill(process.pid, signal.SIGINT)
                    os.kill(process.pid, signal.SIGTERM)

    sender = threading.Thread(target=send_signals)
    sender.start()
    try:
        with start(count=1) as batches:
            assert_same(take(batches, 4), expected(range(4)))
    finally:
        ended.set()
        sender.join()


class OfTwoProcesses(Sharding):
    """Devices 0, 1 and 2, 3 belong to one process each; 0 and 2 have the same rows."""

    def devices_indices_map(self, shape):
        rows = [slice(0, 8), slice(8, 16), slice(0, 8), slice(16, 24)]
        Device = collections.namedtuple("Device", "process_index, number")
        return {Device(i // 2, i): (part,) for i, part in enumerate(rows)}


def test_each_row_is_reported_by_one_of_two_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    reported = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        reported.append(batches_module.owned_rows(OfTwoProcesses(), batch_size=24).tolist())
    assert reported == [list(range(16)), list(range(16, 24))]
