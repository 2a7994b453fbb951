"""Only one run at a time can use a work directory."""

import errno
import fcntl
import logging
import os
import time

import pytest
from etils import epath

from tests.folders import contents
from tests.small_run import small_config, train_on_one
from vit_jax.errors import ConfigError
from vit_jax.rundir import workdir as workdirs
from vit_jax.rundir.lock import lock

HOLDER = """
import sys, time
from etils import epath
from vit_jax.rundir.lock import lock
with lock(epath.Path(sys.argv[1])):
    time.sleep(600)
"""


@pytest.mark.medium
def test_a_second_run_is_refused_until_the_first_is_gone_however_it_ends(
    tmp_path, finished_run, commands
):
    finished_run(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "lock").unlink()
    holder = commands.start(HOLDER, tmp_path)
    while not ((tmp_path / "lock").exists() and (tmp_path / "lock").read_text()):
        time.sleep(0.01)
    with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on .*SIGTERM"):
        train_on_one(small_config(), tmp_path)
    assert contents(tmp_path) == before  # The refused run changed nothing.
    holder.kill()
    holder.wait()
    assert train_on_one(small_config(), tmp_path) == 0
    with lock(epath.Path(tmp_path)):  # The run released its lock.
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


@pytest.mark.medium
def test_a_run_takes_the_lock_before_it_checks_the_claim(tmp_path, finished_run, monkeypatch):
    check = workdirs.check_claim

    def check_held(workdir, *args, **kwargs):
        with pytest.raises(ConfigError, match="in use"), lock(epath.Path(workdir)):
            pass
        asked.append(workdir)
        check(workdir, *args, **kwargs)

    asked = []
    monkeypatch.setattr(workdirs, "check_claim", check_held)
    finished_run(tmp_path)
    assert train_on_one(small_config(), tmp_path) == 0
    assert asked[-1:] == [tmp_path]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock(epath.Path(tmp_path)):
        assert "no locks" in caplog.text and "No locks available" in caplog.text
