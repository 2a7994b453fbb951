"""The front doors as a user types them, many times a minute: imported once, forked for each call.

A call is `python -m vit_jax.VERB FLAGS` in every part but the import: the module runs as
`__main__` in a process of its own, with its own files for what it prints, and may die as it likes.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERBS = ("train", "evaluate", "predict", "convert")
PATIENCE = 120  # Seconds: a mistake that is not noticed trains on.


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a call left: exit code (negative: a signal), standard output, standard error."""

    code: int
    out: str
    err: str
    seconds: float


class Doors:
    """A process that has imported the front doors, and calls them. Use as a context manager."""

    def __enter__(self) -> "Doors":
        # One device, as a user's machine has, unless a call asks for more.
        env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.mistakes"],
            cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()

    def call(self, verb: str, *flags: object, cwd: object = ROOT, devices: int = 1) -> Answer:
        """Runs `python -m vit_jax.VERB FLAGS` to its end, in the folder `cwd`."""
        env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        request = {"verb": verb, "flags": [*map(str, flags)], "cwd": str(cwd), "env": env}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        line = self._server.stdout.readline()
        assert line, f"the process that calls the front doors died: {self._server.poll()}"
        return Answer(**json.loads(line))


def contents(folder: pathlib.Path) -> Mapping[str, bytes | None]:
    """All that lies below a folder, byte by byte: to see that nothing was lost or changed.

    But for `lock`, which says who has last tried.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }


# --------------------------------------------------------------------- inside the other process


def _serve() -> None:
    for verb in VERBS:
        __import__(f"vit_jax.{verb}")
        del sys.modules[f"vit_jax.{verb}"]  # It runs again as __main__; what it imports stays.
    for late in ("data.digits", "data.tfds_source"):  # What the front doors import when asked to.
        __import__(f"vit_jax.{late}")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Nothing but answers goes to the tests.
    for line in sys.stdin:
        print(json.dumps(dataclasses.asdict(_answer(json.loads(line)))), file=answers, flush=True)


def _answer(request: dict) -> Answer:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(_child(request, out.fileno(), err.fileno()))
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() - start > PATIENCE:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):  # Loader processes that it left.
            os.killpg(child, signal.SIGKILL)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Answer(os.waitstatus_to_exitcode(status), *texts, time.monotonic() - start)


def _child(request: dict, out: int, err: int) -> int:
    """Becomes the front door; gives its exit code."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["cwd"])
    os.environ |= request["env"]
    sys.argv = [f"vit_jax/{request['verb']}.py", *request["flags"]]
    code = 0
    try:
        runpy.run_module(f"vit_jax.{request['verb']}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
