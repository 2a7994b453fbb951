"""More of `tests.mistakes_table`: missing data, and runs that do not match the command."""

from tests.mistakes_table import FOLDER

SIZES = "--config.model.mlp_dim=16 --config.model.num_heads=2"  # As of the run `other`.

DATA = {
    "folder not named": (
        "--config.data.source=image_folder",
        'data.source="image_folder" needs data.data_dir, its root. Pass --config.data.data_dir=',
        "--config=configs/image_folder.py:root=FOLDER.",
    ),
    "folder that is not there": (
        FOLDER + "nowhere",
        "nowhere cannot be listed: No such file or directory.",
        "Expected ROOT/SPLIT/CLASS/image.jpg",
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
    "half a slice": (
        "--config.data.split='train[:10%'",
        'Cannot read the split "train[:10%". Write a name, or a name and one slice: train, train[:',
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
        "The state to go on from is of step 12, beyond the end of this run at 3: raise total_steps",
    ),
    "workdir that is a file": ("--workdir=notes.txt", "--workdir=notes.txt cannot be made: File"),
    "workdir of nothing": ("--workdir=", "--workdir is empty: give a path"),
    "resuming from nowhere": ("--config.resume=nowhere", "nowhere does not exist."),
    "resuming from a missing step": (
        "--config.resume=run/checkpoints/7",
        "run/checkpoints/7 does not exist.",
    ),
    "resuming from a damaged checkpoint": (
        "--config.resume=damaged",
        "damaged/checkpoints/12 cannot be read: ",
    ),
    "resuming from another model": ("--config.resume=other", "is of another model:", "model ("),
    "starting from a later release": (
        "--config.init_from=newer",
        "newer/config.json cannot be read:",
        "fancy_new_key",
    ),
    "starting from another model": (
        f"--config.init_from=other {SIZES} --config.model.width=32",
        "other does not fit the model:",
        "embedding/bias: checkpoint (16,), model (32,)",
        "Change the model, or name in init_skip what shall start from scratch.",
    ),
    "starting from other sizes than the name says": (
        f"--config.init_from=other {SIZES} --config.model.width=16 --config.model.variant=Ti/2",
        'model.variant is "Ti/2": patch_size (2, 2); other has patch_size (4, 4).',
        'Set model.variant to "" to take what the checkpoint is.',
    ),
    "skipping what is not there": (
        "--config.init_from=run --config.init_skip=haed/.*",
        "init_skip: 'haed/.*' matches the whole path of no parameter. The nearest of",
        "head/",
    ),
}

EVALUATE = {
    "workdir without a run": (
        "--workdir=images",
        "images is not the work directory of a run: it holds no config.json. Give the --workdir",
    ),
    "workdir without checkpoints": ("--workdir=nothing_saved", "has no checkpoint yet"),
    "step that was not saved": ("--workdir=run/checkpoints/7", "checkpoints/7 does not exist."),
    "unknown split": (
        "--workdir=run --split=validation",
        'digits has no split "validation". Accepted: train, test.',
    ),
    "config to evaluate": ("--workdir=run --config=x.py", "Unknown command line flag 'config'"),
}

PREDICT = {
    "no --checkpoint": ("images", "--checkpoint=... is missing. See --help."),
    "nothing to predict": ("--checkpoint=run", "Name at least one image or folder of images."),
    "folder that holds no checkpoint": (
        "--checkpoint=images images",
        "images is not the work directory of a run, and holds no checkpoint of others",
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
}

# What an image that cannot be predicted is told of in its place: exit code 1, on standard output.
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
