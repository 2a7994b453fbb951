"""Where the tests keep compiled programs: one folder for each environment and processor."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys


def folder() -> pathlib.Path:
    """Returns the folder of compiled programs of this Python, jaxlib and processor.

    It lies outside the checkout, so a fresh clone does not compile again. XLA:CPU compiles for the
    instructions of the processor: another machine that mounts the same home has its own folder.
    JAX's own key covers the program, the flags and the versions.
    """
    parts = [sys.version, importlib.metadata.version("jaxlib"), platform.machine(), _processor()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return cache / "vit_jax" / f"test-programs-{key}"


def _processor() -> str:
    """The first processor's model and instruction sets, where Linux tells them."""
    try:
        first = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    lines = first.splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
