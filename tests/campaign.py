"""Kills training runs at random moments, again and again, and compares what comes of them.

    python -m tests.campaign --kills=100 --out=DIR [--signals=16]

(`make campaign` runs it, see `tests.campaign_test`.)

Each run is a real command. It gets kill -9 in a chosen phase after a random time, then the same
command follows, until the run is complete; the run's work directory is then compared with that of a
run that was left alone: see `tests.same_run`. After the kills come SIGTERM and SIGINT at random
moments. Prints tables. Exit code 1: something differed, and its work directory is kept.
"""

import collections
import dataclasses
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Mapping, Sequence

from absl import app, flags, logging

from tests.campaign_runs import TOTAL, VARIANTS, Command, Moment
from tests.same_run import differences, steps_of
from vit_jax.inference.evaluate import evaluate
from vit_jax.telemetry.jsonlines import read_jsonl

# Phase: its share of the kills, and the longest wait in it before the kill, in seconds.
PHASES = {
    "imports": (7, 2.0),
    "data": (5, 0.8),
    "init": (8, 0.4),
    "restore": (7, 0.1),
    "start": (3, 0.05),
    "compile": (8, 0.5),
    "steps": (15, 0.1),
    "eval": (12, 0.15),
    "save": (9, 0.06),
    "write": (12, 0.12),
    "last": (7, 0.1),
    "plot": (5, 0.2),
    "end": (2, 0.3),
    "blind": (8, 8.0),  # The plain command, which writes no phases down.
}
START_UP = ("imports", "data", "init", "restore", "start", "compile")
AT_THE_END = ("last", "plot", "end")
KILLS_A_RUN = 8


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill of, or signal to, a command."""

    run: str
    aimed: str
    hit: str  # The phase that its main thread was really in.
    step: int
    by: str  # "kill group", "kill main", "SIGTERM", "SIGINT".
    exit_code: int


class Campaign:
    """The runs, the kills, and what the comparisons found."""

    def __init__(
        self,
        out: pathlib.Path,
        *,
        seed: int,
        shares: Mapping[str, int],
        variants: Sequence[str] = ("threads", "threads", "workers"),
        warm: bool = False,
    ):
        """Trains the runs that are left alone, and by that fills the compilation cache.

        Args:
          out: folder of everything; emptied.
          seed: of the moments.
          shares: kills by phase, in any unit.
          variants: of the runs that are killed, in turn.
          warm: the commands skip their imports, see `Command`; none can be killed in these.
        """
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self.out, self._rng = out, random.Random(seed)
        self._shares, self._variants, self._warm = shares, variants, warm
        self.kills: list[Kill] = []
        # What was compared -> runs in which it was equal, and the differences.
        self.equal: collections.Counter[str] = collections.Counter()
        self.different: list[str] = []
        self._evaluations = {}
        for variant in sorted(set(variants)):
            reference = self._reference(variant)
            command = self._start(reference, variant)
            if (code := command.wait()) != 0:
                raise RuntimeError(f"{reference} ended with {code}: {command.output()}")
            shutil.copytree(reference, out / "evaluated")
            self._evaluations[variant] = evaluation(out / "evaluated")
            shutil.rmtree(out / "evaluated")

    def _reference(self, variant: str) -> pathlib.Path:
        return self.out / f"alone-{variant}"

    def _start(
        self, workdir: pathlib.Path, variant: str, *, traced: bool = False, cold: bool = False
    ) -> Command:
        cache = f"{workdir.name}-cache" if cold else "cache"
        return Command(
            workdir,
            (*VARIANTS[variant], f"--config.log.compilation_cache={self.out / 'caches' / cache}"),
            log=self.out / f"{workdir.name}.log",
            trace=self.out / "trace" if traced else None,
            warm=self._warm,
        )

    # --------------------------------------------------------------------------------- kills

    def kill_runs(self, count: int) -> None:
        """Kills `count` times, in as many runs as that takes."""
        shared = [phase for phase, share in self._shares.items() for _ in range(share)]
        aims = [shared[int((i + 0.5) * len(shared) / count)] for i in range(count)]
        self._rng.shuffle(aims)
        runs = 0
        while aims:
            # Every second run begins with an empty compilation cache.
            variant = self._variants[runs % len(self._variants)]
            of_run = [aims.pop() for _ in range(min(KILLS_A_RUN, len(aims)))]
            missed = self._kill_run(f"run{runs:02}-{variant}", variant, of_run, cold=runs % 2 == 1)
            aims += missed
            runs += 1
            if runs > 10 + count:
                raise RuntimeError(f"{aims} are missed again and again.")

    def _kill_run(self, name: str, variant: str, aims: list[str], *, cold: bool) -> list[str]:
        """Kills one run and finishes it; returns the aims whose phases it had already passed."""
        workdir = self.out / name
        early = [aim for aim in aims if aim not in AT_THE_END]
        late = sorted((aim for aim in aims if aim in AT_THE_END), key=AT_THE_END.index)
        missed = []
        for i, aim in enumerate(early + late):
            step = 0
            if aim not in START_UP + AT_THE_END:
                done = max(steps_of(workdir), default=0)
                stride = (TOTAL - done) / max(1, len(early) - i)
                step = done + self._rng.randint(1, max(1, int(stride)))
            command = self._start(workdir, variant, traced=aim != "blind", cold=cold)
            if aim == "blind" or command.wait_for(aim, step):
                time.sleep(self._rng.uniform(0, PHASES[aim][1]))
            whole_group = self._rng.random() < 0.7
            if command.kill(whole_group=whole_group):
                moment = ("blind", -1) if aim == "blind" else command.hit()
                by = "kill group" if whole_group else "kill main"
                self._note(name, aim, command, by, moment)
            else:
                missed.append(aim)
        self._compare(name, variant, self._start(workdir, variant, cold=cold))
        return missed

    def _note(self, name: str, aim: str, command: Command, by: str, moment: Moment) -> None:
        self.kills.append(Kill(name, aim, *moment, by, command.wait()))

    # --------------------------------------------------------------------------------- signals

    def signal_runs(self, count: int) -> None:
        """SIGTERM and SIGINT in turn, at any moment from the imports to the end."""
        for i in range(count):
            variant = self._variants[i // 2 % len(self._variants)]
            never = ("blind", "restore", "imports" if self._warm else "")
            aim = self._rng.choice([phase for phase in PHASES if phase not in never])
            step = 0 if aim in START_UP + AT_THE_END else self._rng.randint(1, TOTAL - 4)
            self.signal_run(i, ("SIGTERM", "SIGINT")[i % 2], variant, aim=aim, step=step)

    def signal_run(self, i: int, number: str, variant: str, *, aim: str, step: int) -> None:
        """One run that gets one signal, and then goes on to its end."""
        name = f"signal{i:02}-{number}-{variant}"
        workdir = self.out / name
        command = self._start(workdir, variant, traced=True)
        if command.wait_for(aim, step):
            time.sleep(self._rng.uniform(0, PHASES[aim][1]))
        moment = command.hit()
        caught = any(phase == "data" for phase, _ in command.moments)
        command.send(signal.Signals[number])
        code = command.wait()
        self._note(name, aim, command, number, moment)
        # Before the handler is there the signal ends it; from the last step on the run goes on.
        due = (0, 75) if moment[1] >= TOTAL - 2 else (75,)
        if moment[0] == "end":  # All is done and saved, and the handler gone.
            due += (-signal.Signals[number],)
        if not caught:
            due = (-signal.Signals[number],)
        self._check(name, f"{number}: exit code", code in due, f"{code}, {moment}")
        if code == 75:
            saved = steps_of(workdir)[-1]
            last = read_jsonl(workdir / "metrics.jsonl")[-1]["step"]
            self._check(name, "saved where it stopped", saved == last, f"{saved}, {last}")
        self._compare(name, variant, self._start(workdir, variant), stopped=True)

    # --------------------------------------------------------------------------- comparisons

    def _check(self, name: str, what: str, good: bool, detail: str) -> None:
        if good:
            self.equal[what] += 1
        else:
            self.different.append(f"{name}: {what}: {detail[-3000:]}")

    def _compare(self, name: str, variant: str, command: Command, *, stopped: bool = False) -> None:
        """Waits for the run's end, and compares it with the one that was left alone."""
        workdir, code = command.workdir, command.wait()
        self._check(name, "exit code 0 at last", code == 0, f"{code}: {command.output()}")
        if code:
            return
        self._check(name, "no process left", not (pids := command.left_behind()), str(pids))
        for what, items in differences(workdir, self._reference(variant), stopped=stopped).items():
            self._check(name, what, not items, "; ".join(items))
        same = evaluation(workdir) == self._evaluations[variant]
        self._check(name, "evaluation.json, bytes", same, "the bytes differ")
        good = not any(line.startswith(name) for line in self.different)
        print(f"{name}: {'equal' if good else 'DIFFERENT'}", flush=True)
        if good:
            shutil.rmtree(workdir)
            shutil.rmtree(self.out / "caches" / f"{name}-cache", ignore_errors=True)

    def report(self) -> str:
        """Returns the kills by phase, what was compared, and the differences, in Markdown."""
        lines = ["| phase | kills and signals |", "|---|---|"]
        hits = collections.Counter(kill.hit for kill in self.kills)
        lines += [f"| {phase} | {count} |" for phase, count in hits.items()]
        lines += ["", "| compared | runs in which it is equal |", "|---|---|"]
        lines += [f"| {what} | {count} |" for what, count in self.equal.items()]
        return "\n".join([*lines, "", f"Differences: {len(self.different)}", *self.different, ""])


def evaluation(workdir: pathlib.Path) -> bytes:
    """What `vit_jax.evaluate` finds of a complete run."""
    return evaluate(workdir).report.to_json().encode()


if __name__ == "__main__":
    _KILLS = flags.DEFINE_integer("kills", 100, "How many times to kill.")
    _SIGNALS = flags.DEFINE_integer("signals", 16, "How many times to send SIGTERM or SIGINT.")
    _OUT = flags.DEFINE_string("out", None, "Folder for everything; emptied.", required=True)

    def main(argv: Sequence[str]) -> int:
        del argv
        logging.set_verbosity(logging.WARNING)
        out = pathlib.Path(_OUT.value).absolute()
        shares = {phase: share for phase, (share, _) in PHASES.items()}
        campaign = Campaign(out, seed=0, shares=shares)
        campaign.kill_runs(_KILLS.value)
        campaign.signal_runs(_SIGNALS.value)
        print(campaign.report())
        return int(bool(campaign.different))

    app.run(main)
