r"""Measures how long commands take to start: their imports, and train up to its first update.

    python -m benchmarks.startup [--repeats=5] [--configs=quickstart,Ti/16] [--code=DIR,DIR]

Each measurement is a process of its own, and all are interleaved. For `train` the time begins with
the command and ends when the first update is computed, with an empty compilation cache (cold) and
with one in which the same command has stored its programs (warm). --code compares several
checkouts. Processor time is measured, too: unlike wall time, other work on the machine hardly
changes it.
"""

import ast
import dataclasses
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERBS = (
    "train", "evaluate", "predict", "analyze", "convert", "sweep", "fit", "runs", "compare",
    "transforms",
)  # fmt: skip
# Name -> flags of `train`. The data are digits; at 224 pixels they are enlarged.
CONFIGS = {
    "quickstart": ("--config=quickstart",),
    "Ti/16": (
        "--config=quickstart",
        "--config.model.variant=Ti/16",
        "--config.model.width=192",
        "--config.model.depth=12",
        "--config.model.mlp_dim=768",
        "--config.model.num_heads=3",
        "--config.model.scan=True",
        "--config.model.image_size=224",
        '--config.data.train_transforms=({"op":"decode","channels":1},{"op":"resize"},'
        '{"op":"value_range"})',
        "--config.batch_size=16",
        "--config.data.workers=0",
    ),
}
# What the child process prints when the first update is computed.
_MARK = "first update: "


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of a process: wall time, and processor time of all its threads."""

    wall: float
    processor: float


def imports_of(verb: str) -> str:
    """Returns the imports of a command: its module, and what its `main` imports in any case."""
    tree = ast.parse((ROOT / "vit_jax" / f"{verb}.py").read_text())
    (main,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    inside = [n for n in main.body if isinstance(n, ast.Import | ast.ImportFrom)]
    return "\n".join([f"import vit_jax.{verb}", *map(ast.unparse, inside)])


def run(arguments: Sequence[str], code: pathlib.Path, **variables: str) -> tuple[Seconds, str]:
    """Runs Python with these arguments and the modules of a checkout; returns its output, too."""
    env = os.environ | {"PYTHONPATH": str(code), "TF_CPP_MIN_LOG_LEVEL": "3"} | variables
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # It would take precedence over XDG_CACHE_HOME.
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], env=env, cwd=code, stdout=subprocess.PIPE, text=True
    )
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with exit code {process.returncode}.\n{output}")
    return Seconds(wall, usage.ru_utime + usage.ru_stime), output


# ------------------------------------------------------------------------------- the first update


def train_until_first_update(arguments: Sequence[str]) -> None:
    """Child process: runs `vit-jax train`, prints the seconds of its phases, and ends."""
    began = float(os.environ["STARTUP_BEGAN"])  # Seconds of time.time.
    events: list[tuple[str, float]] = []  # What begins, and when.

    def begins(phase: str) -> None:
        events.append((phase, time.time() - began))

    begins("imports")
    from jax import monitoring

    import vit_jax.__main__
    from vit_jax.parallel.watch import Watch
    from vit_jax.training.observer import Observer

    counts = dict.fromkeys(("cache_hits", "cache_misses"), 0)
    durations: dict[str, float] = {}

    def count(event: str, **_: Any) -> None:
        if (name := event.rpartition("/")[2]) in counts:
            counts[name] += 1

    def add(event: str, seconds: float, **details: Any) -> None:
        program = re.fullmatch(r"(?:jit\()?(init|train_step)\)?", str(details.get("fun_name")))
        kind = re.search(r"(jaxpr_trace|jaxpr_to_mlir_module|backend_compile)_duration$", event)
        if program and kind:
            key = f"{program[1]} {kind[1]}"
            durations[key] = durations.get(key, 0.0) + seconds

    monitoring.register_event_listener(count)
    monitoring.register_event_duration_secs_listener(add)
    at, report = Watch.at, Observer.report

    def noted_at(self: Watch, location: str) -> None:
        begins(location)
        at(self, location)

    def noted_report(self: Observer, step: int, *args: Any, **kwargs: Any) -> None:
        report(self, step, *args, **kwargs)
        begins("end")
        print(_MARK + json.dumps({"events": events, "counts": counts, "durations": durations}))
        sys.stdout.flush()
        os._exit(0)  # Stops the threads, too.

    Watch.at, Observer.report = noted_at, noted_report
    sys.argv = ["vit-jax", "train", *arguments]
    begins("data and model")
    vit_jax.__main__.main()


def first_update(config: str, code: pathlib.Path, cache: str) -> tuple[Seconds, dict[str, Any]]:
    """Returns the time of `train` up to its first update, and what the child process says."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*CONFIGS[config], f"--workdir={folder}/run"]
        seconds, output = run(
            [__file__, "--first_update", *arguments],
            code,
            XDG_CACHE_HOME=cache,
            STARTUP_BEGAN=str(time.time()),
        )
    (line,) = (line for line in output.splitlines() if line.startswith(_MARK))
    return seconds, json.loads(line.removeprefix(_MARK))


