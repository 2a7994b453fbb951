"""Measures how the cost of a train step grows as depth, width, tokens, batch and devices double.

    python -m benchmarks.growth [--out=growth.json] [--figure=growth.png]

Each point is a process of its own: our step of `vit-jax train` with SGD, its compile time, its
median time, and the memory of the compiled program (arguments and temporary). Around one base model
one number changes at a time. Devices are simulated on the cores of this machine, with a constant
batch, so their curve shows what the division costs, not what it gains. Compile time should be flat
in depth, since the blocks are compiled once (scan).
"""

import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import app, flags
from matplotlib import rc_context
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.process import Worker, WorkerError

_HEAD_WIDTH = 64
_PATCH = 16
BASE = {"depth": 4, "width": 128, "tokens": 64, "batch": 16, "devices": 1}
AXES = {
    "depth": (2, 4, 8, 16, 32),
    "width": (64, 128, 256, 512),
    "tokens": (16, 64, 256, 1024),
    "batch": (8, 16, 32, 64),
    "devices": (1, 2, 4, 8),
}
COSTS = {"step_seconds": "step, s", "megabytes": "memory, MB", "compile_seconds": "compile, s"}
_TIMEOUT_SECONDS = 300.0


@dataclasses.dataclass(frozen=True)
class Point:
    """One model and its cost.

    Attributes:
      sizes: depth, width, tokens (patches), batch and devices.
      compile_seconds: of the train step.
      step_seconds: medians of the rounds.
      lowest_seconds: of the fastest round.
      highest_seconds: of the slowest round.
      megabytes: arguments and temporary memory of the compiled step, of one device.
    """

    sizes: Mapping[str, int]
    compile_seconds: float
    step_seconds: float
    lowest_seconds: float
    highest_seconds: float
    megabytes: float


def case_of(sizes: Mapping[str, int]) -> Case:
    """Returns the case of these sizes; the number of tokens is a square."""
    side = round(sizes["tokens"] ** 0.5) * _PATCH
    width = sizes["width"]
    return Case(
        f"S/{_PATCH}",
        side,
        sizes["batch"],
        mesh=(sizes["devices"], 1, 1),
        num_classes=100,
        scan=True,
        sizes=(
            ("width", width), ("depth", sizes["depth"]), ("mlp_dim", 4 * width),
            ("num_heads", max(1, width // _HEAD_WIDTH)),
        ),
    )  # fmt: skip


def measure(sizes: Mapping[str, int], *, rounds: int = 5) -> Point:
    """Measures one point in a process of its own.

    Raises:
      WorkerError: it failed.
    """
    with Worker("vit_jax", case_of(sizes), None) as worker:
        prepared = worker.do("prepare", timeout_seconds=_TIMEOUT_SECONDS)
        worker.do("train", timeout_seconds=_TIMEOUT_SECONDS, steps=1)
        seconds = [
            worker.do("train", timeout_seconds=_TIMEOUT_SECONDS, steps=1)["seconds"]
            for _ in range(rounds)
        ]
    memory = prepared["temporary_bytes"] + prepared["argument_bytes"]
    return Point(
        dict(sizes),
        prepared["compile_seconds"],
        statistics.median(seconds),
        min(seconds),
        max(seconds),
        memory / 1e6,
    )


def growth(axes: Mapping[str, Sequence[int]], *, rounds: int = 5) -> dict[str, list[Point]]:
    """Measures every axis; the base model, which is on all of them, once."""
    known: dict[tuple, Point] = {}
    curves: dict[str, list[Point]] = {axis: [] for axis in axes}
    for axis, values in axes.items():
        for value in values:
            sizes = BASE | {axis: value}
            key = tuple(sizes.items())
            if key not in known:
                print(f"{axis} {value}", file=sys.stderr, flush=True)
                try:
                    known[key] = measure(sizes, rounds=rounds)
                except WorkerError as error:
                    print(f"{axis} {value}: {error}", file=sys.stderr, flush=True)
                    break  # Larger ones would fail, too.
            curves[axis].append(known[key])
    return curves


def table(curves: Mapping[str, Sequence[Point]]) -> Iterator[str]:
    """Yields the lines of a table in Markdown."""
    yield "| | step, s (range) | memory, MB | compile, s |"
    yield "|---|---|---|---|"
    for axis, points in curves.items():
        for point in points:
            yield (
                f"| {axis} {point.sizes[axis]:,} | {point.step_seconds:.3g} "
                f"({point.lowest_seconds:.3g} to {point.highest_seconds:.3g}) "
                f"| {point.megabytes:,.0f} | {point.compile_seconds:.1f} |"
            )


def figure(curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Draws each cost over each number, relative to the base model, on logarithmic axes."""
    with rc_context(figures.STYLE):
        drawing = Figure(figsize=(9, 3), layout="constrained")
        panels = drawing.subplots(1, len(COSTS), sharey=True)
        for axes, (cost, title) in zip(panels, COSTS.items(), strict=True):
            for (name, points), colour in zip(curves.items(), figures.COLOURS, strict=False):
                base = next((p for p in points if p.sizes == BASE), points[0] if points else None)
                if base is None:
                    continue
                x = [point.sizes[name] / base.sizes[name] for point in points]
                y = [getattr(point, cost) / getattr(base, cost) for point in points]
                axes.plot(x, y, "o-", color=colour, markersize=3, label=name)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_title(title.partition(",")[0])
            axes.set_xlabel("times the base model's")
        panels[0].set_ylabel("cost, times the base model's")
        panels[0].legend()
        return drawing


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes JSON and figure."""
    del argv
    curves = growth(AXES)
    print("\n".join(table(curves)))
    if _OUT.value:
        content = {axis: list(map(dataclasses.asdict, points)) for axis, points in curves.items()}
        pathlib.Path(_OUT.value).write_text(json.dumps(content, indent=1))
    if _FIGURE.value:
        figures.save(figure(curves), pathlib.Path(_FIGURE.value))


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", "", "JSON file.")
    _FIGURE = flags.DEFINE_string("figure", "growth.png", "Image of the curves; empty: none.")
    app.run(main)
