"""Draft."""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval


def get_config(arg: str | None = None) -> ConfigDict:
    c = base_config()
    c.total_epochs = 60.0
    c.batch_size = 128
    c.model.update(dict(variant="Ti/2", width=64, depth=4, mlp_dim=192, num_heads=4, image_size=(8,), channels=1, pool="gap", posemb="learned"))
    c.data.source = "digits"
    tail = ({"op": "value_range"},)
    c.data.train_transforms = ({"op": "decode", "channels": 1},{"op":"random_crop","padding":1}, *tail)
    c.data.eval_transforms = ({"op": "decode", "channels": 1}, *tail)
    c.optim.lr = 2e-3
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0
    c.optim.schedule.warmup_percent = 0.1
    c.loss.label_smoothing = 0.1
    c.evals = ConfigDict({"test": classification_eval(split="test", every_steps=100)})
    c.checkpoint.every_steps = 200
    return c
