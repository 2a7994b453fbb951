r"""Adapts a pre-trained ViT: fine-tuning as in Table 4 of arXiv 2010.11929, a linear probe, LoRA.

    vit-jax train --config=finetune:dataset=cifar10 \
        --config.init_from=CHECKPOINT --workdir=...

CHECKPOINT is one of our work directories or any published checkpoint (a file, a folder, hf:NAME,
timm:NAME, gs://...). Arguments:

model       variant of the checkpoint, such as B/16, which is then checked; "": any
dataset     one of `TASKS`
size        image size in pixels, rounded to a multiple of the patch size if `model` is given;
            position embeddings are resized
mode        full; probe: the head alone, on features that are computed once, without augmentation;
            lora: the head and low-rank adapters of attention (arXiv 2106.09685)
decay       learning-rate factor per layer, counted from the head: .65 to .85 is usual for MAE
rank        rank of LoRA's adapters
pixels      half: pixels from -1 to 1 (Google's models, SigLIP); imagenet: normalised by ImageNet's
            statistics (DeiT, DINO, MAE, torchvision). A run warns if the checkpoint's differ.
pre_logits  drop: the new head follows the body, as in the paper; keep: also keeps the tanh layer

Hardware and time: not measured. --config.optim.accum_steps=8 divides the memory of activations by
eight; --config.model.dtype=bfloat16 is faster.
Expected of mode=full, from models pre-trained on ImageNet-21k, at 384 pixels and without dropout,
for cifar10, cifar100, imagenet2012: B/16 99.02%, 92.06%, 84.53%; B/32 98.88%, 92.31%, 81.66%; L/16
99.13%, 92.91%, 84.47%; L/32 99.06%, 93.29%, 81.89% (google-research/vision_transformer). AugReg's
B/32 with the learning rates below: cifar10 98.55%, cifar100 91.35%, imagenet2012 83.27%,
oxford_iiit_pet 93.78%, oxford_flowers102 99.43% (google-research/big_vision). Nobody has measured
these with this code; benchmarks/transfer.py was measured.
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.recipes import evaluation
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models.variants import parse_variant

# Steps, warm-up steps, learning rate, training share of train (the rest: for choices), test split.
# Learning rates are big_vision's choices for AugReg's B/32. The paper chooses one for each model,
# from .003, .01, .03, .06 on ImageNet and .001, .003, .01, .03 elsewhere.
TASKS = {
    "cifar10": (10_000, 500, 0.003, "98%", "test"),
    "cifar100": (10_000, 500, 0.01, "98%", "test"),
    "oxford_iiit_pet": (500, 100, 0.003, "90%", "test"),
    "oxford_flowers102": (500, 100, 0.003, "90%", "test"),
    "imagenet2012": (20_000, 500, 0.03, "99%", "validation"),
}
# Patterns of frozen parameters: all paths except the heads' (and adapters').
MODES = {
    "full": (),
    "probe": ("(?!(head|head_dist)/).*",),
    "lora": ("(?!(head|head_dist)/|.*_lora/).*",),
}
PIXELS = {"half": {"op": "value_range"}, "imagenet": {"op": "normalize"}}
PRE_LOGITS = {"drop": "(head|head_dist|pre_logits)/.*", "keep": "(head|head_dist)/.*"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config: a short run with momentum SGD and without regularisation."""
    args = parse_args(
        arg, model="", dataset="cifar10", size=384, mode="full", decay=1.0, rank=8, pixels="half",
        pre_logits="drop")  # fmt: skip
    choices = {"dataset": TASKS, "mode": MODES, "pixels": PIXELS, "pre_logits": PRE_LOGITS}
    for key, accepted in choices.items():
        if args[key] not in accepted:
            hint = did_you_mean(args[key], accepted)
            raise ConfigError(f'Config argument {key}="{args[key]}": {hint}')
    steps, warmup, lr, share, test = TASKS[args.dataset]
    patch = parse_variant(args.model)[1] if args.model else 1
    size = max(1, round(args.size / patch)) * patch
    margin = round(size * 7 / 6)  # 448 for 384.

    c = base_config()
    c.init_skip = (PRE_LOGITS[args.pre_logits],)  # The new head is linear and initialised to zero.
    c.batch_size = 512
    c.total_steps = steps

    c.model.variant = args.model
    c.model.image_size = (size,)
    c.model.rep_size = 0 if args.pre_logits == "drop" else None

    c.data.source, c.data.name = "tfds", args.dataset
    c.data.split = f"train[:{share}]"
    # CIFAR's objects fill their images, so crops are large.
    crop = (
        ({"op": "resize_small", "size": margin}, {"op": "random_crop"})
        if args.dataset.startswith("cifar")
        else ({"op": "random_resized_crop", "area": (0.05, 1.0)},)
    )
    last = PIXELS[args.pixels]
    c.data.train_transforms = ({"op": "decode"}, *crop, {"op": "flip_lr"}, dict(last))
    c.data.eval_transforms = (*evaluation("big_vision", resize=margin, exif=True)[:-1], dict(last))
    c.data.workers = 8

    c.loss.name = "softmax_xent"
    c.optim.name = "sgd"
    c.optim.lr = lr
    c.optim.momentum, c.optim.momentum_dtype = 0.9, "bfloat16"
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 1.0
    c.optim.layer_decay = args.decay
    c.optim.freeze = MODES[args.mode]
    c.optim.schedule.name = "cosine"
    c.optim.schedule.warmup_steps = warmup
    if args.mode == "probe":
        c.cache_features = True
        c.data.train_transforms = tuple(map(dict, c.data.eval_transforms))
    if args.mode == "lora":
        c.model.lora_rank = args.rank
        c.optim.name, c.optim.lr = (
            "adamw",
            1e-3,
        )  # As in Hu et al.; adapters are trained from scratch.

    c.evals = ConfigDict(
        {
            "val": classification_eval(split=f"train[{share}:]", every_steps=steps // 20),
            "test": classification_eval(split=test),
        }
    )
    c.checkpoint.every_steps = min(1000, steps // 5)
    c.log.every_steps = 10
    return c
