"""Mistakes of users. A row is a name, what is typed, and texts that the message must have.

Everything is typed in a folder that holds (see `tests.mistakes_folder`)

    run, other              finished runs on digits, of different models
    nothing_saved           a work directory without checkpoints
    damaged                 one whose checkpoint is cut off
    newer                   one whose config.json has a key of a later release
    images                cat/*.png, dog/*.png
    empty                   nothing
    notes.txt, bare.py      no image and no config
    old.jsonl, old.npz      files of an earlier prediction
    settings.json           no config

Of `train`, `--config=configs/quickstart.py` and a new `--workdir` are given where a row has none;
of the rows RUNS `--config=small.py`, that of `run`.
"""

SCHEDULE = "--config.optim.schedule."
FOLDER = "--config.data.source=image_folder --config.data.data_dir="

# ------------------------------------------------------------------------------- what is typed

COMMAND_LINE = {
    "unknown key": (
        "--config.batchsize=8",
        '--config.batchsize=8: there is no config key "batchsize". Did you mean "batch_size"?',
    ),
    "unknown key of a transform": (
        "--config.data.train_transforms[0].opp=pad",
        "there is no \"opp\" in {'op': 'decode', 'channels': 1}",
    ),
    "index beyond the end": (
        "--config.data.train_transforms[9].size=1",
        "there is no [9]: indices range from [0] to [2]",
    ),
    "text for a number": ("--config.optim.lr=fast", "write a number, such as 0.002."),
    "value forgotten": ("--config.optim.lr", "--config.optim.lr=--workdir=", "write a number"),
    "flag misspelt": ("--wrkdir=x", 'There is no flag --wrkdir. Did you mean "--workdir"?'),
    "stray words": (
        "to the end",
        "Unexpected argument 'to the end': flags begin with --. See --help.",
    ),
    "no --config": ("NO_CONFIG", "--config=... is missing. See --help."),
    "--config after its overrides": (
        "--config.optim.lr=1 --config=QUICKSTART",
        "Found --config.optim.lr=1 in argv before a value for --config",
    ),
    "config misspelt": (
        "--config=CONFIGS/quickstar.py",
        'quickstar.py: there is no such file. Did you mean "',
        'configs/quickstart.py"? Accepted: ',
    ),
    "config that is JSON": (
        "--config=settings.json",
        "--config=settings.json: a config is a name or a Python file, FILE.py.",
    ),
    "config below a folder with a colon": (
        "--config=/a:b/x.py",
        "--config=/a: there is no such file (a colon begins",
    ),
    "config's argument with a comma": (
        "--config=CONFIGS/image_folder.py:root=/x/a,b",
        "/x/a,b cannot be listed: No such file or directory.",
    ),
}

# ---------------------------------------------------------- lines at the end of a config's file

CONFIG_FILE = {
    "key misspelt": (
        "c.optim.lrr = 1",
        'line 6: there is no config key "lrr". Did you mean "lr"?',
    ),
    "syntax error": ("c =", "line 6: SyntaxError: invalid syntax"),
    "error in the file": ("1 / 0", "config.py, line 6: ZeroDivisionError: division by zero"),
    "nothing returned": ("return", "get_config() returned NoneType: it must return a changed"),
    "section removed": ("c.unlock(); del c.optim", 'The config lacks the key "optim"'),
    "key unset": ("c.optim.lr = None", "optim.lr is None: it must be a number."),
    "evaluation lacks a key": (
        "c.evals = {'a': {'type': 'classification', 'split': 'test'}}",
        'The config lacks the key "evals.a.every_',
    ),
    "evaluation with a strange name": (
        "c.evals = {'a/b': c.evals.test}",
        "evals.a/b: a name has letters, digits and . _ - only.",
    ),
    "evaluation called train": (
        "c.evals = {'train': c.evals.test}",
        "evals.train: its metrics would have the names of the training metrics",
    ),
    # Transforms.
    "no value_range": (
        "c.data.train_transforms = c.data.train_transforms[:2]",
        "_transforms end with images that are uint8, but a model takes float32, normalised: add",
        "add value_range or normalize",
    ),
    "size of a million": (
        "c.data.train_transforms[1]['size'] = 10**6",
        "size=1000000 is more than 89,478,485 pixels",
    ),
    "transforms of another size": (
        "c.data.train_transforms = (*c.data.train_transforms[:1], {'op': 'resize', 'size': 9}, "
        "*c.data.train_transforms[2:])",
        "make images of height, width, channels (9, 9, 1), but the model takes (8, 8, 1)",
    ),
    "crop that is larger than the image": (
        "c.data.eval_transforms = (*c.data.eval_transforms[:1], {'op': 'center_crop', 'size': 9}, "
        "{'op': 'value_range'})",
        "center_crop needs 9x9 pixels (height x width), but the image has 8x8",
    ),
    # Rules that a command line can hardly say.
    "rule that is no pair": (
        "c.optim.lr_rules = ('.*',)",
        "optim.lr_rules: '.*' is not a rule: write pairs (pattern, multiplier)",
    ),
}

