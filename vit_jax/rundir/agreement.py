"""Checks that the processes of a run have the same config, data and work directory."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import FrozenConfigDict

from vit_jax.errors import ConfigError
from vit_jax.parallel.processes import exchange
from vit_jax.rundir.workdir import config_diff, config_to_json


def agree(
    workdir: epath.Path,
    config: FrozenConfigDict,
    dataset: Mapping[str, Any],
    *,
    remat: str | None,
    mesh: Mapping[str, int],
) -> None:
    """Checks that all processes of this run have the same config, data and work directory.

    All processes must call this, and either all return or all raise.

    Args:
      workdir: exists.
      config: of the run.
      dataset: the result of `vit_jax.rundir.workdir.describe_dataset`.
      remat: of the model; chosen by the devices of this process if that of the config is "auto".
      mesh: sizes by axis; chosen by the devices of this process with mesh.auto.

    Raises:
      ConfigError: a process differs from process 0; the message says which, and in what.
    """
    if jax.process_count() == 1:
        return
    mine = {
        "config": config_to_json(config),
        "dataset": dataset,
        "remat": remat,
        "mesh": dict(mesh),
        "workdir": os.fspath(workdir),
    }
    processes = [json.loads(text) for text in exchange(json.dumps(mine))]
    first = processes[0]
    for i, process in enumerate(processes):
        parts = ("config", "dataset")
        diff = [line for part in parts for line in config_diff(first[part], process[part])]
        if diff:
            raise ConfigError(
                f"Process {i} of {len(processes)} was started with another config than process 0, "
                "or finds other data:\n" + "\n".join(diff) + "\nStart all with the same command."
            )
        if process["remat"] != first["remat"]:
            raise ConfigError(
                f"By the memory of its devices process {i} of {len(processes)} chose model.remat="
                f"{process['remat']}, and process 0 {first['remat']}: all must have one. Set "
                f"--config.model.remat={process['remat']} or {first['remat']}."
            )
        if process["mesh"] != first["mesh"]:
            raise ConfigError(
                f"By the memory of its devices process {i} of {len(processes)} chose the mesh "
                f"{process['mesh']}, and process 0 {first['mesh']}: all must have one. Set "
                "--config.mesh.auto=False, mesh.data and mesh.fsdp."
            )
        if process["workdir"] != first["workdir"]:
            raise ConfigError(
                f"Process {i} of {len(processes)} has --workdir={process['workdir']}, and process "
                f"0 {first['workdir']}: it must be one that all processes share, on a network "
                "file system or in an object store."
            )
