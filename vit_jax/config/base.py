"""The base config: every key of a run, declared with its default and its meaning.

A file in `configs/` calls `base_config()`, changes some keys and returns the result; the commands
run that file, apply `--config.KEY=VALUE`, and freeze it. Keys that are not declared here (those of
`model` in `vit_jax.config.model`) can neither be read nor set.
"""

import functools
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

from immutabledict import immutabledict
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.config.data import check_data
from vit_jax.config.durations import duration
from vit_jax.config.evals import check_evals, eval_form
from vit_jax.config.fields import FRACTION, Bounds, check_value
from vit_jax.config.form import check_entries, check_section
from vit_jax.config.model import model_section
from vit_jax.errors import ConfigError, did_you_mean

# Default of data.test_fraction; the same for all recipes and `vit-jax evaluate`, so that models
# trained on a folder and others are evaluated on the same images.
TEST_FRACTION = 0.2


def base_config() -> ConfigDict:
    """Returns every key with its default. Locked: values can change, keys cannot be added.

    Example:
      >>> config = base_config()
      >>> config.optim.lr = 3e-4
      >>> config.optim.name, config.model.variant
      ('adamw', 'S/16')
    """
    c = ConfigDict()

    c.seed = 0  # Of the initial parameters, the order of the data, augmentation and dropout.
    c.batch_size = 128  # Examples per optimizer update, over all devices and processes.
    # The length of the run: exactly one of total_steps, total_epochs, total_examples.
    c.total_steps = placeholder(int)
    c.total_epochs = placeholder(float)
    c.total_examples = placeholder(float)

    # Watchdog: a process that spends longer than this in one place (an update, a compilation, a
    # save, a batch of an evaluation) prints where it is and ends with exit code 76.
    c.timeout_seconds = 1800

    # Resume precedence: the workdir's own last checkpoint > resume > init_from > scratch.
    c.resume = ""  # Another workdir (or checkpoint): take its whole state, step included.
    # A workdir or checkpoint of ours, or a published one (vit_jax.pretrained.load): take its
    # parameters only, start at step 0. Keys of `model` that are None follow the checkpoint.
    c.init_from = ""
    # Model fields that a published checkpoint does not contain: (("num_heads", 4), ...).
    c.init_hints = ()
    # Patterns of whole parameter paths that init_from does not load, such as a head for other
    # classes.
    c.init_skip = ("head/.*",)

    c.model = model_section()
    # Linear probe: with all but the head in optim.freeze, compute the features of each image once
    # and train the head on them. Needs train_transforms equal to eval_transforms.
    c.cache_features = False

    c.data = ConfigDict()
    # digits, fashion_mnist, tfds, image_folder, hf_datasets, table or webdataset.
    c.data.source = "digits"
    # For tfds: the data set's name, "imagenet2012" or "cifar10:3.0.2". For hf_datasets: the name of
    # a data set in Hugging Face's cache, "uoft-cs/cifar10", or NAME:CONFIG.
    c.data.name = ""
    # Where TFDS keeps prepared data; the root of an image folder; a folder of parquet files, of tar
    # files, or saved by `save_to_disk`; a table FILE.csv or FILE.parquet; a{0..9}.tar.
    c.data.data_dir = ""
    c.data.follow_links = False  # Whether links in an image folder may lead out of it.
    # Fraction of each class that is held out as "test" if an image folder, table or tar files have
    # no splits of their own.
    c.data.test_fraction = TEST_FRACTION
    c.data.manual_dir = ""  # Where files that cannot be downloaded are (Fashion-MNIST's four).
    c.data.split = "train"  # To train on; slices such as train[:99%] are allowed.
    c.data.classes = ()  # Class ids to keep; renumbered from 0. (): all.
    c.data.shots = 0  # Train on this many examples of each class, chosen by seed; 0: all.
    # Train on this many examples of the split, chosen by seed (smaller subsets are contained in
    # larger ones); 0: all.
    c.data.examples = 0
    # Names of the features of a TFDS data set, the columns of a table, or the extension and the
    # JSON key of a WebDataset.
    c.data.image_key = "image"
    c.data.label_key = "label"
    # Transforms, in order: see vit_jax.data.transforms.OPS. The default of `size` is the model's
    # image_size.
    c.data.train_transforms = ({"op": "decode"}, {"op": "resize"}, {"op": "value_range"})
    c.data.eval_transforms = ({"op": "decode"}, {"op": "resize"}, {"op": "value_range"})
    # Of training images whose transforms begin with decode and random_resized_crop: "exact" gives
    # Pillow's pixels; "fast" decodes JPEGs at a part of their size and resizes by SIMD, which needs
    # the extra `fast` (see docs/training.md for the difference). Evaluations are exact.
    c.data.decode = "exact"
    # If an example cannot be read, decoded or transformed: "error" ends the run and names it;
    # "skip" gives it weight 0, lists it in bad_examples.jsonl, and moves no other example.
    c.data.on_bad = "error"
    # Examples in a chunk of the two-level order (vit_jax.data.chunked_order), which reads chunks of
    # consecutive examples instead of single ones; 0: one permutation of all examples.
    c.data.chunk = 0
    c.data.window = 8192  # With chunk: examples, over all processes, from which a batch is drawn.
    # Loader processes; 0 loads in threads of the main process. -1: chosen from the cores and the
    # number of pixels to load, see vit_jax.data.batches.automatic_workers.
    c.data.workers = -1
    c.data.threads = -1  # Reading threads, in the main process or in each worker; -1: automatic.
    # Keeps decoded images for later epochs and evaluations, with the same batches. "": off; "ram":
    # in the memory of this process, so without loader processes; FOLDER: on a disk, or in memory
    # that loader processes share, /dev/shm/FOLDER. docs/training.md says when to use it.
    c.data.cache = ""
    # Limit of the cache in GB (1e9 bytes); further images are decoded each time. 0: half of the
    # machine's memory, or of the disk, that is free when the run begins. With "ram", set it in a
    # container or a job that may use less memory, and for a run of several processes.
    c.data.cache_gb = 0.0
    c.data.prefetch = 2  # Batches loaded ahead in host memory, and as many on the devices.

    c.mix = ConfigDict()  # Inside the jitted step; labels become soft.
    c.mix.mixup_alpha = 0.0  # Beta(alpha, alpha); 0: off.
    c.mix.cutmix_alpha = 0.0  # 0: off. If both are on, each batch uses either, at even odds.

    c.loss = ConfigDict()
    c.loss.name = "softmax_xent"  # softmax_xent or sigmoid_xent.
    c.loss.label_smoothing = 0.0  # This fraction of the target is spread over all classes.

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw, sgd, adafactor, lion, lamb or muon.
    c.optim.lr = 1e-3  # At the schedule's peak.
    c.optim.b1 = 0.9  # adamw, lion, lamb, muon's Adam part.
    c.optim.b2 = 0.999  # The same; adafactor caps its decay at b2.
    c.optim.eps = 1e-8  # adamw, lamb, muon's Adam part.
    c.optim.momentum = 0.9  # sgd, adafactor, muon.
    c.optim.nesterov = False  # sgd, muon.
    c.optim.momentum_dtype = "float32"  # Of the first moment: float32 or bfloat16.
    c.optim.weight_decay = 0.0  # Times lr and schedule, as in AdamW.
    # (pattern of the parameter's path, multiplier); the first match counts; no match: 0.
    c.optim.weight_decay_rules = ((".*/kernel", 1.0),)
    c.optim.lr_rules = ((".*", 1.0),)  # The same for the learning rate; no match: 1.
    c.optim.layer_decay = 1.0  # Learning rate times this per layer counted from the head.
    c.optim.freeze = ()  # Patterns of parameters that are not trained.
    c.optim.clip_norm = 0.0  # Largest global norm of the gradient; 0: no clipping.
    c.optim.clip_rms = 0.0  # adafactor: largest RMS of a parameter's scaled gradient; 0: none.
    c.optim.accum_steps = 1  # Microbatches per update.
    c.optim.sam_rho = 0.0  # Sharpness-aware minimisation's radius; 0: off.
    c.optim.ema_decay = 0.0  # Of the moving average of the parameters, for evaluation; 0: off.

    c.optim.schedule = ConfigDict()
    c.optim.schedule.name = "cosine"  # constant, cosine, linear or rsqrt.
    c.optim.schedule.update(duration("warmup"))  # Linear from 0; unset: none.
    c.optim.schedule.update(duration("cooldown"))  # Linear to 0 at the very end; unset: none.
    c.optim.schedule.update(duration("timescale"))  # rsqrt only.
    c.optim.schedule.end = 0.0  # Final value of cosine and linear, as a fraction of lr.

    c.mesh = ConfigDict()  # Devices along each axis; one axis may be -1: all remaining devices.
    c.mesh.data = -1  # Splits the batch; parameters are replicated.
    c.mesh.fsdp = 1  # Splits the batch and the parameters.
    c.mesh.tensor = 1  # Splits the heads, the MLP's hidden units, and tokens between blocks.
    # Choose data and fsdp, whatever they say: the smallest fsdp that fits in the memory of the
    # devices (vit_jax.training.mesh_choice).
    c.mesh.auto = False

    c.compiler = ConfigDict()
    # XLA's options for the train step, a set of vit_jax.parallel.xla_options by its name: none,
    # overlap, collective_matmul or sparse_core. Results are equal up to rounding.
    c.compiler.options = "none"

    # Evaluations by name: see classification_eval and analysis_eval in evals.py for their keys.
    c.evals = ConfigDict()

    c.checkpoint = ConfigDict()
    c.checkpoint.update(duration("every"))  # Save at every multiple, and at the end.
    c.checkpoint.every_steps = 1000
    c.checkpoint.keep_last = 2  # Number of newest checkpoints to keep.
    c.checkpoint.keep_every_steps = 0  # Keep those at multiples of this for ever; 0: none.
    # Save at these steps, too, and keep them for ever: for other runs to branch off (resume).
    c.checkpoint.keep_steps = ()
    c.checkpoint.best_metric = ""  # E.g. "test/top1": also keep the best checkpoint; "": off.
    c.checkpoint.best_mode = "max"  # max or min.

    c.log = ConfigDict()
    c.log.every_steps = 50  # Steps per line of metrics.jsonl.
    c.log.tensorboard = True  # Event files in workdir/tb.
    c.log.wandb_project = ""  # Weights & Biases, if it is installed; "": off.
    c.log.profile_steps = ()  # (first, last): write a trace of these steps to workdir/profile.
    # Folder of compiled programs, for the next start. auto: JAX_COMPILATION_CACHE_DIR if it is set,
    # else vit_jax in XDG_CACHE_HOME or ~/.cache; "": off.
    c.log.compilation_cache = "auto"
    return c.lock()


