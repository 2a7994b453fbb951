"""A work directory of ours as a pretrained model, like any published checkpoint."""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from vit_jax import storage
from vit_jax import workdir as workdirs
from vit_jax.parallel.constraints import AXES


def is_own(path: str | os.PathLike) -> bool:
    """Whether a path is a work directory, or a checkpoint in one."""
    folder = storage.as_path(path)
    if folder.name.isdigit() and folder.parent.name == workdirs.CHECKPOINTS:
        return True
    return storage.exists(folder / workdirs.DATASET)


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    devices = np.asarray(jax.local_devices()[:1]).reshape((1,) * len(AXES))
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
