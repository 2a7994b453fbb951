"""Metrics on disk: one line a step, through resumes, kills and damaged files."""

import json
import os
import pathlib
import sys
import time
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from vit_jax.errors import ConfigError, DataError
from vit_jax.telemetry import MetricWriter, read_jsonl
from vit_jax.telemetry.jsonlines import cut_after


def open_writer(workdir, *, resume_step=None, **changes):
    arguments = {"tensorboard": False, "wandb_project": "", "config": {}} | changes
    return MetricWriter(workdir, resume_step=resume_step, **arguments)


def run(workdir, steps, *, resume_step=None):
    """What a train loop does, with values that any process would compute for a step."""
    with open_writer(workdir, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 1 / (step + 3)})
            writer.write(step, {"test/top1": np.float32(step / 7)})
            writer.commit(step)
            writer.write_timing(step, {"speed/img_per_s": 10.0})


def test_values_come_back_to_the_bit(tmp_path):
    values = {
        "third": 1 / 3,
        "tiny": 5e-324,
        "float32": np.float32(0.1),
        "scalar": np.array(2.5, np.float32),
        "whole": 10**17 + 1,
    }
    with open_writer(tmp_path) as writer:
        writer.write(3, values)
        writer.commit(3)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert line.pop("step") == 3
    assert line == {name: getattr(v, "item", lambda v=v: v)() for name, v in values.items()}
    assert type(line["whole"]) is int


def test_nonfinite_values_are_null_and_the_file_valid_json(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(0, {"nan": float("nan"), "inf": np.float32("inf"), "one": 1.0})
        writer.commit(0)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 0, "nan": None, "inf": None, "one": 1.0}


def test_writes_of_a_step_make_one_line_and_a_step_without_any_makes_none(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(5, {"a": 1.0})
        writer.write(5, {"b": 2.0})
        writer.commit(5)
        writer.commit(6)
        writer.write(7, {"a": 3.0})  # Never committed.
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 5, "a": 1.0, "b": 2.0}]


def test_misuse_is_refused(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(5, {"a": 1.0})
        with pytest.raises(ValueError, match="already in the line"):
            writer.write(5, {"a": 1.0})
        with pytest.raises(ValueError, match="already in the line"):
            writer.write(5, {"step": 1})
        with pytest.raises(ValueError, match=r"before commit\(5\)"):
            writer.write(6, {"a": 1.0})
        with pytest.raises(ValueError, match=r"after write\(5\)"):
            writer.commit(6)
        writer.commit(5)
        with pytest.raises(ValueError, match="already has step 5"):
            writer.write(5, {"b": 1.0})


@pytest.mark.parametrize("resume_step", [0, 4, 5, 9])
def test_resumed_file_equals_an_uninterrupted_one(tmp_path, resume_step):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, range(12))
    run(broken, range(10))
    run(broken, range(resume_step + 1, 12), resume_step=resume_step)
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_from_scratch_nothing_of_an_earlier_attempt_is_left(tmp_path):
    run(tmp_path, range(5))
    run(tmp_path, range(2))
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line(tmp_path, cut):
    run(tmp_path, range(6))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    left = whole[:-cut].count(b"\n")
    # A line that lacks nothing but its newline is whole.
    left += whole[:-cut].endswith(b"}")
    assert len(read_jsonl(path)) == left
    assert cut_after(path, last_step=99) == left - 1
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:left])


def test_kept_lines_are_kept_to_the_byte_and_an_unchanged_file_is_not_rewritten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":0,  "x": 1.50}\n{"x": 0.1000, "step": 3}\n{"step": 4}\n')
    inode = path.stat().st_ino
    assert cut_after(path, last_step=4) == 4
    assert path.stat().st_ino == inode
    assert cut_after(path, last_step=3) == 3
    assert path.read_bytes() == b'{"step":0,  "x": 1.50}\n{"x": 0.1000, "step": 3}\n'
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", [b"\x00\x00\n", b'{"x": 1}\n', b"[1]\n", b'{"step": "1"}\n'])
def test_damage_in_the_middle_is_an_error(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 0}\n' + damage + b'{"step": 2}\n'
    path.write_bytes(content)
    for read in (read_jsonl, lambda path: cut_after(path, last_step=0)):
        with pytest.raises(DataError, match="line 2"):
            read(path)
    assert path.read_bytes() == content


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="work directory"):
        read_jsonl(tmp_path / "metrics.jsonl")


