"""What users do wrong, and what they are told. A row is a name, what is typed, and what is said.

Everything is typed in a folder that holds (see `tests.mistakes_places`)

    run, other              finished runs on digits, of different models
    nothing_saved           a work directory without checkpoints
    damaged                 one whose checkpoint is cut off
    newer                   one whose config.json has a key of a later release
    images                cat/*.png, dog/*.png
    hollow, differ, empty   image folders: a class without images, other classes in each split,
                            no folder at all
    tfds, tfrecord          the data set fashion_mnist_idx, as ArrayRecord and as TFRecord
    notes.txt, bare.py      no image and no config
    settings.json           no config

Of `train`, `--config=configs/quickstart.py` and a new `--workdir` are given where a row has none;
of the rows RUNS `--config=small.py`, that of `run`.
"""

SCHEDULE = "--config.optim.schedule."
FOLDER = "--config.data.source=image_folder --config.data.data_dir="
TFDS = "--config.data.source=tfds --config.data.data_dir=tfds --config.data.name="
IDX = TFDS + "fashion_mnist_idx "

# ------------------------------------------------------------------------------- what is typed

COMMAND_LINE = {
    "unknown key": (
        "--config.batchsize=8",
        '--config.batchsize=8: there is no config key "batchsize". Did you mean "batch_size"?',
    ),
    "unknown key of a section": (
        "--config.optim.lrr=1",
        'there is no config key "lrr". Did you mean "lr"? Accepted: accum_steps, b1',
    ),
    "unknown key of an evaluation": (
        "--config.evals.test.spilt=train",
        'there is no config key "spilt". Did you mean "split"?',
    ),
    "unknown evaluation": (
        "--config.evals.val.split=test",
        'there is no config key "val". Accepted: test.',
    ),
    "unknown key in a dict": (
        """--config.optim="{'lrr': 1}" """,
        'no config key "optim.lrr". Did you mean "lr"?',
    ),
    "unknown key of a transform": (
        "--config.data.train_transforms[0].opp=pad",
        "there is no \"opp\" in {'op': 'decode', 'channels': 1}",
    ),
    "index beyond the end": (
        "--config.data.train_transforms[9].size=1",
        "there is no [9]: it counts from [0] to [2]",
    ),
    "transform as a whole": (
        "--config.data.train_transforms[0]=pad",
        "write its keys one by one, --config.data.train_transforms[0].KEY=VALUE",
    ),
    "section as a whole": (
        "--config.optim=adamw",
        "--config.optim=adamw: write its keys one by one",
    ),
    "text for a number": ("--config.optim.lr=fast", "--config.optim.lr=fast: write a number"),
    "fraction for a whole number": (
        "--config.batch_size=12.5",
        "--config.batch_size=12.5: write a whole number",
    ),
    "1e4 for a whole number": ("--config.total_steps=1e4", "write a whole number"),
    "text for yes or no": ("--config.log.tensorboard=perhaps", "write true or false"),
    "None where there is no none": (
        "--config.batch_size=None",
        "batch_size is None: it must be a whole number",
    ),
    "value forgotten": ("--config.optim.lr", "--config.optim.lr=--workdir=", "write a number"),
    "flag misspelt": ("--wrkdir=x", "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    "stray words": ("to the end", "What is 'to the end'? Flags begin with --. See --help."),
    "no --config": ("NO_CONFIG", "--config=... is missing. See --help."),
    "no --workdir": ("NO_WORKDIR", "--workdir=... is missing. See --help."),
    "--config after its overrides": (
        "--config.optim.lr=1 --config=QUICKSTART",
        "Found --config.optim.lr=1 in argv before a value for --config",
    ),
    "config that is not there": (
        "--config=images/quickstart.py",
        "--config=images/quickstart.py: there is no such file.",
        "the project's are in its folder configs",
    ),
    "config misspelt": (
        "--config=CONFIGS/quickstar.py",
        'quickstar.py: there is no such file. Did you mean "',
        'configs/quickstart.py"? Accepted: ',
    ),
    "config that is a folder": ("--config=images", "--config=images: this is no file."),
    "config that is JSON": (
        "--config=settings.json",
        "--config=settings.json: a config is a Python file, FILE.py.",
    ),
    "config without get_config": ("--config=bare.py", "--config=bare.py defines no get_config()."),
    "config that is nothing": ("--config=", "--config=: this is no file."),
    "config in a home that is not there": (
        "--config=~nouser/x.py",
        "--config=~nouser/x.py: there is no such home folder.",
    ),
    "config of too long a name": (
        f"--config={300 * 'x'}.py",
        "x.py cannot be read: File name too long.",
    ),
    "config below a folder with a colon": (
        "--config=/a:b/x.py",
        "--config=/a: there is no such file, and what follows a colon is its argument",
    ),
    "config's argument with a comma": (
        "--config=CONFIGS/image_folder.py:root=/x/a,b",
        'Config argument "b": write key=value.',
        "give one that has a comma to its key, such as --config.data.data_dir=FOLDER.",
    ),
    "config in an object store": (
        "--config=gs://bucket/config.py",
        "copy the file here; it must be a local one",
    ),
    "config's argument unknown": (
        "--config=CONFIGS/fashion_mnist.py:epoch=3",
        'Unknown config argument "epoch". Did you mean "epochs"?',
    ),
    "config's argument of another type": (
        "--config=CONFIGS/fashion_mnist.py:epochs=many",
        'Config argument epochs="many" is not a float.',
    ),
    "config's argument without a value": (
        "--config=CONFIGS/fashion_mnist.py:epochs",
        'Config argument "epochs": write key=value. Accepted: epochs=12.0.',
    ),
    "argument of a config that takes none": (
        "--config=QUICKSTART:steps=3",
        'Unknown config argument "steps". This config takes none.',
    ),
    "augmentation level unknown": (
        "--config=CONFIGS/vit_i1k.py:aug=medum1",
        'AugReg has no level "medum1". Did you mean "medium1"?',
    ),
    "task unknown": (
        "--config=CONFIGS/finetune.py:dataset=cifar",
        'Config argument dataset="cifar": Did you mean "cifar10"?',
    ),
}

# ---------------------------------------------------------- lines at the end of a config's file

CONFIG_FILE = {
    "key misspelt": (
        "c.optim.lrr = 1",
        'line 6: there is no config key "lrr". Did you mean "lr"?',
    ),
    "key misspelt and read": ("x = c.optm", 'no config key "optm". Did you mean "optim"?'),
    "text for a number in the file": (
        "c.optim.lr = 'a'",
        "line 6: TypeError: Could not override field 'lr'",
    ),
    "syntax error": ("c =", "line 6: SyntaxError: invalid syntax"),
    "error in the file": ("1 / 0", "config.py, line 6: ZeroDivisionError: division by zero"),
    "disk error in the file": ("raise OSError('gone')", "line 6: OSError: gone"),
    "module not installed": (
        "import big_vision",
        "line 6: ModuleNotFoundError: No module named 'big_vision'",
    ),
    "nothing returned": ("return", "get_config() gave NoneType: it must return what"),
    "dict returned": ("return {}", "get_config() gave dict: it must return what"),
    "section returned": ("return c.optim", 'There is no config key "accum_steps".'),
    "key added": ("c.unlock(); c.warmup = 3", 'There is no config key "warmup".'),
    "section removed": ("c.unlock(); del c.optim", 'The config lacks the key "optim"'),
    "key unset": ("c.optim.lr = None", "optim.lr is None: it must be a number."),
    "set in a transform": (
        "c.data.train_transforms = ({'op': {1}},)",
        "data.train_transforms[0].op is {1}: write plain numbers",
    ),
    "evaluation lacks a key": (
        "c.evals = {'a': {'type': 'classification', 'split': 'test'}}",
        'The config lacks the key "evals.a.every_steps"',
    ),
    "evaluation that is a number": (
        "c.evals = {'a': 3}",
        "evals.a is 3: it must be a section of keys.",
    ),
    "evaluation with a strange name": (
        "c.evals = {'a/b': c.evals.test}",
        "evals.a/b: a name has letters, digits and . _ - only.",
    ),
    "evaluation called train": (
        "c.evals = {'train': c.evals.test}",
        "evals.train: its results would be called as those of the training itself",
    ),
    # Transforms.
    "no transforms": ("c.data.train_transforms = ()", "add value_range or normalize"),
    "no decode": (
        "c.data.train_transforms = c.data.train_transforms[1:]",
        'data.train_transforms[0] ("random_crop") comes first; that should be decode',
    ),
    "no value_range": (
        "c.data.train_transforms = c.data.train_transforms[:2]",
        "_transforms end with images that are uint8, and a model takes float32, normalised: add",
        "add value_range or normalize",
    ),
    "no value_range to evaluate": (
        "c.data.eval_transforms = c.data.eval_transforms[:2]",
        "_transforms end with images that are uint8, and a model takes float32, normalised: add",
    ),
    "value_range before decode": (
        "c.data.train_transforms = c.data.train_transforms[::-1]",
        'data.train_transforms[0] ("value_range") comes first; that should be decode',
    ),
    "decode twice": (
        "c.data.train_transforms *= 2",
        'data.train_transforms[3] ("decode") should come first, and once.',
    ),
    "crop after value_range": (
        "c.data.train_transforms += ({'op': 'random_crop'},)",
        "takes images that are uint8; after value_range they are float32, normalised. Move it",
    ),
    "unknown transform": (
        "c.data.train_transforms += ({'op': 'resise'},)",
        'data.train_transforms[3] ("resise"): no such operation. Did you mean "resize"?',
    ),
    "transform by name alone": (
        "c.data.train_transforms = ('decode',)",
        "data.train_transforms[0] is 'decode': write {\"op\": ",
    ),
    "unknown argument of a transform": (
        "c.data.eval_transforms = ({'op': 'decode', 'channel': 1},)",
        'data.eval_transforms[0] ("decode"): no such argument, "channel". Did you mean "channels"?',
    ),
    "argument of another type": (
        "c.data.eval_transforms = ({'op': 'decode', 'channels': '1'},)",
        "data.eval_transforms[0] (\"decode\"): channels: '1' should be int.",
    ),
    "argument out of range": (
        "c.data.train_transforms += ({'op': 'flip_lr', 'prob': 2},)",
        "prob=2.0 should be within 0 to 1",
    ),
    "size of a million": (
        "c.data.train_transforms[1]['size'] = 10**6",
        "size=1000000 is more than 89,478,485 pixels",
    ),
    "transforms of another size": (
        "c.data.train_transforms = (*c.data.train_transforms[:1], {'op': 'resize', 'size': 9}, "
        "*c.data.train_transforms[2:])",
        "make images of height, width, channels (9, 9, 1), and the model takes (8, 8, 1)",
    ),
    "transforms of another size to evaluate": (
        "c.data.eval_transforms[1]['size'] = 9",
        "digits test[0]: data.eval_transforms make images of height, width, channels (9, 9, 1)",
    ),
    "crop that is larger than the image": (
        "c.data.eval_transforms = (*c.data.eval_transforms[:1], {'op': 'center_crop', 'size': 9}, "
        "{'op': 'value_range'})",
        "center_crop wants 9x9 pixels (height x width) of an image that has 8x8",
    ),
    # Rules that a command line can hardly say.
    "rule that is no pair": (
        "c.optim.lr_rules = ('.*',)",
        "optim.lr_rules: '.*' is no rule: write pairs (pattern, multiplier)",
    ),
    "rule with text for a number": (
        "c.optim.lr_rules = (('.*', 'x'),)",
        "optim.lr_rules: ('.*', 'x') is no rule",
    ),
    "negative rule": (
        "c.optim.weight_decay_rules = (('.*', -1.0),)",
        "optim.weight_decay_rules: the multiplier -1.0 of '.*' must be finite and not negative",
    ),
    "rule of 0": ("c.optim.lr_rules = (('.*', 0.0),)", "list them in freeze"),
    "rule that comes too late": (
        "c.optim.weight_decay_rules = (('.*', 1.0), ('head/.*', 0.0))",
        "every parameter that 'head/.*' matches is taken by an earlier rule",
    ),
    "number for a pattern": (
        "c.optim.freeze = (3,)",
        "optim.freeze: 3 is not a regular expression",
    ),
}
