r"""Measures the train step and the forward pass, ours and those of other libraries.

    vit-jax benchmark --variant=Ti/16,S/16 --batch=16 --peers=transformers,timm,flax
    vit-jax benchmark --variant=L/16 --batch=256 --dtype=bfloat16 --sweep --out=sweep.json

For each variant, image size, batch and dtype: seconds of initialisation, tracing and compilation;
images per second of training (the step of `vit-jax train`: forward, backward, clipping, optimizer)
and of the forward pass (that of `vit-jax evaluate`); peak memory; FLOP/s, its share of the peak of
matrix products measured in the same run, and of the data sheet's (MFU, on known accelerators). A
multiply-add is two FLOPs, matrix products and convolutions count, recomputation does not.

Each contender has a process, the same parameters and the same batch; their turns are interleaved,
and the table shows the median and the range of the rounds. A reference in float32, a plain
Flax ViT, makes the same updates: a contender with other losses or outputs is WRONG, and has no
throughput. Lists of
--remat, --scan and --attention are compared with one another; --sweep sorts all their combinations,
and those of --batch, by speed.
"""

import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import cli, storage
from vit_jax.errors import ConfigError, DataError, ExitCode

if TYPE_CHECKING:
    from etils import epath

    from vit_jax.benchmarking.result import Result
    from vit_jax.benchmarking.sweep import Grid

_OPTIMIZERS = ("sgd", "adamw")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list("variant", ["Ti/16"], "Sizes and patches.", flag_values=values)
    flags.DEFINE_list("size", ["224"], "Sides of the images in pixels.", flag_values=values)
    flags.DEFINE_list("batch", ["16"], "Images of a step.", flag_values=values)
    flags.DEFINE_list("dtype", ["float32"], "float32, bfloat16.", flag_values=values)
    flags.DEFINE_string("mesh", "", "Devices: data=4,fsdp=2; by default one.", flag_values=values)
    for name in ("remat", "scan", "attention"):
        text = f"Values of config.model.{name}; by default that of the base config."
        flags.DEFINE_list(name, [], text, flag_values=values)
    flags.DEFINE_enum(
        "optimizer", "sgd", _OPTIMIZERS, "With the gradient clipped at 1.", flag_values=values
    )
    flags.DEFINE_list("peers", [], "Some of transformers, timm, flax.", flag_values=values)
    flags.DEFINE_bool(
        "sweep", False, "All combinations, one after another, sorted by speed.", flag_values=values
    )
    flags.DEFINE_bool(
        "profile", False, "Our step alone: time by operation, largest arrays.", flag_values=values
    )
    flags.DEFINE_integer("rounds", 5, "Turns of each contender.", 1, flag_values=values)
    flags.DEFINE_float(
        "turn_seconds", 0.5, "A turn has as many steps as take this long.", 0.0, flag_values=values
    )
    flags.DEFINE_integer(
        "checked_updates", 0, "Updates that the reference makes; 0: all.", 0, flag_values=values
    )
    flags.DEFINE_string("out", None, "JSON file of all measurements.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Measures, and prints tables."""
    from vit_jax.benchmarking.result import WRONG
    from vit_jax.benchmarking.run import Effort, check_peers
    from vit_jax.benchmarking.sweep import Grid, measure_groups, measure_sweeps

    out = None if values.out is None else storage.as_path(values.out, name="--out")
    check_peers(values.peers)
    names = ("variant", "size", "batch", "dtype", "remat", "scan", "attention")
    grid = Grid.parse(
        {name: getattr(values, name) for name in names},
        mesh=values.mesh,
        optimizer=values.optimizer,
    )
    if values.profile:
        return _profile(grid, out)
    effort = Effort(
        rounds=values.rounds,
        turn_seconds=values.turn_seconds,
        checked_updates=values.checked_updates,
    )
    if values.sweep and values.peers:
        raise ConfigError("--sweep measures our model alone: leave out --peers, or --sweep.")
    tables = (
        measure_sweeps(grid, effort=effort, report=_report)
        if values.sweep
        else measure_groups(grid, peers=values.peers, effort=effort, report=_report)
    )
    measured = []
    for title, results in tables:
        measured += results
        _print(title, results)
        _write(out, [result.to_json() for result in measured])
    is_wrong = any(result.status in (WRONG, "failed") for result in measured)
    return ExitCode.FAILED if is_wrong else ExitCode.DONE


def _print(title: str, results: "list[Result]") -> None:
    from vit_jax.benchmarking.table import ratio_lines, terminal_table
    from vit_jax.telemetry.progress import wide_console

    console = wide_console()
    console.print(terminal_table(title, results))
    for line in ratio_lines(results):
        console.print(line)


def _profile(grid: "Grid", out: "epath.Path | None") -> int:
    from vit_jax.benchmarking.profile import profile

    profiles = []
    for _, cases in grid.groups():
        for case in cases:
            profiled = profile(case, report=_report)
            print(f"{case.describe_workload()} {case.describe_settings()}".strip())
            print("\n".join(profiled.lines()), flush=True)
            profiles.append({"case": case.to_json(), **dataclasses.asdict(profiled)})
            _write(out, profiles)
    return ExitCode.DONE


def _report(line: str) -> None:
    """Shows a line of progress, beside the tables."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def _write(out: "epath.Path | None", content: list[dict[str, Any]]) -> None:
    """Writes what has been measured so far."""
    if out is not None:
        with storage.reported(DataError, f"{out} cannot be written"):
            storage.write_bytes(out, json.dumps(content, indent=1).encode())


COMMAND = cli.Command(__doc__, define, main)

if __name__ == "__main__":
    cli.run(COMMAND)
