"""More of `tests.mistakes_table`: data that are not there, and runs that are other ones."""

from tests.mistakes_table import FOLDER, IDX, TFDS

SIZES = "--config.model.mlp_dim=16 --config.model.num_heads=2"  # As of the run `other`.

DATA = {
    "unknown source": (
        "--config.data.source=imagenet",
        'Unknown data.source "imagenet". Did you mean "image_folder"?',
    ),
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
    "folder that is a file": (FOLDER + "notes.txt", "notes.txt cannot be listed: Not a directory."),
    "empty folder": (FOLDER + "empty", "empty has no folders. Expected ROOT/SPLIT/CLASS/image.jpg"),
    "class without images": (FOLDER + "hollow", "hollow/eel: no images in this class."),
    "other classes in each split": (
        FOLDER + "differ",
        "the splits differ in their class folders: test lacks dog; train lacks cow.",
    ),
    "images of another number of channels": (
        FOLDER + "images --config.data.eval_transforms[0].channels=3",
        "make images of height, width, channels (8, 8, 3), and the model takes (8, 8, 1)",
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
    "split of a folder misspelt": (FOLDER + "images --config.data.split=trian", 'mean "train"?'),
    "half a slice": (
        "--config.data.split='train[:10%'",
        'Cannot read the split "train[:10%". Write a name, or a name and one slice: train, train[:',
    ),
    "empty slice": (
        "--config.data.split='train[50:10]'",
        '"train[50:10]" holds none of the 1442 examples of this split.',
    ),
    "slice beyond the end": (
        "--config.data.split='train[:5000]'",
        '"train[:5000]" reaches beyond the 1442 examples of this split.',
    ),
    "TFDS without a name": (
        "--config.data.source=tfds",
        'data.source="tfds" needs data.name, such as "cifar10".',
    ),
}

DATA_SETS = {
    "TFDS name misspelt": (
        TFDS + "cifra10",
        'TFDS knows no data set "cifra10"',
        "Did you mean cifar10",
    ),
    "TFDS name that is none": (TFDS + "../../etc", 'TFDS cannot open "../../etc"'),
    "TFDS version unknown": (
        TFDS + "cifar10:9.9.9",
        'TFDS cannot open "cifar10:9.9.9"',
        "cannot be loaded at version 9.9.9, only: 3.0.2",
    ),
    "TFDS config unknown": (TFDS + "voc/2006", 'TFDS cannot open "voc/2006"', "2006 not found"),
    "TFDS data not prepared": (
        TFDS + "cifar10",
        "cifar10/3.0.2 is not prepared in tfds/cifar10/3.0.2. If it is elsewhere, set data.data_d",
        "file_format='array_record').download_and_prepare()",
    ),
    "TFDS data without random access": (
        "--config.data.source=tfds --config.data.data_dir=tfrecord "
        "--config.data.name=fashion_mnist_idx",
        "is stored as tfrecord, which has no random access. To convert it",
        "convert_format --dataset_version_dir=tfrecord/fashion_mnist_idx/1.0.0",
    ),
    "TFDS split misspelt": (IDX + "--config.data.split=trian", 'Did you mean "train"?'),
    "TFDS half a slice": (IDX + "--config.data.split='train[:'", 'Cannot read the split "train[:"'),
    "TFDS slice of nothing": (IDX + "--config.data.split='train[:0%]'", 'the split "train[:0%]"'),
    "TFDS empty slice": (IDX + "--config.data.split='train[50:10]'", '"train[50:10]"'),
    "TFDS image unknown": (IDX + "--config.data.image_key=pixels", 'data.image_key="pixels"'),
    "TFDS label that is none": (
        IDX + "--config.data.label_key=image",
        'data.label_key="image" is not a class label in fashion_mnist_idx/1.0.0, but Image',
    ),
}

RUNS = {
    "workdir of another run": (
        "--workdir=run --config.optim.lr=1",
        "run holds a run with another config or other data:",
        "  optim.lr: 0.003 -> 1.0",
        "Choose another --workdir, or pass --allow_config_change",
    ),
    "workdir of a run on other data": (
        "--workdir=run --config.data.split='train[:99%]'",
        "  data.split: 'train' -> 'train[:99%]'",
    ),
    "run that is over": (
        "--workdir=run --allow_config_change --config.total_steps=3",
        "The state to go on from is of step 12, beyond the end of this run at 3: raise total_steps",
    ),
    "workdir of a run of another model": (
        "--workdir=other --allow_config_change",
        "is of another model:",
    ),
    "workdir that is a file": ("--workdir=notes.txt", "--workdir=notes.txt cannot be made: File"),
    "workdir below a file": (
        "--workdir=notes.txt/run",
        "--workdir=notes.txt/run cannot be made: Not a directory.",
    ),
    "workdir that cannot be made": ("--workdir=/proc/run", "--workdir=/proc/run cannot be made"),
    "workdir of nothing": ("--workdir=", "--workdir is empty: give a path"),
    "workdir at an address": ("--workdir=s3://bucket/run", "--workdir=s3://bucket/run: only fold"),
    "resuming from nowhere": ("--config.resume=nowhere", "nowhere does not exist."),
    "resuming from images": (
        "--config.resume=images",
        "images is not the work directory of a run: it holds no config.json.",
    ),
    "resuming from a run without checkpoints": (
        "--config.resume=nothing_saved",
        "nothing_saved has no checkpoint yet",
    ),
    "resuming from a missing step": (
        "--config.resume=run/checkpoints/7",
        "run/checkpoints/7 does not exist.",
    ),
    "resuming from a damaged checkpoint": (
        "--config.resume=damaged",
        "damaged/checkpoints/12 cannot be read: ",
    ),
    "resuming from another model": ("--config.resume=other", "is of another model:", "model ("),
    "starting from nowhere": ("--config.init_from=nowhere", "nowhere does not exist."),
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
    "skipping by half a pattern": (
        "--config.init_skip=head/(",
        "init_skip: 'head/(' is not a regular expression: missing )",
    ),
}

EVALUATE = {
    "no --workdir to evaluate": ("", "--workdir=... is missing. See --help."),
    "workdir that is not there": ("--workdir=nowhere", "nowhere does not exist."),
    "workdir without a run": (
        "--workdir=images",
        "images is not the work directory of a run: it holds no config.json. Give the --workdir",
    ),
    "workdir without checkpoints": ("--workdir=nothing_saved", "has no checkpoint yet"),
    "step that was not saved": ("--workdir=run/checkpoints/7", "checkpoints/7 does not exist."),
    "damaged checkpoint": ("--workdir=damaged", "damaged/checkpoints/12 cannot be read: "),
    "run of a later release": ("--workdir=newer", "config.json cannot be read:", "fancy_new_key"),
    "unknown split": (
        "--workdir=run --split=validation",
        'digits has no split "validation". Accepted: train, test.',
    ),
    "empty split": (
        "--workdir=run --split=test[5:5]",
        '"test[5:5]" holds none of the 355 examples',
    ),
    "config to evaluate": ("--workdir=run --config=x.py", "Unknown command line flag 'config'"),
    "words to evaluate": ("--workdir=run test", "What is 'test'? Flags begin with --."),
}

PREDICT = {
    "no --checkpoint": ("images", "--checkpoint=... is missing. See --help."),
    "nothing to predict": ("--checkpoint=run", "Name at least one image or folder of images."),
    "folder without images": ("--checkpoint=run empty", "empty holds no image: looked for .jpg"),
    "checkpoint that is not there": ("--checkpoint=nowhere images", "nowhere does not exist."),
    "folder that holds no checkpoint": (
        "--checkpoint=images images",
        "images is not the work directory of a run, and holds no checkpoint of others",
    ),
    "checkpoint that was not saved": (
        "--checkpoint=run/checkpoints/7 images",
        "run/checkpoints/7 does not exist.",
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
    "image of too long a name": (
        f"--checkpoint=run {300 * 'x'}.png images/cat/0.png",
        "x.png: cannot be predicted: ",
        "File name too long",
        "images/cat/0.png: ",
    ),
    "image that is text": (
        "--checkpoint=run notes.txt images/cat/0.png",
        "notes.txt: cannot be predicted: ",
        "images/cat/0.png: ",
    ),
}
