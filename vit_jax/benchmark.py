r"""Measures the train step and the forward pass, ours and those of other libraries.

    vit-jax benchmark --variant=Ti/16,S/16 --batch=16 --peers=transformers,timm,flax
    vit-jax benchmark --variant=L/16 --batch=256 --dtype=bfloat16 --sweep --out=sweep.json

For each variant, image size, batch and dtype: seconds of initialisation, tracing and compilation;
images per second of training (the step of `vit-jax train`: forward, backward, clipping, optimizer)
and of the forward pass (that of `vit-jax evaluate`); peak memory; FLOP/s, its share of the peak of
matrix products measured in the same run, and of the data sheet's (MFU, on known accelerators). A
multiply-add is two FLOPs, matrix products and convolutions count, recomputation does not.

Each contender has a process, the same parameters and the same batch; their turns are interleaved,
and the table shows the median and the range of the rounds. A reference in plain float32 makes the
same updates: a contender with other losses or outputs is WRONG, and has no throughput. Lists of
--remat, --scan and --attention are compared with one another; --sweep sorts all their combinations,
and those of --batch, by speed.
"""

import json
import sys
import time

from absl import flags

from vit_jax import cli, storage
from vit_jax.errors import DataError, ExitCode

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
    from vit_jax.benchmarking.case import parse_mesh
    from vit_jax.benchmarking.result import WRONG, Result
    from vit_jax.benchmarking.run import Effort, benchmark, check_peers
    from vit_jax.benchmarking.sweep import Grid, sweep
    from vit_jax.benchmarking.table import ratio_lines, terminal_table
    from vit_jax.telemetry.progress import wide_console

    out = None if values.out is None else storage.as_path(values.out, name="--out")
    check_peers(values.peers)
    grid = Grid.parse(
        {
            name: values[name].value
            for name in ("variant", "size", "batch", "dtype", "remat", "scan", "attention")
        },
        mesh=parse_mesh(values.mesh),
        optimizer=values.optimizer,
    )
    effort = Effort(
        rounds=values.rounds,
        turn_seconds=values.turn_seconds,
        checked_updates=values.checked_updates,
    )
    start, console = time.monotonic(), wide_console()

    def report(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", file=sys.stderr, flush=True)

    measured: list[Result] = []
    if values.sweep:
        groups = [(title, sweep(cases, effort=effort, report=report))
                  for title, cases in grid.sweeps()]  # fmt: skip
    else:
        groups = (
            (title, benchmark(cases, peers=values.peers, effort=effort, report=report))
            for title, cases in grid.groups()
        )
    for title, results in groups:
        measured += results
        console.print(terminal_table(title, results))
        for line in ratio_lines(results):
            console.print(line)
        if out is not None:
            text = json.dumps([result.to_json() for result in measured], indent=1)
            with storage.reported(DataError, f"{out} cannot be written"):
                storage.write_bytes(out, text.encode())
    is_wrong = any(result.status in (WRONG, "failed") for result in measured)
    return ExitCode.FAILED if is_wrong else ExitCode.DONE


COMMAND = cli.Command(__doc__, define, main)

if __name__ == "__main__":
    cli.run(COMMAND)
