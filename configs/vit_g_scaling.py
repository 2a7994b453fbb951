r"""One point of "Scaling Vision Transformers" (Zhai et al. 2021, arXiv 2106.04560).

    vit-jax train --config=vit_g_scaling:variant=g/14,steps=120000 \
        --workdir=...

Arguments: variant (the paper's are s/28, s/16, S/32, Ti/16, B/32, S/16, B/28, B/16, L/16, g/14 and
G/14) and steps, updates of 4096 images (for g/14 120 thousand to 6.3 million in the paper).

The paper trained on JFT-3B, which is not public. This config uses ImageNet-21k: see `vit_i21k.py`
for how to prepare it, or choose another data set with --config.data.name and its splits.

Hardware and time: a pod; not measured. The paper's g/14 took 325 TPUv3 core-days for 120 thousand
steps (digitised from its figure).
Expected: on JFT-3B, 10-shot ImageNet accuracy of 76.4% after these steps (the paper's table).
Nobody has measured it on ImageNet-21k, or with this code.
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.recipes import augreg, evaluation


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of a long run that does not depend on its length before the cooldown."""
    args = parse_args(arg, variant="g/14", steps=120_000)
    c = base_config()
    c.batch_size = 4096
    c.total_steps = args.steps

    c.model.variant = args.variant
    c.model.image_size = (224,)
    c.model.pool = "map"  # No class token: TPUs would pad 257 tokens, but not 256.
    c.model.dtype = "bfloat16"

    c.loss.name = "sigmoid_xent"
    c.model.head_bias_init = -10.0

    c.data.source, c.data.name = "tfds", "imagenet21k"
    c.data.split = "full[51200:]"  # The split of big_vision.
    # With this many images the paper uses only Inception crops and flips.
    c.data.train_transforms, c.mix.mixup_alpha = augreg("none")
    c.data.eval_transforms = evaluation("big_vision", resize=256, exif=True)
    c.data.workers = 16

    # Little memory for its state: a factored second moment, a first moment in bfloat16.
    c.optim.name = "adafactor"
    c.optim.lr = 8e-4
    c.optim.momentum, c.optim.momentum_dtype = 0.9, "bfloat16"
    c.optim.b2 = 0.999  # Upper limit of Adafactor's decay; training at scale is unstable beyond.
    # Stronger on the head (3.0) than on the body (.03), which improves few-shot transfer.
    c.optim.weight_decay = 0.03
    c.optim.weight_decay_rules = (("head/kernel", 100.0), (".*/kernel", 1.0))
    c.optim.clip_norm = 1.0
    # The cooldown can start from any checkpoint, so one run provides every duration.
    c.optim.schedule.name = "rsqrt"
    c.optim.schedule.timescale_steps = 10_000
    c.optim.schedule.warmup_steps = 10_000
    c.optim.schedule.cooldown_steps = 50_000 if args.steps > 60_000 else 10_000

    # A billion parameters are sharded over eight devices, the batch over all devices.
    c.mesh.data, c.mesh.fsdp = -1, 8

    c.evals = ConfigDict(
        {
            "test": classification_eval(split="full[:25600]"),
            "val": classification_eval(split="full[25600:51200]", every_steps=5000),
        }
    )
    c.checkpoint.keep_every_steps = 20_000  # Starting points for cooldowns.
    return c