def check_form(config: ConfigDict) -> None:
    """Checks that a config has the keys of the base config, with values of their types.

    Raises:
      ConfigError: it does not; the message names the key.
    """
    check_section(config, _cached_base_config())
    check_entries(config.evals, eval_form, prefix="evals.")


@functools.cache
def _cached_base_config() -> ConfigDict:
    """Returns the base config, built once: a sweep checks hundreds of configs."""
    return base_config()


def freeze(config: ConfigDict) -> FrozenConfigDict:
    """Returns an immutable copy of the config, including dicts inside tuples.

    Raises:
      ConfigError: keys or types differ from those of the base config.
    """
    frozen = config.copy_and_resolve_references()
    check_form(frozen)
    with frozen.unlocked():
        _freeze_tuples(frozen)
    return FrozenConfigDict(frozen)


def thaw(config: FrozenConfigDict) -> ConfigDict:
    """Returns a copy of a frozen config that can be changed.

    What `ConfigDict(config)` and `config.as_configdict()` return has the same sections at each
    call: a change to one would be in all later ones.
    """
    return config.as_configdict().copy_and_resolve_references()


def _freeze_tuples(section: ConfigDict) -> None:
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            _freeze_tuples(value)
        elif isinstance(value, tuple):
            section[key] = _frozen(value)


