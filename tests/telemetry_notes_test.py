"""Notes: each once, by one process, as plain lines."""

import logging
import subprocess
import sys
import types

from tests.conftest import ROOT
from vit_jax.telemetry import notes


def test_a_note_is_shown_once_by_the_first_process_and_a_warning_each_time(monkeypatch, caplog):
    monkeypatch.setattr(notes, "_shown", set())
    for _ in range(2):
        notes.note("3% of {these} files are skipped")
        notes.warn("lost")
    assert [r.getMessage() for r in caplog.records] == [
        "3% of {these} files are skipped", "lost", "lost",
    ]  # fmt: skip
    assert {(r.name, r.levelno) for r in caplog.records} == {(notes.LOGGER, logging.WARNING)}
    state = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=1))
    monkeypatch.setitem(notes.sys.modules, "jax._src.distributed", state)
    notes.note("another")
    notes.warn("in this process")
    assert caplog.messages[3:] == ["in this process"]


def test_a_program_sees_plain_lines_and_can_silence_them():
    code = """
import logging
logging.basicConfig()  # As a library does.
from vit_jax.telemetry import notes
notes.warn("a\\x1bnote")
logging.getLogger("vit_jax").setLevel("ERROR")
notes.warn("silenced")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (result.stderr, result.stdout, result.returncode) == ("a\ufffdnote\n", "", 0)