# ------------------------------------------------------------- values, alone and together

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
        'does not state (model.variant=""), but init_from is empty: pass --config.init_from',
    ),
    "image not divisible by the patch": (
        "--config.model.variant=Ti/3",
        "model.image_size has the height 8, which is not a multiple of the patch size 3",
        "The nearest multiples: 6 or 9.",
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
    "too few classes": (
        "--config.model.num_classes=5",
        "model.num_classes is 5, but digits has 10 classes.",
    ),
    "heads of a ResNet": (
        "--config.model.variant=BiT-R50x1",
        "a ResNet does not use it: leave it at None.",
    ),
    "ResNet's padding of a ViT": (
        "--config.model.resnet.padding=same",
        "model.resnet.padding is 'same', but a Vision Transformer does not use it",
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
        "mesh.data=3, mesh.fsdp=1, mesh.tensor=1 does not fit 8 devices",
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
    "NaN": ("--config.optim.lr=nan", "optim.lr is nan: it must be finite."),
    "empty batch": ("--config.batch_size=0", "batch_size is 0: it must be from 1 to 16,777,216."),
    "negative learning rate": ("--config.optim.lr=-1", "optim.lr=-1.0 must not be negative."),
    "a million loader processes": (
        "--config.data.workers=1000000",
        "data.workers is 1000000: it must be from -1 to 1,024.",
    ),
    "a cache that is no folder": (
        "--config.data.cache=disk",
        'data.cache is "disk". Accepted: "" for no cache, ram, or a folder, which is written with '
        "a slash: ./disk.",
    ),
    "unknown policy for bad data": (
        "--config.data.on_bad=ignore",
        'data.on_bad is "ignore". Accepted: error, skip.',
    ),
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
    "profile backwards": ("--config.log.profile_steps=5,2", "give (first, last) with 0 <= first"),
    "compilation cache that is a file": (
        "--config.log.compilation_cache=notes.txt",
        "log.compilation_cache=notes.txt cannot be used: File exists.",
    ),
}

LENGTHS = {
    "length beyond 32 bits": ("--config.total_examples=1e300", "must amount to 1 to 2,147,483,647"),
    "warm-up and cooldown longer than the run": (
        SCHEDULE + "warmup_percent=0.6 " + SCHEDULE + "cooldown_percent=0.6",
        "811 steps of warm-up and 811 of cooldown do not fit into a run of 1352 steps",
    ),
    "timescale without rsqrt": (
        SCHEDULE + "timescale_steps=5",
        "optim.schedule.timescale_* is set, but cosine does not use it: set it to None, or",
    ),
}

# ------------------------------------------------------------------ data, runs and images

SIZES = "--config.model.mlp_dim=16 --config.model.num_heads=2"  # As of the run `other`.

DATA = {
    "folder that is not there": (
        FOLDER + "nowhere",
        "nowhere cannot be listed: No such file or directory.",
        "Expected ROOT/SPLIT/CLASS/image.jpg",
    ),
    "folder above the root": (
        "--config=CONFIGS/image_folder.py:root=nest",
        "nest, train, has a single class, all. ",
        "nest/all has folders of images: 'cat', 'dog'; is it the root that you mean?",
    ),
    "channels of one of the two": (
        "--config.data.train_transforms[0].channels=3",
        "digits train[0]: data.train_transforms make images of height, width, channels (8, 8, 3)",
    ),
    "split misspelt": (
        "--config.data.split=trian",
        'digits has no split "trian". Did you mean "train"? Accepted: train, test.',
    ),
    "split of an evaluation misspelt": (
        "--config.evals.test.split=tset",
        'digits has no split "tset". Did you mean "test"?',
    ),
}


RUNS = {
    "workdir of another run": (
        "--workdir=run --config.optim.lr=1",
        "run holds a run with another config or other data:",
        "  optim.lr: 0.003 -> 1.0",
        "Choose another --workdir, or pass --allow_config_change",
    ),
    "run that is over": (
        "--workdir=run --allow_config_change --config.total_steps=3",
        "The restored state is of step 12, beyond the end of this run at 3: raise total_steps",
    ),
    "workdir that is a file": ("--workdir=notes.txt", "--workdir=notes.txt cannot be made: File"),
    "resuming from nowhere": ("--config.resume=nowhere", "nowhere does not exist."),
    "resuming from a damaged checkpoint": (
        "--config.resume=damaged",
        "damaged/checkpoints/12 cannot be read: ",
    ),
    "resuming from another model": (
        "--config.resume=other",
        "belongs to another model:",
        "model (",
    ),
    "starting from a later release": (
        "--config.init_from=newer",
        "newer/config.json cannot be read:",
        "fancy_new_key",
    ),
    "starting from another model": (
        f"--config.init_from=other {SIZES} --config.model.width=32",
        "other does not fit the model:",
        "embedding/bias: checkpoint (16,), model (32,)",
        "Change the model, or name in init_skip the parameters to initialise.",
    ),
    "starting from other sizes than the name says": (
        f"--config.init_from=other {SIZES} --config.model.width=16 --config.model.variant=Ti/2",
        'model.variant is "Ti/2": patch_size (2, 2); other has patch_size (4, 4).',
        'Set model.variant to "" to take the checkpoint\'s sizes.',
    ),
    "skipping what is not there": (
        "--config.init_from=run --config.init_skip=haed/.*",
        "init_skip: 'haed/.*' does not match the whole path of any parameter. The nearest of",
        "head/",
    ),
}

EVALUATE = {
    "workdir without a run": (
        "--workdir=images",
        "images is not the work directory of a run, and holds no published checkpoint",
    ),
    "workdir without checkpoints": ("--workdir=nothing_saved", "has no checkpoint yet"),
    "step that was not saved": ("--workdir=run/checkpoints/7", "checkpoints/7 does not exist."),
    "unknown split": (
        "--workdir=run --split=validation",
        'digits has no split "validation". Accepted: train, test.',
    ),
    "config that is not there": ("--workdir=run --config=x.py", "there is no such file."),
    "method misspelt": ("--workdir=run --method=knnn", '--method=knnn: Did you mean "knn"? Acc'),
}

PREDICT = {
    "no --checkpoint": ("images", "--checkpoint=... is missing. See --help."),
    "another command's flag": ("--out=x.csv images", 'no flag --out. Did you mean "--output"?'),
    "another command's flag of one meaning": ("--workdir=run", 'Did you mean "--checkpoint"?'),
    "nothing to predict": ("--checkpoint=run", "Name at least one image or folder of images."),
    "folder that holds no checkpoint": (
        "--checkpoint=images images",
        "images is not the work directory of a run, and holds no published checkpoint",
    ),
    "no classes to name": ("--checkpoint=run --top_k=0 images", "--top_k=0"),
    "output of another kind": (
        "--checkpoint=run --output=out.txt images",
        "--output=out.txt: Accepted: .csv, .jsonl, .parquet.",
    ),
    "output in no folder": (
        "--checkpoint=run --output=nowhere/out.csv images",
        "--output=nowhere/out.csv: there is no folder nowhere.",
    ),
    "output that exists": (
        "--checkpoint=run --output=old.jsonl images",
        "--output=old.jsonl exists: name another file, or add --overwrite.",
    ),
    "features that exist": (
        "--checkpoint=run --output=new.csv --features=old.npz images",
        "--features=old.npz exists: name another file, or add --overwrite.",
    ),
}

# Images that cannot be predicted are reported on standard output; exit code 1.
PREDICT_SOME = {
    "image that is not there": (
        "--checkpoint=run images/cat/none.png",
        "images/cat/none.png: cannot be predicted: ",
        "No such file",
    ),
    "image that is text": (
        "--checkpoint=run notes.txt images/cat/0.png",
        "notes.txt: cannot be predicted: ",
        "images/cat/0.png: ",
    ),
}
