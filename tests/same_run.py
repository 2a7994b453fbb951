"""Whether two work directories hold the same run: every array, line and file, to the bit."""

import json
import pathlib

import jax
import numpy as np

from vit_jax.checkpoints.store import ARRAYS, Store
from vit_jax.errors import CheckpointError
from vit_jax.rundir import workdir as workdirs

# Names that differ between equal runs: what is in them is compared, or is the machine's own.
CHECKED_ELSEWHERE = ("checkpoints", "tb")


def steps_of(workdir: pathlib.Path) -> list[int]:
    """Steps whose checkpoint has its final name, ascending; without opening anything."""
    names = (path.name for path in (workdir / workdirs.CHECKPOINTS).glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def left_over(workdir: pathlib.Path) -> list[str]:
    """Returns the names among the checkpoints that are no checkpoint."""
    names = []
    for path in (workdir / workdirs.CHECKPOINTS).glob("*"):
        if not path.name.isdigit() and (path.is_file() or any(path.iterdir())):
            names.append(path.name)
    return names


def checkpoint(workdir: pathlib.Path, step: int) -> tuple[dict[str, np.ndarray], dict]:
    """Every array of a checkpoint by name, and what is kept beside them but for the clock."""
    with Store(workdir / workdirs.CHECKPOINTS, read_only=True) as store:
        targets = {item: store.shapes(step, item) for item in ARRAYS}
        tree, loop_state = store.restore(step, targets)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
    return arrays, {key: value for key, value in loop_state.items() if key != "clock"}


def differences(
    workdir: pathlib.Path, reference: pathlib.Path, *, stopped: bool = False
) -> dict[str, list[str]]:
    """What was compared, and for each what differs: all lists are empty for the same run.

    Args:
      workdir: of a run that is complete.
      reference: of the same run, never interrupted.
      stopped: whether it got a signal, and so has saved a step that the reference has not,
        perhaps instead of an older one.
    """
    differing: dict[str, list[str]] = {}
    ours, theirs = ((run / "metrics.jsonl").read_bytes() for run in (workdir, reference))
    differing["metrics.jsonl, bytes"] = [] if ours == theirs else ["the bytes differ"]
    steps = [json.loads(line)["step"] for line in ours.splitlines()]
    if steps != sorted(set(steps)):
        differing["metrics.jsonl, bytes"].append(f"the steps are {steps}")

    # An older one may be left over: the kill came before it was tidied away.
    wanted, left = steps_of(reference), steps_of(workdir)
    missing = [step for step in (wanted[-1:] if stopped else wanted) if step not in left]
    differing["steps of checkpoints"] = [f"{step} is missing" for step in missing]
    for item in ARRAYS:
        differing[f"{item}, bits"] = []
    differing["digests and step"] = []
    differing["older checkpoints left over, complete"] = []
    for step in left:
        if step not in wanted:
            try:
                checkpoint(workdir, step)
            except CheckpointError as error:
                differing["older checkpoints left over, complete"].append(str(error))
            continue
        (arrays, loop_state), (want, want_loop_state) = (
            checkpoint(run, step) for run in (workdir, reference)
        )
        for name in sorted(arrays.keys() | want.keys()):
            a, b = arrays.get(name), want.get(name)
            if a is None or b is None or a.dtype != b.dtype or a.tobytes() != b.tobytes():
                differing[f"{name.partition('/')[0]}, bits"].append(f"{step}: {name}")
        differing["digests and step"] += workdirs.config_diff(want_loop_state, loop_state)

    names = [
        {path.name for path in run.iterdir()} - set(CHECKED_ELSEWHERE)
        for run in (workdir, reference)
    ]
    differing["files left"] = sorted(names[0] ^ names[1]) + left_over(workdir)
    return differing
