"""More of `tests.mistakes_table`: values that are invalid, alone or together."""

from tests.mistakes_table import SCHEDULE

MODEL = {
    "unknown size": (
        "--config.model.variant=Q/16",
        'model.variant is "Q/16": there is no size "Q". Accepted: mu, s, Ti, S, M, B',
    ),
    "size without patch": (
        "--config.model.variant=Ti",
        'model.variant is "Ti": write a size, a slash and a patch size, such as "Ti/16"',
    ),
    "no size and no checkpoint": (
        "--config.model.variant=",
        'model.variant is "", which stands for that of the checkpoint to start from: give that as',
    ),
    "image not divisible by the patch": (
        "--config.model.variant=Ti/3",
        "model.image_size has the height 8, which is not a multiple of the patch size 3",
        "The nearest that are: 6 or 9.",
    ),
    "three sides": (
        "--config.model.image_size=8,8,8",
        "model.image_size is (8, 8, 8): write (side,) or (height, width), whole pixels.",
    ),
    "image as large as a house": (
        "--config.model.image_size=1000000",
        "model.image_size is (1000000, 1000000): each number must be from 1 to 16,384.",
    ),
    "unknown position embedding": (
        "--config.model.posemb=sincos",
        'model.posemb is "sincos". Did you mean "sincos2d"?',
    ),
    "attention that cannot run here": (
        "--config.model.attention=cudnn",
        'model.attention is "cudnn", which cannot run here: the platform is cpu',
        'Take "xla", or "auto"',
    ),
    "width not divisible by heads": (
        "--config.model.width=65",
        "model.width 65 is not a multiple of model.num_heads 4.",
    ),
    "width not divisible by 4": (
        "--config.model.width=66 --config.model.num_heads=2",
        "sincos2d needs a width that is a multiple of 4, not 66.",
    ),
    "no blocks": ("--config.model.depth=0", "model.depth is 0: it must be from 1 to 1,024."),
    "dropout of everything": ("--config.model.dropout=1", "model.dropout is 1.0: it must be in"),
    "too few classes": (
        "--config.model.num_classes=5",
        "model.num_classes is 5, but digits has 10 classes.",
    ),
    "unknown depth of a ResNet": ("--config.model.variant=BiT-R51x1", 'Did you mean "BiT-R50x1"?'),
    "heads of a ResNet": (
        "--config.model.variant=BiT-R50x1",
        "a ResNet has no use for it: leave it at None.",
    ),
    "ResNet's padding of a ViT": (
        "--config.model.resnet.padding=same",
        "model.resnet.padding is 'same', but a Vision Transformer has no use for it",
    ),
    "channels that the transforms do not make": (
        "--config.model.channels=3",
        "data.eval_transforms make images of height, width, channels (8, 8, 1)",
        "the model takes (8, 8, 3)",
    ),
}

# With eight devices.
MESH = {
    "mesh that does not divide the devices": (
        "--config.mesh.data=3",
        "mesh.data=3, mesh.fsdp=1, mesh.tensor=1 does not fit the 8 devices there are",
    ),
    "batch not divisible by the mesh": (
        "--config.batch_size=100",
        "it must be a multiple of 8, such as 96 or 104.",
    ),
    "batch not divisible by accumulation": (
        "--config.optim.accum_steps=3",
        "does not split into optim.accum_steps=3 microbatches over 8 devices",
        "it must be a multiple of 24, such as 120 or 144.",
    ),
    "layer that the mesh does not divide": (
        "--config.mesh.data=1 --config.mesh.tensor=8 --config.model.width=516 "
        "--config.model.num_heads=4 --config.model.mlp_dim=1028",
        "does not split over mesh.tensor=8: choose a divisor of",
    ),
}

NUMBERS = {
    "negative seed": ("--config.seed=-1", "seed is -1: it must be from 0 to 4,294,967,295."),
    "number of more than 64 bits": (
        "--config.seed=18446744073709551616",
        "seed is 1.845e+19: that is larger than a whole number may be.",
    ),
    "NaN": ("--config.optim.lr=nan", "optim.lr is nan: it must be finite."),
    "infinity": ("--config.total_epochs=inf", "total_epochs is inf: it must be finite."),
    "empty batch": ("--config.batch_size=0", "batch_size is 0: it must be from 1 to 16,777,216."),
    "smoothing of everything": (
        "--config.loss.label_smoothing=1",
        "loss.label_smoothing is 1.0: it must be in [0, 1).",
    ),
    "negative learning rate": ("--config.optim.lr=-1", "optim.lr=-1.0 must not be negative."),
    "freezing by half a pattern": (
        "--config.optim.freeze=head/(",
        "optim.freeze: 'head/(' is not a regular expression: missing )",
    ),
    "a million loader processes": (
        "--config.data.workers=1000000",
        "data.workers is 1000000: it must be from 0 to 1,024.",
    ),
    "unknown policy for bad data": (
        "--config.data.on_bad=ignore",
        'data.on_bad is "ignore". Accepted: error, skip.',
    ),
    "saving never": ("--config.checkpoint.every_steps=0", "checkpoint.every_steps is 0"),
    "best metric without evaluations": (
        "--config.checkpoint.best_metric=top1 --config.evals={}",
        "It has no config.evals.",
    ),
    "best metric measured only at the end": (
        "--config.checkpoint.best_metric=test/top1 --config.evals.test.every_steps=0",
        "no step before the last, 1,352, is both saved",
    ),
    "evaluating at negative steps": (
        "--config.evals.test.every_steps=-3",
        "evals.test.every_steps is -3: it must be positive, or 0",
    ),
    "unknown evaluation type": (
        "--config.evals.test.type=knn",
        'config.evals.test.type is "knn". Accepted: classification.',
    ),
    "profile backwards": ("--config.log.profile_steps=5,2", "give (first, last) with 0 <= first"),
    "compilation cache that is a file": (
        "--config.log.compilation_cache=notes.txt",
        "log.compilation_cache=notes.txt cannot be used: File exists.",
    ),
}

LENGTHS = {
    "length beyond 32 bits": ("--config.total_examples=1e300", "must come to 1 to 2,147,483,647"),
    "warm-up and cooldown longer than the run": (
        SCHEDULE + "warmup_percent=0.6 " + SCHEDULE + "cooldown_percent=0.6",
        "811 steps of warm-up and 811 of cooldown do not fit into a run of 1352 steps",
    ),
    "end below 0": (SCHEDULE + "end=-1", "optim.schedule.end=-1.0 must be a share of lr"),
    "timescale without rsqrt": (
        SCHEDULE + "timescale_steps=5",
        "optim.schedule.timescale_* is set, which cosine does not have: set it to None, or",
    ),
}
