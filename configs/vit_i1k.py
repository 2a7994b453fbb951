"""ImageNet-1k from scratch, as in "How to train your ViT?" (AugReg, arXiv 2106.10270).

    vit-jax train --config=vit_i1k:variant=B/16,aug=medium1 --workdir=...

Arguments: variant, any of `vit_jax.models.variants`: B/16, R26+S/32, Mixer-B/16; aug, AugReg's
level from none to strong2; reg=true adds its dropout and stochastic depth. The data are TFDS's
imagenet2012, prepared as ArrayRecord in the folder --config.data.data_dir.

Hardware and time: a pod; not measured.
Expected: nobody has measured this recipe with this code. For 300 epochs from scratch without
AugReg, B/32 reached 69.19%, B/16 74.79% and L/16 72.59% (google-research/vision_transformer,
issue 62).
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.recipes import augreg, evaluation


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config: 300 epochs with batch size 4096, 93 thousand updates."""
    args = parse_args(arg, variant="B/16", aug="medium1", reg=False)
    c = base_config()
    c.batch_size = 4096
    c.total_epochs = 300.0

    c.model.variant = args.variant
    c.model.image_size = (224,)
    c.model.dtype = "bfloat16"
    if args.reg:  # AugReg always uses both or none.
        c.model.dropout = c.model.stochastic_depth = 0.1

    # A sigmoid per class, with an initial probability of exp(-6.9), .001. (As in big_vision's Mixer
    # recipe; its vit_i1k uses the softmax: loss.name=softmax_xent with model.head_bias_init=0.)
    c.loss.name = "sigmoid_xent"
    c.model.head_bias_init = -6.9

    c.data.source, c.data.name = "tfds", "imagenet2012"
    c.data.split = "train[:99%]"  # The last 1% is for choices; validation is the test split.
    c.data.train_transforms, c.mix.mixup_alpha = augreg(args.aug)
    c.data.eval_transforms = evaluation("big_vision", resize=256, exif=True)
    c.data.workers = 16  # RandAugment needs the many cores of an accelerator's host.

    c.optim.name = "adamw"
    c.optim.lr = 1e-3
    c.optim.b1, c.optim.b2 = 0.9, 0.999
    c.optim.momentum_dtype = (
        "bfloat16"  # Saves 1/6 of the memory of parameters and optimizer state.
    )
    c.optim.weight_decay = 0.1  # Times lr: 1e-4, as in big_vision, which does not multiply.
    c.optim.clip_norm = 1.0
    c.optim.schedule.name = "cosine"
    c.optim.schedule.warmup_steps = 10_000

    c.evals = ConfigDict(
        {
            "minival": classification_eval(split="train[99%:]", every_steps=2500),
            "val": classification_eval(split="validation", every_steps=2500),
        }
    )
    return c
