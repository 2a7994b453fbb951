"""Exports a work directory of vit_jax, to evaluate, predict or fine-tune from it as from a run."""

from etils import epath
from ml_collections import FrozenConfigDict

from vit_jax.config import base_config, freeze
from vit_jax.errors import CheckpointError
from vit_jax.models.section import write_section
from vit_jax.pretrained.model import Pretrained
from vit_jax.rundir import workdir as workdirs


def write(pretrained: Pretrained, folder: epath.PathLike) -> None:
    """Writes config.json, dataset.json and a checkpoint of step 0.

    Each process writes its shards of the parameters; none holds all of them.

    Raises:
      CheckpointError: the outputs are not of classes.
      ConfigError: no config can describe the model, or the folder cannot be written.
    """
    from vit_jax.checkpoints.store import Store

    labels = class_names(pretrained)
    dataset = {
        "name": f"{pretrained.format} checkpoint",
        "split": "none",
        "num_examples": 0,
        "num_classes": len(labels),
        "class_names": list(labels),
        "channels": pretrained.config.channels,
        "fingerprint": "",
        "evals": {},
    }
    workdirs.make(folder)
    workdirs.claim(folder, run_config(pretrained), dataset)
    arrays = {"params": pretrained.params, "opt_state": {}, "ema": {}}
    with Store(epath.Path(folder) / workdirs.CHECKPOINTS) as store:
        store.save(0, arrays, {"step": 0}, metrics={})
        store.finish()


def class_names(pretrained: Pretrained) -> tuple[str, ...]:
    """Returns the names of a model's classes, or "class i" if they are unknown."""
    return pretrained.labels or workdirs.class_names(pretrained.config.num_classes)


def run_config(pretrained: Pretrained) -> FrozenConfigDict:
    """Returns the config of a run with this model, loss and preprocessing.

    Raises:
      CheckpointError: the outputs are not of classes.
      ConfigError: no config can describe the model.
    """
    if not pretrained.loss:
        raise CheckpointError(
            "This model's head is for regression (problem_type in its config.json): its outputs "
            "are numbers, not classes, and have no probabilities. Load it without its head "
            "(num_classes=0), or fine-tune it, see `vit-jax config finetune`."
        )
    config = base_config()
    config.total_steps = 1
    write_section(pretrained.config, config.model)
    config.loss.name = pretrained.loss
    decode, *others = pretrained.preprocess.transforms
    decode = {"channels": pretrained.config.channels, **decode}
    config.data.eval_transforms = (decode, *others)
    return freeze(config)
