"""Mistakes of users. A row is a name, what is typed, and texts that the message must have.

Everything is typed in a folder that holds (see `tests.mistakes_folder`)

    run, other              finished runs on digits, of different models
    nothing_saved           a work directory without checkpoints
    damaged                 one whose checkpoint is cut off
    newer                   one whose config.json has a key of a later release
    images                cat/*.png, dog/*.png
    empty                   nothing
    notes.txt, bare.py      no image and no config
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
    "unknown evaluation": (
        "--config.evals.val.split=test",
        'there is no config key "val". Accepted: test.',
    ),
    "unknown key of a transform": (
        "--config.data.train_transforms[0].opp=pad",
        "there is no \"opp\" in {'op': 'decode', 'channels': 1}",
    ),
    "index beyond the end": (
        "--config.data.train_transforms[9].size=1",
        "there is no [9]: it counts from [0] to [2]",
    ),
    "section as a whole": (
        "--config.optim=adamw",
        "--config.optim=adamw: write its keys one by one",
    ),
    "text for a number": ("--config.optim.lr=fast", "--config.optim.lr=fast: write a number"),
    "text for yes or no": ("--config.log.tensorboard=perhaps", "write true or false"),
    "None where there is no none": (
        "--config.batch_size=None",
        "batch_size is None: it must be a whole number",
    ),
    "value forgotten": ("--config.optim.lr", "--config.optim.lr=--workdir=", "write a number"),
    "flag misspelt": ("--wrkdir=x", "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    "stray words": ("to the end", "What is 'to the end'? Flags begin with --. See --help."),
    "no --config": ("NO_CONFIG", "--config=... is missing. See --help."),
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
    "config that is JSON": (
        "--config=settings.json",
        "--config=settings.json: a config is a Python file, FILE.py.",
    ),
    "config without get_config": ("--config=bare.py", "--config=bare.py defines no get_config()."),
    "config that is nothing": ("--config=", "--config=: this is no file."),
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
}

# ---------------------------------------------------------- lines at the end of a config's file

CONFIG_FILE = {
    "key misspelt": (
        "c.optim.lrr = 1",
        'line 6: there is no config key "lrr". Did you mean "lr"?',
    ),
    "text for a number in the file": (
        "c.optim.lr = 'a'",
        "line 6: TypeError: Could not override field 'lr'",
    ),
    "syntax error": ("c =", "line 6: SyntaxError: invalid syntax"),
    "error in the file": ("1 / 0", "config.py, line 6: ZeroDivisionError: division by zero"),
    "nothing returned": ("return", "get_config() gave NoneType: it must return what"),
    "dict returned": ("return {}", "get_config() gave dict: it must return what"),
    "section removed": ("c.unlock(); del c.optim", 'The config lacks the key "optim"'),
    "key unset": ("c.optim.lr = None", "optim.lr is None: it must be a number."),
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
    "no value_range": (
        "c.data.train_transforms = c.data.train_transforms[:2]",
        "_transforms end with images that are uint8, and a model takes float32, normalised: add",
        "add value_range or normalize",
    ),
    "transform by name alone": (
        "c.data.train_transforms = ('decode',)",
        "data.train_transforms[0] is 'decode': write {\"op\": ",
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
    "number for a pattern": (
        "c.optim.freeze = (3,)",
        "optim.freeze: 3 is not a regular expression",
    ),
}
