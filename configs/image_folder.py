"""A ViT from scratch on a folder of your own images.

    python -m vit_jax.train --config=configs/image_folder.py:root=PICTURES --workdir=...

The folder is PICTURES/CLASS/*.jpg (or png, webp, bmp), of which a tenth is kept for the test, or
PICTURES/train/CLASS/*.jpg and PICTURES/test/CLASS/*.jpg; where the second is called val, add
--config.evals.test.split=val. Then `python -m vit_jax.predict --checkpoint=WORKDIR IMAGES`.

Arguments: root; size of the images in pixels; epochs, of which few images want many; variant,
e.g. S/16, in place of the small model that a laptop trains in minutes. To start from a model that
has seen more images, take `finetune.py`'s optimizer and --config.init_from.

Hardware and time: 2 cores of an AMD EPYC: 78 seconds for 267 images, 366 img/s (measured).
Expected: it depends on the images. Pieces of three photographs, in eight formats (python -m
tests.images PICTURES 100): all of 33 test images right (measured; an easy task).
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args


def get_config(arg: str | None = None) -> ConfigDict:
    """A small model, and what keeps it from learning a few images by heart."""
    args = parse_args(arg, root="", variant="", size=64, epochs=100.0)
    c = base_config()
    c.batch_size = 32  # A small folder makes few updates an epoch as it is.
    c.total_epochs = args.epochs

    c.model.variant = args.variant or "Ti/8"
    if not args.variant:  # Few and narrow blocks: they learn something within hundreds of updates.
        c.model.update({"width": 96, "depth": 4, "mlp_dim": 384, "num_heads": 4})
    c.model.image_size = (args.size,)
    c.model.pool = "gap"
    c.model.posemb = "sincos2d"  # Where patches are need not be learned from few images.

    c.data.source, c.data.data_dir = "image_folder", args.root
    c.data.train_transforms = (
        {"op": "decode"},
        {"op": "random_resized_crop", "area": (0.3, 1.0)},
        {"op": "flip_lr"},  # Leave it out where left and right matter, as in writing.
        {"op": "color_jitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
        {"op": "value_range"},
    )
    # The middle of the image, as high or wide as its shorter side.
    c.data.eval_transforms = (
        {"op": "decode"},
        {"op": "resize_small"},
        {"op": "center_crop"},
        {"op": "value_range"},
    )

    c.loss.label_smoothing = 0.1
    c.optim.name = "adamw"
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0
    c.optim.schedule.name = "cosine"
    c.optim.schedule.warmup_percent = 0.1

    c.evals = ConfigDict({"test": classification_eval(split="test", every_steps=200)})
    c.checkpoint.every_steps = 200
    c.log.every_steps = 10
    return c
