"""The processes of a run have one config, the same data, and one work directory."""

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


def agree(workdir: epath.Path, config: FrozenConfigDict, dataset: Mapping[str, Any]) -> None:
    """Checks that all processes of this run do the same work in the same place.

    All of them must call this, and all return or raise.

    Args:
      workdir: of the run, which must be there.
      config: of the run.
      dataset: what `vit_jax.rundir.workdir.describe_dataset` says of its data.

    Raises:
      ConfigError: one has another config, data or work directory than process 0, and which.
    """
    if jax.process_count() == 1:
        return
    said = {"config": config_to_json(config), "dataset": dataset, "workdir": os.fspath(workdir)}
    words = [json.loads(word) for word in exchange(json.dumps(said))]
    for i, word in enumerate(words):
        diff = config_diff(words[0]["config"], word["config"])
        diff += config_diff(words[0]["dataset"], word["dataset"])
        if diff:
            raise ConfigError(
                f"Process {i} of {len(words)} was started with another config than process 0, or "
                "finds other data:\n" + "\n".join(diff) + "\nStart all with the same command."
            )
        if word["workdir"] != words[0]["workdir"]:
            raise ConfigError(
                f"Process {i} of {len(words)} has --workdir={word['workdir']}, and process 0 "
                f"{words[0]['workdir']}: it must be one that all processes share, on a network "
                "file system or in an object store."
            )
