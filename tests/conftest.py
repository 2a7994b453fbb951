"""Shared by all tests: run-time checked annotations, eight CPU devices, where the goldens are."""

import gc
import importlib.util
import os
import pathlib

import vit_jax  # Before JAX: see there.

# Before JAX starts: eight devices let every test have a mesh. And much of the tests' time would go
# to optimising programs that run for a moment: cli_test.py and a test of formats_goldens_test.py,
# without flags, see to it that what users compile is right, too.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["NPROC"] = "32"  # See give_threads_to_simulated_devices.
os.environ["JAX_PLATFORMS"] = "cpu"
ROOT = pathlib.Path(vit_jax.__file__).resolve().parent.parent

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests.parts import TimeLimit  # noqa: E402

# Every annotated function of ours is checked at run time: shapes, dtypes and types.
install_import_hook("vit_jax", "beartype.beartype")

from vit_jax.parallel import compilation  # noqa: E402

# Programs are compiled once, and kept for the next time, by the tests' child processes too.
compilation.enable_user_compilation_cache()
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compilation.user_programs())
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

SHARED = ROOT.parent / "shared"


def pytest_configure(config):
    config.pluginmanager.register(TimeLimit(), "time-limit")


def slow(*values):
    """Returns a case that takes a while, and is much like another that does not."""
    return pytest.param(*values, marks=pytest.mark.slow)


def campaign(*values):
    """Returns a case that repeats, at length, what a shorter one shows in CI."""
    return pytest.param(*values, marks=pytest.mark.campaign)


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Folder of arrays that the reference implementations wrote; without it a test is skipped."""
    folder = SHARED / "goldens"
    if not folder.is_dir():
        pytest.skip(f"no reference arrays: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A function: a work directory and changes to `small_config`; copies the finished run there."""
    from tests.small_run import FinishedRuns

    return FinishedRuns(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def plain_run(finished_run, tmp_path_factory):
    """A finished run of `small_config`; what uses it, need not compile that config's programs."""
    folder = tmp_path_factory.mktemp("plain")
    finished_run(folder)
    return folder


@pytest.fixture(scope="session")
def stochastic_run(finished_run, tmp_path_factory):
    """A finished run with every kind of randomness."""
    from tests.small_run import STOCHASTIC

    folder = tmp_path_factory.mktemp("stochastic")
    finished_run(folder, **STOCHASTIC)
    return folder


@pytest.fixture(scope="session")
def commands():
    """Runs commands in processes of their own, without the imports."""
    from tests import forked
    from tests.commands import Commands

    forked.ready()
    return Commands()


@pytest.fixture(scope="module")
def leaves_nothing():
    """What Orbax leaves of reads and saves that failed is found here, not in a later module."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def gcs_server():
    """One object store for all tests of a process: the libraries keep its address."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip('needs gcsfs: pip install -e ".[gcs]"')
    from tests.fake_gcs import FakeGcs
    from vit_jax import storage

    with FakeGcs() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        storage.as_path("gs://bucket/run")  # As the front doors do; it makes gcsfs ready.
        yield server


@pytest.fixture
def gcs(gcs_server):
    """The object store, empty and as it should be."""
    gcs_server.buckets["bucket"] = {}
    yield gcs_server
    gcs_server.fault = None
    gcs_server.start()
