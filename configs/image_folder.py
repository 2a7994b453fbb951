"""A ViT from scratch on a folder of your own images.

    vit-jax train --config=image_folder:root=IMAGES --workdir=...

The folder is either IMAGES/CLASS/*.jpg (or png, webp, ...), of which a fifth of each class
becomes the test split, or IMAGES/train/CLASS/*.jpg with val (valid, validation), test or both
beside it. Then `vit-jax predict --checkpoint=WORKDIR IMAGE_OR_FOLDER`, or
`vit-jax convert WORKDIR NEW --to=hf`.

Arguments: root; size of the images in pixels; epochs, more for fewer images; variant, e.g. S/16,
instead of the small model that a laptop trains in minutes. To start from a pre-trained model, which
needs far fewer images: `finetune.py`.

Hardware and time: 2 cores of an Intel Xeon with other work beside it: 315 seconds for 240 training
images, 79 img/s (measured, one run).
Expected: it depends on the images. Pieces of three photographs, in eight formats (python -m
tests.images IMAGES 100): 58 of 60 test images right (measured, one run; an easy task).
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.layout import find_data


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config: a small model, with augmentation and regularisation for few images."""
    args = parse_args(arg, root="", variant="", size=64, epochs=100.0)
    c = base_config()
    c.batch_size = 32  # A small folder gives few updates per epoch.
    c.total_epochs = args.epochs

    c.model.variant = args.variant or "Ti/8"
    if not args.variant:  # Few, narrow blocks learn within hundreds of updates.
        c.model.update({"width": 96, "depth": 4, "mlp_dim": 384, "num_heads": 4})
    c.model.image_size = (args.size,)
    c.model.pool = "gap"
    c.model.posemb = "sincos2d"  # Fixed positions need not be learned from few images.

    layout = find_data(c.data, args.root)
    c.data.split = layout.train
    c.data.train_transforms = (
        {"op": "decode"},
        {"op": "random_resized_crop", "area": (0.3, 1.0)},
        {"op": "flip_lr"},  # Leave it out where left and right matter, as in writing.
        {"op": "color_jitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
        {"op": "value_range"},
    )
    # The central square of the image, as the image processors of transformers compute it.
    c.data.eval_transforms = (
        {"op": "decode"},
        {"op": "resize_small", "long_side": "down"},
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

    c.evals = ConfigDict(
        {
            name: classification_eval(split=split, every_percent=0.1)
            for name, split in layout.evals.items()
        }
    )
    c.checkpoint.every_steps, c.checkpoint.every_percent = None, 0.25
    c.log.every_steps = 10
    return c