def phases(said: Mapping[str, Any]) -> dict[str, float]:
    """Returns wall seconds by what the main thread did until the first update was computed."""
    seconds: dict[str, float] = {}
    for (name, begins), (_, ends) in zip(said["events"], said["events"][1:], strict=False):
        name = re.sub(r"^(the batch of|the result of|update).*", "the first update", name)
        seconds[name] = seconds.get(name, 0.0) + ends - begins
    return seconds


# ------------------------------------------------------------------------------------------ table


def median(values: Sequence[float]) -> str:
    """Returns the median and the range as text."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def table(measured: Mapping[str, Mapping[str, Sequence[Seconds]]]) -> str:
    """Returns a Markdown table: a row for each measurement, two columns for each checkout."""
    codes = list(next(iter(measured.values())))
    head = [f"{code}: {kind}" for code in codes for kind in ("wall", "processor")]
    lines = [
        "| seconds: median (range) | " + " | ".join(head) + " |",
        "|---" * (len(head) + 1) + "|",
    ]
    for name, by_code in measured.items():
        cells = [
            median([getattr(seconds, kind) for seconds in by_code[code]])
            for code in codes
            for kind in ("wall", "processor")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(
    repeats: int, configs: Sequence[str], verbs: Sequence[str], codes: Sequence[pathlib.Path]
) -> tuple[dict[str, dict[str, list[Seconds]]], list[str]]:
    """Returns the times by name and checkout, and lines on where the last start spent its time."""
    measured: dict[str, dict[str, list[Seconds]]] = {}
    said: dict[str, dict[str, Any]] = {}

    def add(name: str, code: pathlib.Path, seconds: Seconds) -> None:
        by_code = measured.setdefault(name, {str(code): [] for code in codes})
        by_code[str(code)].append(seconds)

    for _ in range(repeats):
        for code in codes:
            if verbs:
                add("import jax", code, run(["-c", "import jax"], code)[0])
            for verb in verbs:
                add(f"imports of {verb}", code, run(["-c", imports_of(verb)], code)[0])
        for config in configs:
            for code in codes:
                with tempfile.TemporaryDirectory() as cache:
                    for state in ("cold", "warm"):
                        name = f"first update of {config}, {state}"
                        seconds, said[f"{name}, {code}"] = first_update(config, code, cache)
                        add(name, code, seconds)
    lines = []
    for name, last in said.items():
        parts = [f"{phase} {seconds:.1f}" for phase, seconds in phases(last).items()]
        hits, misses = last["counts"]["cache_hits"], last["counts"]["cache_misses"]
        lines.append(f"{name}: {', '.join(parts)}; programs: {hits} from the cache, {misses} not")
        lines.append("    " + ", ".join(f"{k} {v:.2f}" for k, v in last["durations"].items()))
    return measured, lines


if __name__ == "__main__" and sys.argv[1:2] == ["--first_update"]:
    train_until_first_update(sys.argv[2:])
elif __name__ == "__main__":
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats of each measurement.", lower_bound=1)
    _CONFIGS = flags.DEFINE_list("configs", list(CONFIGS), "What train starts; see CONFIGS.")
    _VERBS = flags.DEFINE_list("verbs", list(VERBS), "Commands whose imports are measured.")
    _CODE = flags.DEFINE_list("code", [str(ROOT)], "Checkouts to compare.")

    def main(argv: Sequence[str]) -> None:
        del argv
        codes = [pathlib.Path(code).resolve() for code in _CODE.value]
        measured, lines = measure(_REPEATS.value, _CONFIGS.value, _VERBS.value, codes)
        cores = len(os.sched_getaffinity(0))
        print("\n".join([f"{cores} of {os.cpu_count()} CPUs", "", table(measured), "", *lines]))

    app.run(main)