def _frozen(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping | ConfigDict):
        return immutabledict({key: _frozen(item) for key, item in value.items()})
    return value


# Bounds of the keys that no other code checks.
_BOUNDS = {
    "seed": Bounds(0, 2**32 - 1),  # JAX's random keys take seeds modulo 2**32.
    "batch_size": Bounds(1, 2**24),
    "timeout_seconds": Bounds(1),
    "data.test_fraction": Bounds(0, 1, low_open=True, high_open=True),
    "data.shots": Bounds(0),
    "data.examples": Bounds(0),
    "data.chunk": Bounds(0),
    "data.window": Bounds(1),
    "data.workers": Bounds(-1, 1024),
    "data.threads": Bounds(-1, 1024),
    "data.prefetch": Bounds(1, 1024),
    "data.cache_gb": Bounds(0),
    "mix.mixup_alpha": Bounds(0),
    "mix.cutmix_alpha": Bounds(0),
    "loss.label_smoothing": FRACTION,
    "optim.accum_steps": Bounds(1, 2**24),
    "optim.ema_decay": FRACTION,
    "checkpoint.keep_last": Bounds(1),
    "checkpoint.keep_every_steps": Bounds(0),
    "log.every_steps": Bounds(1),
}
_CHOICES = {
    "compiler.options": ("none", "overlap", "collective_matmul", "sparse_core"),
    "data.decode": ("exact", "fast"),
    "data.on_bad": ("error", "skip"),
    "checkpoint.best_mode": ("max", "min"),
}