@pytest.mark.medium
def test_killed_process_leaves_every_committed_line(tmp_path, commands):
    program = f"""
import itertools
from vit_jax.telemetry import MetricWriter
writer = MetricWriter({str(tmp_path)!r}, resume_step=None, tensorboard=False, wandb_project="",
                      config={{}})
for step in itertools.count():
    writer.write(step, {{"x": step / 3}})
    writer.commit(step)
    print(step, flush=True)
"""
    process = commands.start(program)
    while process.text("out").count("\n") < 50:
        time.sleep(0.01)
    process.kill()
    committed = process.wait().out.count("\n") - 1
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert len(lines) >= committed + 1
    assert lines == [{"step": step, "x": step / 3} for step in range(len(lines))]
    with open_writer(tmp_path, resume_step=20) as writer:
        assert writer.last_step == 20
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 21


def test_other_processes_write_nothing(tmp_path):
    workdir = tmp_path / "run"
    with open_writer(workdir, is_main=False, tensorboard=True, wandb_project="p") as writer:
        writer.write(0, {"x": 1.0})
        writer.commit(0)
        writer.write_timing(0, {"x": 1.0})
        writer.flush()
    assert not workdir.exists()


def test_flush_reaches_the_disk_before_a_checkpoint(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    with open_writer(tmp_path) as writer:
        writer.write(0, {"x": 1.0})
        writer.commit(0)
        assert not synced  # A log line does not wait for the disk.
        writer.flush()
        assert {pathlib.Path(path).name for path in synced} == {"metrics.jsonl", "timing.jsonl"}


def tensorboard_events(folder: pathlib.Path) -> list[Event]:
    """All events of a folder; a record is length (8 bytes), crc (4), data, crc (4)."""
    events = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            end = at + 12 + length
            for start, stop in ((at, at + 8), (at + 12, end)):
                crc = int.from_bytes(data[stop : stop + 4], "little")
                assert crc == masked_crc32c(data[start:stop])
            events.append(Event.FromString(data[at + 12 : end]))
            at = end + 4
    return events


def test_tensorboard_has_all_values_and_purges_on_resume(tmp_path):
    with open_writer(tmp_path, tensorboard=True) as writer:
        writer.write(4, {"train/loss": 0.5})
        writer.commit(4)
        writer.write_timing(4, {"speed/img_per_s": float("nan")})
    with open_writer(tmp_path, tensorboard=True, resume_step=2):
        pass
    events = tensorboard_events(tmp_path / "tb")
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in events
        for value in event.summary.value
    }
    assert scalars[4, "train/loss"] == 0.5
    assert np.isnan(scalars[4, "speed/img_per_s"])
    starts = [e.step for e in events if e.session_log.status == SessionLog.START]
    assert starts == [0, 3]
    assert events[0].file_version == "brain.Event:2"


@pytest.mark.medium
def test_tensorboard_needs_no_other_framework(tmp_path, commands):
    """Where PyTorch is installed, importing it takes longer than the start of a run."""
    code = (  # In a process that has imported the commands.
        "import sys; from vit_jax.telemetry.tensorboard import EventFile; "
        f"EventFile({str(tmp_path / 'tb')!r}, first_step=0).close(); "
        "print(*{'torch', 'tensorflow'} & {*sys.modules})"
    )
    result = commands.run(code)
    assert (result.code, result.out.strip()) == (0, ""), result.err


def test_wandb_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[wandb\]"):
        open_writer(tmp_path, wandb_project="vits")


def test_wandb_continues_the_same_run_and_a_new_one_from_scratch(tmp_path, monkeypatch):
    started, logged = [], []

    def init(**arguments):
        started.append(arguments)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for resume_step in (None, 1, None):
        wandb = {"wandb_project": "vits", "config": {"seed": 3}}
        with open_writer(tmp_path, resume_step=resume_step, **wandb) as writer:
            writer.write(2, {"x": float("inf")})
            writer.commit(2)
    first, resumed, fresh = (arguments["id"] for arguments in started)
    assert first == resumed != fresh
    assert started[0]["project"] == "vits"
    assert started[0]["config"] == {"seed": 3}
    assert {arguments["resume"] for arguments in started} == {"allow"}
    assert logged[0] == (2, {"x": float("inf")})
