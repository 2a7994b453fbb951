"""A forked program is what `python -m` starts: its end, its output, its environment."""

import os
import signal

import pytest

from tests import forked

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module", autouse=True)
def forks():
    forked.ready()


@pytest.mark.parametrize(
    ("code", "exit_code", "out", "err"),
    [
        ("import sys; print(sys.argv)", 0, "['-c', 'a', 'b c']\n", ""),
        ("raise SystemExit(3)", 3, "", ""),
        ("raise SystemExit('No.')", 1, "", "No.\n"),
        ("import atexit; atexit.register(print, 'bye'); [][0]", 1, "bye\n", "IndexError: list"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "", "KeyboardInterrupt"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, "", ""),
    ],
)
def test_it_ends_as_python_does(code, exit_code, out, err):
    done = forked.run("-c", code, "a", "b c")
    assert (done.returncode, done.out) == (exit_code, out)
    assert err in done.err and bool(err) == bool(done.err)


def test_it_has_its_own_devices_environment_and_folder(tmp_path):
    code = "import jax, os; print(jax.device_count(), os.environ['A'], os.getcwd())"
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "A": "b"}
    done = forked.run("-c", code, env=env, cwd=tmp_path)
    assert done.out == f"3 b {tmp_path}\n", done.err
    assert "A" not in os.environ


def test_a_variable_that_jax_has_read_cannot_be_changed():
    done = forked.run("-c", "", env={"JAX_ENABLE_X64": "1"})
    assert done.returncode == 1 and "JAX_ENABLE_X64 is another than it was" in done.err