def validate(config: ConfigDict | FrozenConfigDict) -> None:
    """Checks the values that no other code checks, or that it checks only after the run has begun.

    Raises:
      ConfigError: a value is not accepted; the message names the key.
    """
    for key, bounds in _BOUNDS.items():
        check_value(key, _get(config, key), bounds=bounds)
    if (every := config.checkpoint.every_steps) is not None:  # None: it is in another unit.
        check_value("checkpoint.every_steps", every, bounds=Bounds(1))
    for key, accepted in _CHOICES.items():
        check_value(key, _get(config, key), choices=accepted)
    check_data(config.data)
    for key in ("init_skip", "optim.freeze"):
        for pattern in _get(config, key):
            check_pattern(pattern, key=key)
    for hint in config.init_hints:
        if not isinstance(hint, tuple) or len(hint) != 2 or not isinstance(hint[0], str):
            raise ConfigError(
                f"init_hints: {hint!r} is not a hint: write pairs (name, value), such as "
                '(("num_heads", 4),).'
            )
    for step in config.checkpoint.keep_steps:
        if type(step) is not int or step < 1:
            raise ConfigError(
                f"checkpoint.keep_steps has {step!r}: write numbers of updates, such as (100, 300)."
            )
    check_evals(config)
    steps = config.log.profile_steps
    integers = all(type(step) is int for step in steps)
    if steps and not (integers and len(steps) == 2 and 0 <= steps[0] <= steps[1]):
        raise ConfigError(
            f"log.profile_steps is {tuple(steps)}: give (first, last) with 0 <= first <= last, or "
            "() for no trace."
        )


def _get(config: ConfigDict, key: str) -> Any:
    return operator.attrgetter(key)(config)


def check_best(
    config: ConfigDict | FrozenConfigDict, *, total_steps: int, save: int, evaluate: int
) -> None:
    """Checks that `checkpoint.best_metric`, which is set, has several checkpoints to choose from.

    A checkpoint can be the best only if the metric is measured at its step.

    Args:
      config: the run's config.
      total_steps: length of the run.
      save: number of updates between saves.
      evaluate: number of updates between evaluations of the metric; 0: only at the end.

    Raises:
      ConfigError: no step but the last is both saved and evaluated.
    """
    name = config.checkpoint.best_metric.rpartition("/")[0]
    both = math.lcm(save, evaluate)  # 0 if it is evaluated only at the end.
    if save < total_steps <= (both or total_steps):
        raise ConfigError(
            f"checkpoint.best_metric is {config.checkpoint.best_metric}, but no step before the "
            f"last, {total_steps:,}, is both saved (checkpoint.every_steps={save}) and evaluated "
            f"(evals.{name}.every_steps={evaluate}): make the second a multiple of the first."
        )


def check_pattern(pattern: Any, *, key: str) -> None:
    """Raises ConfigError unless `pattern`, the value of a config key, is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{key}: {pattern!r} is not a regular expression: {error}.") from error


LIST_ARGUMENTS = "help"  # The argument of a config file that lists its arguments.


class ConfigArguments(ConfigError):
    """Answers `FILE.py:help` with the arguments of the file.

    Attributes:
      defaults: {argument: default}.
    """

    def __init__(self, defaults: Mapping[str, Any]):
        super().__init__(f"Config arguments. {_accepted(defaults)}")
        self.defaults = dict(defaults)


def parse_args(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses the arguments of a config file, such as `variant=L/16` in `vit_i1k.py:variant=L/16`.

    Args:
      arg: "key=value,key=value", or None or "" for none; "help" lists the arguments. What follows a
        comma without "=" belongs to the value before it: a folder may be called "dogs, cats".
      **defaults: every accepted argument; a value has the type of its default.

    Raises:
      ConfigError: an unknown argument, or a value of another type.
      ConfigArguments: `arg` is "help".
    """
    if arg == LIST_ARGUMENTS:
        raise ConfigArguments(defaults)
    args = ConfigDict(defaults)
    for item in re.split(r",(?=[^,]*=)", arg) if arg else ():
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f'Config argument "{item}": write key=value. {_accepted(defaults)}')
        if key not in defaults:
            hint = did_you_mean(key, defaults) if defaults else _accepted(defaults)
            raise ConfigError(f'Unknown config argument "{key}". {hint}')
        kind = type(defaults[key])
        try:
            args[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ConfigError(f'Config argument {key}="{text}" is not a {kind.__name__}.') from None
    return args


def _accepted(defaults: Mapping[str, Any]) -> str:
    if not defaults:
        return "This config takes none."
    return "Accepted: " + ", ".join(f"{key}={value}" for key, value in defaults.items()) + "."
