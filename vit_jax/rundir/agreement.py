"""The processes of a run have one config, the same data, and one work directory."""

import contextlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import FrozenConfigDict

from vit_jax import storage
from vit_jax.errors import ConfigError
from vit_jax.parallel.processes import exchange
from vit_jax.rundir.workdir import config_diff, config_to_json

TOKEN = ".together"
PATIENCE = 30  # Seconds until a file of another host is seen here: network file systems remember.


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
    token = secrets.token_hex(8)
    said = {"config": config_to_json(config), "dataset": dataset, "token": token}
    words = [json.loads(word) for word in exchange(json.dumps(said))]
    for i, word in enumerate(words):
        diff = config_diff(words[0]["config"], word["config"])
        diff += config_diff(words[0]["dataset"], word["dataset"])
        if diff:
            raise ConfigError(
                f"Process {i} of {len(words)} was started with another config than process 0, or "
                "finds other data:\n" + "\n".join(diff) + "\nStart all with the same command."
            )

    fault = ""
    if jax.process_index() == 0:
        try:
            storage.write_bytes(workdir / TOKEN, token.encode())
        except OSError as error:
            fault = f"--workdir={workdir} cannot be written: {storage.explain(error)}."
    fault = exchange(fault)[0]
    if not fault and not _sees(workdir / TOKEN, words[0]["token"]):
        fault = (
            f"--workdir={workdir} is another folder here, in process {jax.process_index()}, than "
            "in process 0: it must be one that all processes share, on a network file system or "
            "in an object store."
        )
    faults = exchange(fault)
    if jax.process_index() == 0 and not faults[0]:
        with contextlib.suppress(OSError):  # Then the next start writes over it.
            storage.delete(workdir / TOKEN)
    for fault in filter(None, faults):
        raise ConfigError(fault)


def _sees(path: epath.Path, token: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if storage.read_bytes(path, limit=100).decode(errors="replace") == token:
                return True
        except OSError:  # Not there, or not yet.
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
