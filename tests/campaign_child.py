"""`vit_jax.train`, recording its phases for the campaign of kills.

    python -m tests.campaign_child TRACE --config=FILE --workdir=DIR ...

Runs `python -m vit_jax.train` with the flags after TRACE, and adds a line "time phase step" to the
file TRACE whenever another phase begins: a single write, which a kill -9 a moment later does not
undo. The functions that make up the phases are wrapped from outside; nothing in vit_jax knows.

Phases: imports, data, restore, init, start, compile, steps, eval, save, wait, plot, end.
"""

import functools
import importlib
import os
import runpy
import sys
import time
from typing import Any

# What is open while the function runs, where it is called.
WRAPPED = (
    ("vit_jax.training.experiment", "open_source", "data"),
    ("vit_jax.checkpoints.store", "Store.restore_newest", "restore"),
    ("vit_jax.checkpoints.store", "Store.save", "save"),
    ("vit_jax.checkpoints.store", "Store.finish", "wait"),
    ("vit_jax.training.state", "starting_point", "init"),
    ("jax.stages", "Lowered.compile", "compile"),
    ("vit_jax.evals.classification", "Classification.evaluate", "eval"),
    ("vit_jax.analysis.figures", "curves", "plot"),
    ("vit_jax.data.pipeline", "Batches.__next__", "batch"),
)


class Trace:
    """The phases that are open, and the file that says which is the innermost."""

    def __init__(self, path: str):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._open: list[str] = ["imports"]
        self.step = 0  # Updates before the batch that was drawn last.
        self.write()

    def write(self) -> None:
        line = f"{time.monotonic():.6f} {self._open[-1]} {self.step}\n"
        os.write(self._file, line.encode())

    def enter(self, phase: str) -> None:
        self._open.append(phase)
        self.write()

    def leave(self, *, then: str = "") -> None:
        """Closes the innermost phase; `then` is what the run does from now on in between."""
        self._open.pop()
        if then:
            self._open[0] = then
        self.write()

    def wrap(self, phase: str, function: Any) -> Any:
        """The function, with its phase open while it runs."""

        @functools.wraps(function)
        def traced(*args, **kwargs):
            if phase == "batch":  # Drawn by the loop itself, or by an evaluation.
                if len(self._open) == 1:
                    self.step += self._open[0] == "steps"
                    self._open[0] = "steps"
                    self.write()
                return function(*args, **kwargs)
            self.step = args[1] if phase == "save" else self.step
            self.enter(phase)
            result = function(*args, **kwargs)
            if phase == "init":
                self.step = int(result[0].step)
            self.leave(then={"init": "start", "plot": "end"}.get(phase, ""))
            return result

        return traced


def main() -> None:
    trace = Trace(sys.argv.pop(1))
    for module, name, phase in WRAPPED:
        owner: Any = importlib.import_module(module)
        *parents, leaf = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, leaf, trace.wrap(phase, getattr(owner, leaf)))
    runpy.run_module("vit_jax.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
