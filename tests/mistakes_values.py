"""More of `tests.mistakes_table`: values that make no sense, or not together."""

from tests.mistakes_table import SCHEDULE

MODEL = {
    "unknown size": (
        "--config.model.variant=Q/16",
        'model.variant is "Q/16": there is no size "Q". Accepted: mu, s, Ti, S, M, B',
    ),
    "size in small letters": ("--config.model.variant=ti/2", 'Did you mean "Ti"?'),
    "size without patch": (
        "--config.model.variant=Ti",
        'model.variant is "Ti": write a size, a slash and a patch size, such as "Ti/16"',
    ),
    "no size and no checkpoint": (
        "--config.model.variant=",
        'model.variant is "", which stands for that of the checkpoint to start from: give that as',
    ),
    "negative rank of adapters": (
        "--config.model.lora_rank=-1",
        "model.lora_rank is -1: it must be from 0 to 4,096.",
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
    "side that is text": ("--config.model.image_size=big", "model.image_size is ('big',): write"),
    "image as large as a house": (
        "--config.model.image_size=1000000",
        "model.image_size is (1000000, 1000000): each number must be from 1 to 16,384.",
    ),
    "unknown pooling": (
        "--config.model.pool=cls",
        "Accepted: token, gap, map, map_patches, token_gap.",
    ),
    "unknown position embedding": (
        "--config.model.posemb=sincos",
        'model.posemb is "sincos". Did you mean "sincos2d"?',
    ),
    "unknown dtype": ("--config.model.dtype=float16", 'Did you mean "bfloat16"?'),
    "unknown attention": ("--config.model.attention=flash", "Accepted: auto, xla, cudnn."),
    "attention that cannot run here": (
        "--config.model.attention=cudnn",
        'model.attention is "cudnn", which cannot run here: the platform is cpu',
        'Take "xla", or "auto"',
    ),
    "unknown remat": ("--config.model.remat=all", "Accepted: none, dots, dots_no_batch, full."),
    "unknown GELU": ("--config.model.gelu=exact", "Accepted: tanh, erf."),
    "width not divisible by heads": (
        "--config.model.width=65",
        "model.width 65 is not a multiple of model.num_heads 4.",
    ),
    "width not divisible by 4": (
        "--config.model.width=66 --config.model.num_heads=2",
        "sincos2d needs a width that is a multiple of 4, not 66.",
    ),
    "no blocks": ("--config.model.depth=0", "model.depth is 0: it must be from 1 to 1,024."),
    "too many blocks": ("--config.model.depth=1200000", "it must be from 1 to 1,024."),
    "negative hidden layer": ("--config.model.rep_size=-5", "model.rep_size is -5"),
    "negative epsilon": ("--config.model.ln_eps=-1", "model.ln_eps is -1.0: it must be above 0."),
    "dropout of everything": ("--config.model.dropout=1", "model.dropout is 1.0: it must be in"),
    "negative dropout": ("--config.model.dropout=-0.1", "it must be in [0, 1)"),
    "too much stochastic depth": (
        "--config.model.stochastic_depth=1.5",
        "model.stochastic_depth is 1.5: it must be in [0, 1).",
    ),
    "too few classes": (
        "--config.model.num_classes=5",
        "model.num_classes is 5, but digits has 10 classes.",
    ),
    "unknown depth of a ResNet": ("--config.model.variant=BiT-R51x1", 'Did you mean "BiT-R50x1"?'),
    "unknown hybrid": ("--config.model.variant=R26+S/16", 'Did you mean "R26+S/32"?'),
    "heads of a ResNet": (
        "--config.model.variant=BiT-R50x1",
        "a ResNet has no use for it: leave it at None.",
    ),
    "ResNet's padding of a ViT": (
        "--config.model.resnet.padding=same",
        "model.resnet.padding is 'same', but a Vision Transformer has no use for it",
    ),
    "misspelt key of a ResNet": ("--config.model.resnet.unit=3", 'Did you mean "units"'),
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
    "mesh of fewer devices": ("--config.mesh.data=4", "the sizes must multiply to 8"),
    "two sizes left open": (
        "--config.mesh.fsdp=-1",
        "mesh.data=-1, mesh.fsdp=-1, mesh.tensor=1: sizes are positive, and one of them may be -1",
    ),
    "size of zero": ("--config.mesh.tensor=0", "sizes are positive"),
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
    "seed of more than 32 bits": ("--config.seed=4294967296", "it must be from 0 to"),
    "number of more than 64 bits": (
        "--config.seed=18446744073709551616",
        "seed is 1.845e+19: that is larger than a whole number may be.",
    ),
    "NaN": ("--config.optim.lr=nan", "optim.lr is nan: it must be finite."),
    "infinity": ("--config.total_epochs=inf", "total_epochs is inf: it must be finite."),
    "empty batch": ("--config.batch_size=0", "batch_size is 0: it must be from 1 to 16,777,216."),
    "no microbatch": ("--config.optim.accum_steps=0", "optim.accum_steps is 0"),
    "patience of nothing": ("--config.timeout_seconds=0", "timeout_seconds is 0: it must be at"),
    "smoothing of everything": (
        "--config.loss.label_smoothing=1",
        "loss.label_smoothing is 1.0: it must be in [0, 1).",
    ),
    "negative mixup": ("--config.mix.mixup_alpha=-1", "mix.mixup_alpha is -1.0: it must be at"),
    "unknown loss": ("--config.loss.name=softmax", 'Did you mean "softmax_xent"?'),
    "unknown optimizer": ("--config.optim.name=adam", 'Did you mean "adamw"?'),
    "negative learning rate": ("--config.optim.lr=-1", "optim.lr=-1.0 must not be negative."),
    "decay of 1": ("--config.optim.b1=1", "optim.b1=1.0 must be in [0, 1)."),
    "epsilon of 0": ("--config.optim.eps=0", "optim.eps=0.0 must be above 0."),
    "unknown dtype of the momentum": ("--config.optim.momentum_dtype=half", "Accepted: float32"),
    "layer decay of 0": ("--config.optim.layer_decay=0", "must be in (0, 1]; 1 turns it off."),
    "average that never moves": (
        "--config.optim.ema_decay=1",
        "optim.ema_decay is 1.0: it must be in [0, 1).",
    ),
    "freezing what is not there": (
        "--config.optim.freeze=encodr/.*",
        "optim.freeze: 'encodr/.*' matches the whole path of no parameter. The nearest of",
        "encoder/norm/bias",
    ),
    "freezing by half a pattern": (
        "--config.optim.freeze=head/(",
        "optim.freeze: 'head/(' is not a regular expression: missing )",
    ),
    "freezing everything": ("--config.optim.freeze=.*", "nothing is left to train"),
    "a million loader processes": (
        "--config.data.workers=1000000",
        "data.workers is 1000000: it must be from 0 to 1,024.",
    ),
    "no reading threads": ("--config.data.threads=0", "data.threads is 0: it must be from 1"),
    "unknown policy for bad data": (
        "--config.data.on_bad=ignore",
        'data.on_bad is "ignore". Accepted: error, skip.',
    ),
    "saving never": ("--config.checkpoint.every_steps=0", "checkpoint.every_steps is 0"),
    "keeping nothing": ("--config.checkpoint.keep_last=0", "checkpoint.keep_last is 0"),
    "unknown best metric": (
        "--config.checkpoint.best_metric=test/acc",
        'checkpoint.best_metric is "test/acc", which the run does not measure. Did you mean',
    ),
    "best metric without evaluations": (
        "--config.checkpoint.best_metric=top1 --config.evals={}",
        "It has no config.evals.",
    ),
    "wrong direction of the best metric": (
        "--config.checkpoint.best_mode=maximum",
        'Did you mean "max"?',
    ),
    "best metric that no saved step has": (
        "--config.checkpoint.best_metric=test/top1 --config.checkpoint.every_steps=30 "
        "--config.evals.test.every_steps=40 --config.total_steps=100",
        "no step before the last, 100, is both saved (checkpoint.every_steps=30) and evaluated",
        "evals.test.every_steps=40",
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
    "one step to profile": ("--config.log.profile_steps=3", "log.profile_steps is (3,): give"),
    "profile backwards": ("--config.log.profile_steps=5,2", "give (first, last) with 0 <= first"),
    "compilation cache that is a file": (
        "--config.log.compilation_cache=notes.txt",
        "log.compilation_cache=notes.txt cannot be used: File exists.",
    ),
    "compilation cache in a bad place": (
        "--config.log.compilation_cache=/proc/cache",
        "log.compilation_cache=/proc/cache cannot be used: No such file or directory.",
    ),
}

LENGTHS = {
    "no length": ("--config.total_epochs=None", "The length of the run is not set: give one of"),
    "two lengths": (
        "--config.total_steps=5 --config.total_epochs=2",
        "total_steps and total_epochs are set: keep one, and let the others be None.",
    ),
    "no steps": ("--config.total_steps=0", "The run has 0 steps"),
    "negative length": ("--config.total_steps=-5", "total_steps=-5 must not be negative."),
    "length beyond 32 bits": ("--config.total_examples=1e300", "must come to 1 to 2,147,483,647"),
    "length beyond all numbers": ("--config.total_epochs=1e308", "must come to 1 to 2,147,483,6"),
    "unknown schedule": (SCHEDULE + "name=cos", 'Did you mean "cosine"?'),
    "warm-up longer than the run": (
        "--config.total_steps=20 " + SCHEDULE + "warmup_steps=50",
        "50 steps of warm-up and 0 of cooldown do not fit into a run of 20 steps: shorten",
    ),
    "warm-up and cooldown longer than the run": (
        SCHEDULE + "warmup_percent=0.6 " + SCHEDULE + "cooldown_percent=0.6",
        "811 steps of warm-up and 811 of cooldown do not fit into a run of 1352 steps",
    ),
    "cooldown longer than the run": (
        f"--config.total_steps=20 {SCHEDULE}warmup_percent=None {SCHEDULE}cooldown_steps=25",
        "0 steps of warm-up and 25 of cooldown do not fit into a run of 20 steps",
    ),
    "warm-up in two units": (
        SCHEDULE + "warmup_steps=1 " + SCHEDULE + "warmup_epochs=1",
        "warmup_steps and warmup_epochs are set",
    ),
    "ten times the run": (
        SCHEDULE + "warmup_percent=10",
        "warmup_percent=10.0 must be a share of the run: 0.1 is a tenth of it.",
    ),
    "negative warm-up": (SCHEDULE + "warmup_steps=-3", "warmup_steps=-3 must not be negative."),
    "end below 0": (SCHEDULE + "end=-1", "optim.schedule.end=-1.0 must be a share of lr"),
    "rsqrt without timescale": (
        SCHEDULE + "name=rsqrt",
        "The rsqrt schedule needs a timescale above 0: set one of optim.schedule.timescale_steps",
    ),
    "timescale without rsqrt": (
        SCHEDULE + "timescale_steps=5",
        "optim.schedule.timescale_* is set, which cosine does not have: set it to None, or",
    ),
}
