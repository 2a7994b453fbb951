"""Compares programs compiled by XLA, at its default optimisation level, with NumPy in float64.

    python -m benchmarks.numerics

Prints a table of operation x rows: the error of the compiled program, that of NumPy in float32,
their ratio, and the largest accepted error. The operations are the building blocks of a ViT with
their gradients, the optimizers (two updates each), and fits of scaling laws. An error is the
largest difference from float64, divided by the largest absolute value of the array; of several
gradients the worst is shown.

A result is wrong if its error is more than twice NumPy's and more than `FLOOR`; or, for operations
in `BOUNDS`, more than the bound there. The exit code is 1 if a result is wrong. XLA_FLAGS must not
lower the optimisation level, because users compile with the default.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import jaxlib
import numpy as np
from absl import flags

from benchmarks.numerics_cases import CASES
from vit_jax import cli

ROWS = (1_000, 16_385, 32_769, 65_537, 200_000)
# Cases of the tests: each operation once, and cases that were wrong in some release.
SAMPLE = (
    *(("projected squares", rows) for rows in ROWS),
    *((name, 16_385) for name in ("dense", "attention", "layer norm", "mean over tokens")),
    *((name, 32_769) for name in ("softmax", "softmax_xent", "sigmoid_xent", "mean over batch")),
    *((name, 16_385) for name in ("mlp", "gelu tanh", "gelu erf", "class token")),
    ("mean over patches", 16_385),
    *((name, 4_099) for name in ("adamw", "sgd", "adafactor", "lion", "lamb", "muon")),
    ("vit", 250),
    ("fits of a power law", 16_385),
    ("fit of a power law with a floor", 1_000),
)
# Accepted error also where NumPy is more exact; float32 has an epsilon of 2^-23 = 1.2e-7.
FLOOR = 8 * 2.0**-23
# Accepted errors of particular operations.
BOUNDS = {
    # Gradients of weights are sums over all rows, in any order.
    "projected squares": 64 * 2.0**-23,
    "vit": 128 * 2.0**-23,
    # Five iterations of Newton and Schulz multiply rounding errors.
    "muon": 64 * 2.0**-23,
    # XLA's tanh, exp and log1p are accurate to a few units in the last place, NumPy's to one; the
    # gradient of tanh GELU multiplies the error of 1 - tanh^2 by up to 80.
    "mlp": 16 * 2.0**-23,
    "gelu tanh": 40 * 2.0**-23,
    # In float64, limited by the solver's tolerance.
    "fits of a power law": 1e-9,
    "fit of a power law with a floor": 1e-6,
}
_VIT_ROWS = 16_385  # Maximum number of images: beyond it, NumPy's einsum takes over a minute.


def measure(name: str, rows: int) -> Iterator[dict[str, Any]]:
    """Yields the errors of one operation, and of its gradient.

    Yields:
      operation, part (forward or gradient), rows; error: error of the compiled program; numpy:
      error of NumPy in float32; ratio; limit: the accepted error; wrong: error > limit.
    """
    case = CASES[name](rows)
    exact = case.expected(*(x.astype(np.float64) for x in case.inputs))
    float32 = case.expected(*case.inputs)
    for part, program in case.compiled.items():
        compiled = jax.device_get((jax.jit(program) if case.jit else program)(*case.inputs))
        # A gradient that is 0 up to rounding (of a key's bias) is compared with the largest one.
        least = 1e-3 * max(np.abs(true).max() for true in exact[part])
        results = []
        for true, plain, ours in zip(exact[part], float32[part], compiled, strict=True):
            size = max(np.abs(true).max(), least)
            error, numpy = (float(np.abs(x - true).max() / size) for x in (ours, plain))
            limit = BOUNDS.get(name, max(2 * numpy, FLOOR))
            wrong = not error <= limit  # True for NaN.
            results.append((wrong, error / limit, error, numpy, limit))
        wrong, _, error, numpy, limit = max(results)
        yield {
            "operation": name, "part": part, "rows": rows, "error": error, "numpy": numpy,
            "ratio": error / numpy if numpy else math.inf, "limit": limit, "wrong": wrong,
        }  # fmt: skip


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_bool(
        "sample", False, "Only the cases of the tests, which take seconds.", flag_values=values
    )
    flags.DEFINE_bool("json", False, "A line of JSON for each result.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Measures."""
    jax.config.update("jax_platforms", "cpu")
    table = [(n, r) for n in CASES for r in ROWS if n != "vit" or r <= _VIT_ROWS]
    if not values.json:
        device = jax.devices()[0].device_kind
        print(f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, {device}")
        print(f"{'':31}  {'':8} {'rows':>7} {'XLA':>8} {'NumPy':>8} {'ratio':>6} {'limit':>8}")
    anything_wrong = False
    for name, rows in SAMPLE if values.sample else table:
        for result in measure(name, rows):
            anything_wrong |= result["wrong"]
            if values.json:
                print(json.dumps(result), flush=True)
            else:
                print(
                    f"{name:31}  {result['part']:8} {rows:7} {result['error']:8.1e} "
                    f"{result['numpy']:8.1e} {result['ratio']:6.2f} {result['limit']:8.1e}"
                    f"{'  WRONG' if result['wrong'] else ''}",
                    flush=True,
                )
    return int(anything_wrong)


if __name__ == "__main__":
    cli.run(cli.Command(__doc__, define, main))
