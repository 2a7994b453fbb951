"""Real `python -m vit_jax.train` commands, watched from outside and ended at a chosen moment."""

import atexit
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

from tests import forked

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOTAL = 60
FLAGS = (
    "--config=configs/quickstart.py",
    f"--config.total_steps={TOTAL}",
    "--config.batch_size=32",
    "--config.model.width=32",
    "--config.model.depth=1",
    "--config.model.mlp_dim=64",
    "--config.model.num_heads=2",
    "--config.model.dropout=0.1",
    "--config.model.attention_dropout=0.1",
    "--config.mix.mixup_alpha=0.2",
    "--config.mix.cutmix_alpha=1.0",
    "--config.optim.ema_decay=0.9",
    "--config.checkpoint.every_steps=10",
    "--config.log.every_steps=1",
)
VARIANTS = {
    "threads": (
        "--config.log.tensorboard=False",
        "--config.evals.test.every_steps=6",
    ),
    # Starting loader processes takes seconds, and an evaluation starts its own.
    "workers": (
        "--config.data.workers=2",
        "--config.optim.accum_steps=2",
        "--config.evals.test.every_steps=30",
        "--config.checkpoint.keep_every_steps=20",
        "--config.checkpoint.best_metric=test/loss",
        "--config.checkpoint.best_mode=min",
    ),
}
# Seconds. No run takes so long, however busy the machine is.
TIMEOUT = 150.0
HUNG = -1000  # Instead of the exit code of a command that the campaign had to end.

Moment = tuple[str, int]  # The phase that begins, and the updates made before it.


class Command:
    """One start of the training command, in a process group of its own."""

    def __init__(
        self,
        workdir: pathlib.Path,
        flags: tuple[str, ...],
        *,
        log: pathlib.Path,
        trace: pathlib.Path | None = None,
        warm: bool = False,
    ):
        """Starts it.

        Args:
          workdir: of the run.
          flags: after FLAGS.
          log: gets the output of all starts, one after the other.
          trace: where the command writes down its phases; None: the plain command.
          warm: forked from a process that has imported everything, see tests.forked.
        """
        self.workdir, self._trace, self._read = workdir, trace, 0
        self.moments: list[Moment] = []
        module = ["vit_jax.train"]
        if trace is not None:
            trace.unlink(missing_ok=True)
            module = ["tests.campaign_child", str(trace)]
        # One device, as a user's machine has; even the smallest programs are kept compiled.
        env = {
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._began = time.monotonic()
        self._log, self._log_start = log, log.stat().st_size if log.exists() else 0
        command = [*module, *FLAGS, *flags, f"--workdir={workdir}"]
        with open(log, "ab") as output:
            if warm:
                self._process = forked.start(*command, output=output, new_session=True)
            else:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", *command],
                    cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
        atexit.register(self.kill, whole_group=True)  # If the campaign itself is interrupted.

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def look(self) -> None:
        """Reads what the command has written down since the last look."""
        if self._trace is None or not self._trace.exists():
            return
        with open(self._trace, "rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        self._read += len(whole) + bool(whole)
        for line in whole.decode().splitlines():
            _, phase, step = line.split()
            self.moments.append((phase, int(step)))

    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, phase: str, step: int) -> bool:
        """Waits until `phase` begins at `step` or later; False if the command ends before.

        `write` begins when a save has handed its arrays over and the loop goes on; `last` is the
        save of the last step.
        """
        seen = 0
        while self.seconds() < TIMEOUT:
            running = self.running()
            self.look()
            for i in range(seen, len(self.moments)):
                name, at = self.moments[i]
                before = self.moments[i - 1][0] if i else ""
                if at >= step and (
                    name == phase
                    or (phase == "write" and before == "save")
                    or (phase == "last" and name in ("save", "wait") and at == TOTAL)
                ):
                    return running
            seen = len(self.moments)
            if not running:
                return False
            time.sleep(0.0005)
        raise TimeoutError(f"{phase} at {step} did not come: {self.output()}")

    def hit(self) -> Moment:
        """What an ended command was doing last, and after how many updates."""
        self.look()
        phase, step = self.moments[-1] if self.moments else ("imports", 0)
        return ("last" if phase in ("save", "wait") and step == TOTAL else phase), step

    def kill(self, *, whole_group: bool) -> bool:
        """Sends SIGKILL, to loader processes too or not; False if the command had ended."""
        if not self.running():
            return False
        if whole_group:
            self.send(signal.SIGKILL)
        else:
            self._process.kill()
        return self._process.wait() == -signal.SIGKILL

    def send(self, number: signal.Signals) -> None:
        """A signal to the whole group, as a terminal and a scheduler send it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self) -> int:
        """The exit code, minus the signal that ended it, or HUNG."""
        try:
            return self._process.wait(timeout=TIMEOUT - self.seconds())
        except subprocess.TimeoutExpired:
            self.kill(whole_group=True)
            return HUNG

    def left_behind(self) -> list[int]:
        """Processes of the group that still run some seconds after the command's end."""
        deadline = time.monotonic() + 10
        while (pids := self._group()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return pids

    def _group(self) -> list[int]:
        pids = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # It has just ended.
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self._process.pid and state != "Z":
                    pids.append(int(stat.parent.name))
        return pids

    def output(self) -> str:
        """What this start has printed."""
        with open(self._log, "rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")
