"""Shared by all tests: run-time checked annotations, eight CPU devices, where the goldens are."""

import os
import pathlib

# Before JAX starts: eight devices let every test have a mesh.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Runs of the same small model are compiled once, and kept for the next time.
ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Every annotated function of ours is checked at run time: shapes, dtypes and types.
install_import_hook("vit_jax", "beartype.beartype")

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Folder of arrays that the reference implementations wrote; absent outside the team."""
    folder = SHARED / "goldens"
    if not folder.is_dir():
        pytest.skip(f"no reference arrays: {folder} does not exist")
    return folder
