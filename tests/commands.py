"""The commands as a user types them, without an interpreter and its imports for each call.

`CommandServer` is a process that has imported the commands, and forks for each call. A call is
`python -m vit_jax.VERB FLAGS` in every part but the import: the module runs as `__main__` in a
process of its own, with its own standard output and error, and may be killed.

`call` runs a command in this process: flags, messages and exit code are those of a user. It takes
milliseconds, and the annotations are checked.
"""

import contextlib
import dataclasses
import functools
import io
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
import types
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERBS = ("train", "evaluate", "predict", "convert")
PATIENCE_SECONDS = 120  # A mistake that is not noticed trains on.


@dataclasses.dataclass(frozen=True)
class Result:
    """What a call left: exit code (negative: a signal), standard output, standard error."""

    code: int
    out: str
    err: str


class Running:
    """A call that runs in a process of its own.

    Attributes:
      pid: of the process, which leads its own process group.
    """

    def __init__(self, server: "CommandServer", request: Mapping[str, Any]):
        self._folder = tempfile.TemporaryDirectory()
        self._server = server
        names = {name: f"{self._folder.name}/{name}" for name in ("out", "err")}
        for path in names.values():
            pathlib.Path(path).touch()
        self.pid = server.ask({**request, **names})["pid"]

    def text(self, name: str) -> str:
        """What it has written to "out" or "err" so far."""
        return pathlib.Path(self._folder.name, name).read_bytes().decode(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the process."""
        os.kill(self.pid, number)

    def wait(self) -> Result:
        """Waits until it has ended, at most PATIENCE_SECONDS: then it is killed."""
        code = self._server.ask({"wait_for": self.pid})["code"]
        result = Result(code, self.text("out"), self.text("err"))
        self._folder.cleanup()
        return result


class CommandServer:
    """A process that has imported the commands, and runs them. Use as a context manager."""

    def __enter__(self) -> "CommandServer":
        env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sends a line of JSON to the process, and returns the one that it answers."""
        print(json.dumps(request), file=self._server.stdin, flush=True)
        line = self._server.stdout.readline()
        assert line, f"the process that runs the commands died: {self._server.poll()}"
        return json.loads(line)

    def start(
        self,
        verb: str,
        *words: object,
        cwd: object = ROOT,
        devices: int = 1,
        optimize: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Running:
        """Starts `python -m vit_jax.VERB WORDS`.

        Args:
          verb: or a module, such as tests.faulty_train; or a line of code, as of `python -c`.
          words: flags and arguments.
          cwd: folder that it runs in.
          devices: CPU devices; one is what a user's machine has.
          optimize: whether XLA optimises programs as it does for a user; else it takes less time.
          env: what more to set in its environment.
        """
        xla = [] if devices == 1 else [f"--xla_force_host_platform_device_count={devices}"]
        xla += [] if optimize else ["--xla_backend_optimization_level=0"]
        env = {"XLA_FLAGS": " ".join(xla), **(env or {})}
        return Running(
            self, {"verb": verb, "words": [*map(str, words)], "cwd": str(cwd), "env": env}
        )

    def run(self, verb: str, *words: object, **kwargs: Any) -> Result:
        """Runs `python -m vit_jax.VERB WORDS` to its end; takes the arguments of `start`."""
        return self.start(verb, *words, **kwargs).wait()


# -------------------------------------------------------------------------- inside this process


def call(verb: str, *words: object, cwd: object = ROOT) -> Result:
    """Runs `python -m vit_jax.VERB WORDS` in this process, on all its devices."""
    from absl import logging

    from vit_jax import cli

    path = ROOT / "vit_jax" / f"{verb}.py"
    out, err = io.StringIO(), io.StringIO()
    verbosity, code = logging.get_verbosity(), 0
    with (
        _fresh_flags(),
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", [str(path), *map(str, words)]),
        mock.patch.object(sys, "excepthook", sys.excepthook),
        mock.patch.object(cli, "_keep_libraries_quiet"),  # It changes the process for good.
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            exec(_compiled(path), {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code or 0
    logging.set_verbosity(verbosity)
    return Result(code, out.getvalue(), err.getvalue())


@functools.cache
def _compiled(path: pathlib.Path) -> types.CodeType:
    return compile(path.read_text(), path, "exec")


@contextlib.contextmanager
def _fresh_flags() -> Iterator[None]:
    """Inside, absl's one set of flags has those of the libraries: a command adds its own."""
    from absl import flags

    fresh = flags.FlagValues()
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in defined if not module.startswith("tests.") else ():
            fresh[flag.name] = flag
    values = vars(flags.FLAGS)
    before = dict(values)
    values.clear()
    values.update(vars(fresh))
    try:
        yield
    finally:
        values.clear()
        values.update(before)


# --------------------------------------------------------------------- inside the other process


def _serve() -> None:
    for verb in VERBS:
        __import__(f"vit_jax.{verb}")
        del sys.modules[f"vit_jax.{verb}"]  # It runs again as __main__; what it imports stays.
    for late in ("data.digits", "data.tfds_source"):  # What the commands import when they need it.
        __import__(f"vit_jax.{late}")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Nothing but answers goes to the tests.
    started = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait_for" in request:
            answer = {"code": _wait(request["wait_for"])}
            started.remove(request["wait_for"])
        elif pid := os.fork():
            answer = {"pid": pid}
            started.add(pid)
        else:
            os._exit(_become(request))
        print(json.dumps(answer), file=answers, flush=True)
    for pid in started:  # Of tests that have failed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _wait(pid: int) -> int:
    """Returns the exit code of a process, and ends those that it has left."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (status := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):  # Loader processes.
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status[1])


def _become(request: Mapping[str, Any]) -> int:
    """Runs the command of a request as this process, and returns its exit code."""
    os.setsid()
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.chdir(request["cwd"])
    os.environ |= request["env"]
    verb = request["verb"]
    sys.argv = [f"vit_jax/{verb}.py", *request["words"]]
    code = 0
    try:
        if " " in verb:
            exec(verb, {"__name__": "__main__"})
        else:
            module = verb if "." in verb else f"vit_jax.{verb}"
            runpy.run_module(module, run_name="__main__", alter_sys=True)
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
