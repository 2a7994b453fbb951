"""Pre-training on ImageNet-21k, as in "How to train your ViT?" (AugReg, arXiv 2106.10270).

    vit-jax train --config=vit_i21k:variant=B/16,aug=light2 --workdir=...

Arguments: variant, any of `vit_jax.models.variants`: B/16, R26+S/32, Mixer-B/16; aug, AugReg's
level from none to strong2 (big_vision: none for Ti/16, light1 for S/16, light2 for B/16, medium2
for L/16); epochs, 30 or 300 in the paper. Afterwards use `finetune.py`.

TFDS has no public ImageNet-21k. Prepare your own copy as a TFDS data set in ArrayRecord, called
imagenet21k, with one split "full" in random order and the features image and label (21,843
classes), in the folder --config.data.data_dir.

Hardware and time: a pod; not measured.
Expected: the published models of this recipe, fine-tuned on ImageNet-1k at 384 pixels: Ti/16
78.22%, S/32 79.58%, S/16 83.73%, B/32 83.59%, B/16 85.49%, L/16 85.59% (google-research/
vision_transformer). Nobody has measured it with this code.
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.recipes import augreg, evaluation


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config: `epochs` passes over 14 million images with batch size 4096."""
    args = parse_args(arg, variant="B/16", aug="light2", epochs=300.0)
    c = base_config()
    c.batch_size = 4096
    c.total_epochs = args.epochs

    c.model.variant = args.variant
    c.model.image_size = (224,)
    c.model.dtype = "bfloat16"

    # ImageNet-21k's classes overlap (a dog is an animal): a sigmoid per class, with an initial
    # probability near 0.
    c.loss.name = "sigmoid_xent"
    c.model.head_bias_init = -10.0

    c.data.source, c.data.name = "tfds", "imagenet21k"
    c.data.split = "full[51200:]"  # The split of big_vision.
    c.data.train_transforms, c.mix.mixup_alpha = augreg(args.aug)
    c.data.eval_transforms = evaluation("big_vision", resize=256, exif=True)
    c.data.workers = 16  # RandAugment needs the many cores of an accelerator's host.

    c.optim.name = "adamw"
    c.optim.lr = 1e-3
    c.optim.momentum_dtype = "bfloat16"
    c.optim.weight_decay = 0.1  # Times lr: 1e-4, as in big_vision. AugReg also uses .03.
    c.optim.clip_norm = 1.0
    c.optim.schedule.name = "cosine"
    c.optim.schedule.warmup_steps = 10_000

    c.evals = ConfigDict(
        {
            "test": classification_eval(split="full[:25600]"),
            "val": classification_eval(split="full[25600:51200]", every_steps=5000),
        }
    )
    return c
