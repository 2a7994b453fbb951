r"""Fine-tuning a pre-trained ViT, as in Table 4 of the ViT paper (arXiv 2010.11929).

    python -m vit_jax.train --config=configs/finetune.py:model=B/16,dataset=cifar10 \
        --config.init_from=PRETRAINING_WORKDIR --workdir=...

Arguments: model, the variant that was pre-trained: B/16, R50+B/16, BiT-R50x1; dataset, one of
`TASKS`; size of the images, of which the nearest multiple of the patch size is taken. The model
must be the pre-trained one but for its head: `--config.model.pool=gap`,
`--config.model.posemb=sincos2d`, ... where that had them. Its learned position embeddings belong to
its number of patches: take its size, or train it at this one.

Hardware and time: not measured. --config.optim.accum_steps=8 fits it into an eighth of the memory;
--config.model.dtype=bfloat16 makes it faster.
Expected, from models pre-trained on ImageNet-21k, at 384 pixels and without dropout, for cifar10,
cifar100, imagenet2012: B/16 99.02%, 92.06%, 84.53%; B/32 98.88%, 92.31%, 81.66%; L/16 99.13%,
92.91%, 84.47%; L/32 99.06%, 93.29%, 81.89% (google-research/vision_transformer). AugReg's B/32 with
the learning rates below: cifar10 98.55%, cifar100 91.35%, imagenet2012 83.27%, oxford_iiit_pet
93.78%, oxford_flowers102 99.43% (google-research/big_vision). Nobody has measured it with this
code.
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.recipes import evaluation
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models.variants import parse_variant

# Steps, warm-up, learning rate, share of train that is trained on (choose on the rest), test split.
# Learning rates are big_vision's choices for AugReg's B/32. The paper chooses for each model: from
# .003, .01, .03, .06 on ImageNet and .001, .003, .01, .03 elsewhere.
TASKS = {
    "cifar10": (10_000, 500, 0.003, "98%", "test"),
    "cifar100": (10_000, 500, 0.01, "98%", "test"),
    "oxford_iiit_pet": (500, 100, 0.003, "90%", "test"),
    "oxford_flowers102": (500, 100, 0.003, "90%", "test"),
    "imagenet2012": (20_000, 500, 0.03, "99%", "validation"),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """Short, with plain momentum and no regularisation: the features are already there."""
    args = parse_args(arg, model="B/16", dataset="cifar10", size=384)
    if args.dataset not in TASKS:
        raise ConfigError(
            f'Config argument dataset="{args.dataset}": {did_you_mean(args.dataset, TASKS)}'
        )
    steps, warmup, lr, share, test = TASKS[args.dataset]
    _, patch = parse_variant(args.model)
    size = max(1, round(args.size / patch)) * patch
    margin = round(size * 7 / 6)  # 448 for 384.

    c = base_config()
    c.init_skip = ("(head|pre_logits)/.*",)  # The new head is linear, and starts at zero.
    c.batch_size = 512
    c.total_steps = steps

    c.model.variant = args.model
    c.model.image_size = (size,)

    c.data.source, c.data.name = "tfds", args.dataset
    c.data.split = f"train[:{share}]"
    # CIFAR's objects fill their images, and are cut little.
    crop = (
        ({"op": "resize_small", "size": margin}, {"op": "random_crop"})
        if args.dataset.startswith("cifar")
        else ({"op": "random_resized_crop", "area": (0.05, 1.0)},)
    )
    c.data.train_transforms = ({"op": "decode"}, *crop, {"op": "flip_lr"}, {"op": "value_range"})
    c.data.eval_transforms = evaluation("big_vision", resize=margin, exif=True)
    c.data.workers = 8

    c.loss.name = "softmax_xent"
    c.optim.name = "sgd"
    c.optim.lr = lr
    c.optim.momentum, c.optim.momentum_dtype = 0.9, "bfloat16"
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 1.0
    c.optim.schedule.name = "cosine"
    c.optim.schedule.warmup_steps = warmup

    c.evals = ConfigDict(
        {
            "val": classification_eval(split=f"train[{share}:]", every_steps=steps // 20),
            "test": classification_eval(split=test),
        }
    )
    c.checkpoint.every_steps = min(1000, steps // 5)
    c.log.every_steps = 10
    return c
