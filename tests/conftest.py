"""Shared by all tests: annotations checked at run time, eight CPU devices, and fixtures."""

import gc
import importlib.util
import json
import logging
import os
import pathlib
import shutil

import vit_jax  # Before JAX: see there.

# Set before JAX starts. Eight devices let every test have a mesh. Programs are not optimised, which
# would take longer than they run; cli_test.py and a test of formats_goldens_test.py optimise them.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["NPROC"] = "32"  # See give_threads_to_simulated_devices.
# benchmarks/gpu.py runs a golden test on a GPU.
os.environ["JAX_PLATFORMS"] = os.environ.get("VIT_JAX_TEST_PLATFORM", "cpu")
ROOT = pathlib.Path(vit_jax.__file__).resolve().parent.parent

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests.parts import TimeLimit  # noqa: E402

# Every annotated function of ours is checked at run time: shapes, dtypes and types.
install_import_hook("vit_jax", "beartype.beartype")

from vit_jax.parallel import compilation  # noqa: E402

# Programs are compiled once, and kept for the next time, by the tests' child processes too.
compilation.enable_user_compilation_cache()
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compilation.user_cache_folder())
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

SHARED = ROOT / "shared" if (ROOT / "shared").is_dir() else ROOT.parent / "shared"

# Without a handler of their own, notes reach pytest's `caplog`, which listens to the root logger.
logging.getLogger("vit_jax").addHandler(logging.NullHandler())


def pytest_configure(config):
    config.pluginmanager.register(TimeLimit(), "time-limit")


def slow(*values):
    """Returns a slow case that resembles a faster one."""
    return pytest.param(*values, marks=pytest.mark.slow)


def campaign(*values):
    """Returns a long case that repeats what a shorter one shows in CI."""
    return pytest.param(*values, marks=pytest.mark.campaign)


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Folder of arrays that the reference implementations wrote; without it a test is skipped."""
    folder = SHARED / "goldens"
    if not folder.is_dir():
        pytest.skip(f"no reference arrays: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def manifest(goldens) -> dict:
    """What the goldens' manifest.json says."""
    return json.loads((goldens / "manifest.json").read_text())


@pytest.fixture(scope="session")
def training_golden(goldens, manifest):
    """A function: the name of a training reference -> its entry, folder, inputs and outputs."""

    def read(name):
        folder = goldens / "training" / name
        (entry,) = (e for e in manifest["training"] if e["id"] == f"training/{name}")
        inputs = folder / "inputs.npz"
        arrays = np.load(inputs) if inputs.exists() else None
        return entry, folder, arrays, np.load(folder / "expected.npz")

    return read


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A function: a work directory and changes to `small_config`; copies the finished run there."""
    from tests.small_run import FinishedRuns

    return FinishedRuns(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def plain_run(finished_run, tmp_path_factory):
    """A finished run of `small_config`; tests that use it need not compile its programs."""
    folder = tmp_path_factory.mktemp("plain")
    finished_run(folder)
    return folder


@pytest.fixture
def run_copy(plain_run, tmp_path):
    """A copy of `plain_run` that a test may damage."""
    return pathlib.Path(shutil.copytree(plain_run, tmp_path / "run"))


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


@pytest.fixture
def tpu_compiler(monkeypatch):
    """Lets a test compile for TPUs that are not here; it is skipped without their compiler."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('needs libtpu: pip install "vit-jax[plan]"')
    from vit_jax.planning.topology import LIBTPU_ENVIRONMENT

    for name, value in LIBTPU_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def leaves_nothing():
    """Collects what Orbax leaves of failed reads and saves here, not in a later module."""
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
        storage.as_path("gs://bucket/run")  # As the commands do; it makes gcsfs ready.
        yield server


@pytest.fixture
def gcs(gcs_server):
    """The object store, empty and without faults."""
    gcs_server.buckets["bucket"] = {}
    yield gcs_server
    gcs_server.fault = None
    gcs_server.start()
