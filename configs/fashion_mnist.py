"""Draft."""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_args(arg, epochs=12.0)
    c = base_config()
    c.total_epochs = args.epochs
    c.batch_size = 256

    c.model.variant = "Ti/7"
    c.model.update({"width": 128, "depth": 4, "mlp_dim": 256, "num_heads": 4})
    c.model.image_size, c.model.channels = (28,), 1
    c.model.pool, c.model.posemb = "gap", "sincos2d"

    c.data.source = "fashion_mnist"
    decode = {"op": "decode", "channels": 1}
    c.data.train_transforms = (
        decode,
        {"op": "random_crop", "padding": 2},
        {"op": "flip_lr"},
        {"op": "value_range"},
    )
    c.data.eval_transforms = (decode, {"op": "resize"}, {"op": "value_range"})

    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0
    c.optim.schedule.warmup_percent = 0.1
    c.evals = ConfigDict({"test": classification_eval(split="test", every_steps=470)})
    c.checkpoint.every_steps = 235
    return c
