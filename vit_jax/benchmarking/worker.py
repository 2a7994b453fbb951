"""A process of one contender: does what it is told, a line of JSON at a time.

    python -m vit_jax.benchmarking.worker '{"contender": "timm", "case": {...}, "folder": "..."}'

Each contender has a process of its own, so that their peak memory and their pools of threads are
apart. Between its turns it waits for the next line, which takes no processor time. The answer is
{"result": ...} or {"error": message, "kind": ...}; what libraries print goes to standard error.
"""

import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.benchmarking import memory
from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.contenders import Contender
from vit_jax.errors import VitJaxError
from vit_jax.parallel.simulated import give_threads_to_simulated_devices

OUT_OF_MEMORY, NOT_INSTALLED, FAILED = "out of memory", "not installed", "failed"
REFUSED = "refused by this jaxlib"  # A flag of XLA that it does not know.
OURS, FLAX = "vit_jax", "flax"
_OUT_OF_MEMORY_TEXTS = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "can't allocate")

Tasks = dict[str, Callable[..., Any]]


def make_contender(name: str, case: Case, folder: pathlib.Path | None) -> Contender:
    """Returns the contender of a name: vit_jax, flax, transformers or timm.

    The last three need a folder with parameters in their formats.

    Raises:
      ImportError: its library is not installed.
    """
    if name == OURS:
        from vit_jax.benchmarking.ours import OurModel

        return OurModel(case, folder)
    assert folder is not None
    if name == FLAX:
        from vit_jax.benchmarking.flax_peer import FlaxPeer

        return FlaxPeer(case, folder)
    from vit_jax.benchmarking.torch_peers import TorchPeer

    return TorchPeer(name, case, folder)


def make_tasks(job: dict[str, Any]) -> Tasks:
    """Returns what the process of a job can be told to do, by name."""
    case = Case.from_json(job["case"])
    if not job["folder"]:
        return contender_tasks(make_contender(job["contender"], case, None))
    folder = pathlib.Path(job["folder"])
    if job["contender"] == "weights":
        from vit_jax.benchmarking import weights

        return {"write": lambda contenders: weights.write(case, folder, contenders)}
    if job["contender"] == "matmul":
        from vit_jax.benchmarking.matmul import MatmulPeak

        peak = MatmulPeak(case.dtype, side=job.get("side"))
        return {"measure": peak.flops_per_second}
    if job["contender"] == "profile":
        from vit_jax.benchmarking.profiled_step import profile_here

        return {"profile": lambda: profile_here(case, folder)}
    return contender_tasks(make_contender(job["contender"], case, folder))


def contender_tasks(contender: Contender) -> Tasks:
    """Returns what a contender can be told to do, with results that are JSON."""

    def outputs(path: str) -> None:
        np.save(path, contender.outputs())

    def reset_peak() -> int:
        before = memory.peak_resident_bytes()
        memory.reset_peak()
        return before

    def peak() -> dict[str, int | None]:
        return {"resident": memory.peak_resident_bytes(), "device": contender.peak_bytes()}

    return {
        "prepare": lambda: contender.prepare().to_json(),
        "train": lambda steps: contender.train(steps).to_json(),
        "forward": lambda steps: contender.forward(steps).to_json(),
        "outputs": outputs,
        "reset_peak": reset_peak,
        "peak": peak,
    }


def error_kind(error: BaseException) -> str:
    """Returns what an error means for the table: out of memory, not installed, or failed."""
    if isinstance(error, ImportError):
        return NOT_INSTALLED
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY_TEXTS):
        return OUT_OF_MEMORY
    return FAILED


def _answer(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": call()}
    except Exception as error:
        if not isinstance(error, VitJaxError | ImportError):
            traceback.print_exc()
        first_line = str(error).strip().partition("\n")[0]
        name = "" if isinstance(error, VitJaxError) else f"{type(error).__name__}: "
        return {"error": f"{name}{first_line[:300]}", "kind": error_kind(error)}


def main(argument: str) -> None:
    """Serves until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Whatever prints must not be an answer.
    give_threads_to_simulated_devices()
    tasks: Tasks = {}

    def start() -> None:
        tasks.update(make_tasks(json.loads(argument)))

    answer = _answer(start)
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        task = json.loads(line)
        answer = _answer(lambda task=task: tasks[task["do"]](**task["arguments"]))


if __name__ == "__main__":
    main(sys.argv[1])
