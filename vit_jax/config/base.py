"""The one base config: every key that a run can read, declared with its default and its meaning.

A file in `configs/` calls `base_config()`, changes what it wants and returns the result; the
commands read that file, apply `--config.KEY=VALUE`, and freeze it. Nothing anywhere reads a
key that is not declared here, and a key that is not declared here cannot be set.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from immutabledict import immutabledict
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.config.fields import SHARE, Bounds, check_value
from vit_jax.config.form import check_entries, check_section
from vit_jax.config.model import model_section
from vit_jax.errors import ConfigError, did_you_mean

# A duration is given in exactly one of these units: `warmup_steps`, `warmup_epochs`, ...
DURATION_UNITS = ("steps", "epochs", "examples", "percent")

ON_BAD = ("error", "skip")  # What becomes of an example that cannot be used.

# What an evaluation of the type classification measures.
CLASSIFICATION_METRICS = ("top1", "top5", "loss", "ece", "count")


def _duration(name: str) -> dict[str, Any]:
    return {
        f"{name}_steps": placeholder(int),  # optimizer updates
        f"{name}_epochs": placeholder(float),  # passes over the training split
        f"{name}_examples": placeholder(float),  # images seen
        f"{name}_percent": placeholder(float),  # of the whole run: 0.1 is a tenth
    }


def other_units(key: str) -> list[str]:
    """The keys that give the same duration in other units; none if it is no duration."""
    match = re.fullmatch(rf"(?P<stem>.*)_({'|'.join(DURATION_UNITS)})", key)
    names = [f"{match['stem']}_{unit}" for unit in DURATION_UNITS] if match else []
    return [name for name in names if name != key]


def base_config() -> ConfigDict:
    """Every key a run can read, with its default. Locked: values change, no key can be added."""
    c = ConfigDict()

    c.seed = 0  # Decides the initial parameters, the order of the data, augmentation and dropout.
    c.batch_size = 128  # Examples per optimizer update, over all devices and processes.
    # The length of the run: exactly one of total_steps, total_epochs, total_examples.
    c.total_steps = placeholder(int)
    c.total_epochs = placeholder(float)
    c.total_examples = placeholder(float)

    # A process that stays at one location for so long (an update, a compilation, a save, a batch of
    # an evaluation) says where, and ends with exit code 76.
    c.timeout_seconds = 1800

    # Resume precedence: the workdir's own last checkpoint > resume > init_from > scratch.
    c.resume = ""  # Another workdir (or checkpoint): take its whole state, step included.
    # A workdir or checkpoint of ours, or a published one (vit_jax.pretrained.load): take its
    # parameters only, start at step 0. What is None in `model` is as the checkpoint has it.
    c.init_from = ""
    c.init_hints = ()  # What a published one does not tell: (("num_heads", 4), ...).
    # Patterns of whole parameter paths that init_from leaves out: a new head for other classes.
    c.init_skip = ("head/.*",)

    c.model = model_section()
    # Linear probe: with all but the head in optim.freeze, compute the features of each image once
    # and train the head on them. Needs train_transforms that are eval_transforms.
    c.cache_features = False

    c.data = ConfigDict()
    c.data.source = "digits"  # digits, fashion_mnist, tfds or image_folder.
    c.data.name = ""  # For tfds: the data set's name, "imagenet2012" or "cifar10:3.0.2".
    c.data.data_dir = ""  # Where TFDS keeps prepared data, or the root of an image folder.
    c.data.manual_dir = ""  # Where files that cannot be downloaded are (Fashion-MNIST's four).
    c.data.split = "train"  # What is trained on; slices such as train[:99%] are allowed.
    c.data.classes = ()  # Class ids to keep; renumbered from 0. (): all.
    c.data.shots = 0  # Train on this many examples of each class, chosen by seed; 0: all.
    # Train on this many examples of the split, chosen by seed (smaller subsets are contained in
    # larger ones); 0: all.
    c.data.examples = 0
    c.data.image_key = "image"  # Names of the features in the TFDS data set.
    c.data.label_key = "label"
    # Transforms, in order: see vit_jax.data.transforms.OPS. A `size` that is left out is the
    # model's image_size.
    c.data.train_transforms = ({"op": "decode"}, {"op": "resize"}, {"op": "value_range"})
    c.data.eval_transforms = ({"op": "decode"}, {"op": "resize"}, {"op": "value_range"})
    # An example that cannot be read, decoded or transformed: error ends the run and names it; skip
    # goes on without it, says so in bad_examples.jsonl, and changes the place of no other.
    c.data.on_bad = "error"
    c.data.workers = 0  # Loader processes per host; 0 loads in threads of the main process.
    c.data.threads = 4  # Reading threads, in the main process or in each worker.
    c.data.prefetch = 2  # Batches kept loaded, and as many on the devices, per host.

    c.mix = ConfigDict()  # Inside the jitted step; labels become soft.
    c.mix.mixup_alpha = 0.0  # Beta(alpha, alpha); 0: off.
    c.mix.cutmix_alpha = 0.0  # 0: off. With both on, each batch uses one of them, evenly.

    c.loss = ConfigDict()
    c.loss.name = "softmax_xent"  # softmax_xent or sigmoid_xent.
    c.loss.label_smoothing = 0.0  # This share of the target is spread over all classes.

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
    # (pattern of the parameter's path, multiplier); the first that matches counts, else 0.
    c.optim.weight_decay_rules = ((".*/kernel", 1.0),)
    c.optim.lr_rules = ((".*", 1.0),)  # The same for the learning rate; no match: 1.
    c.optim.layer_decay = 1.0  # Learning rate times this per layer counted from the head.
    c.optim.freeze = ()  # Patterns of parameters that stay as they are.
    c.optim.clip_norm = 0.0  # Largest global norm of the gradient; 0: no clipping.
    c.optim.clip_rms = 0.0  # adafactor: largest RMS of a parameter's scaled gradient; 0: none.
    c.optim.accum_steps = 1  # Microbatches per update.
    c.optim.sam_rho = 0.0  # Sharpness-aware minimisation's radius; 0: off.
    c.optim.ema_decay = 0.0  # Of the averaged parameters that are evaluated; 0: off.

    c.optim.schedule = ConfigDict()
    c.optim.schedule.name = "cosine"  # constant, cosine, linear or rsqrt.
    c.optim.schedule.update(_duration("warmup"))  # Linear from 0; unset: none.
    c.optim.schedule.update(_duration("cooldown"))  # Linear to 0 at the very end; unset: none.
    c.optim.schedule.update(_duration("timescale"))  # rsqrt only.
    c.optim.schedule.end = 0.0  # Where cosine and linear end, as a share of lr.

    c.mesh = ConfigDict()  # Devices along each axis; one of them may be -1, the rest.
    c.mesh.data = -1  # Batch split, parameters copied.
    c.mesh.fsdp = 1  # Batch split, parameters split too.
    c.mesh.tensor = 1  # Heads and MLP split.

    # Evaluations by name: see classification_eval() below for their keys.
    c.evals = ConfigDict()

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 1000  # Save at every multiple, and at the end.
    c.checkpoint.keep_last = 2  # The newest ones kept.
    c.checkpoint.keep_every_steps = 0  # These are kept for ever; 0: none.
    c.checkpoint.keep_steps = ()  # Saved at these, too, and kept for ever: resume branches off.
    c.checkpoint.best_metric = ""  # E.g. "test/top1": keep the best as well; "": do not.
    c.checkpoint.best_mode = "max"  # max or min.

    c.log = ConfigDict()
    c.log.every_steps = 50  # A line in metrics.jsonl.
    c.log.tensorboard = True  # Event files in workdir/tb.
    c.log.wandb_project = ""  # Weights & Biases, if it is installed; "": off.
    c.log.profile_steps = ()  # (first, last): a trace of these steps into workdir/profile.
    c.log.compilation_cache = ""  # Folder of XLA's persistent cache; "": off.
    return c.lock()


def classification_eval(*, split: str, every_steps: int = 0) -> ConfigDict:
    """An entry of `config.evals`: top-1, top-5, loss and calibration error on one split.

    Args:
      split: split of `config.data`'s data set, slices allowed.
      every_steps: evaluate at every multiple, and at the end; 0: only at the end.
    """
    return ConfigDict({"type": "classification", "split": split, "every_steps": every_steps})


def check_form(config: ConfigDict) -> None:
    """Checks that a config has the keys of the base config, with values of their types.

    Raises:
      ConfigError: naming the key.
    """
    check_section(config, _form())
    check_entries(config.evals, classification_eval(split=""), where="evals.")


@functools.cache
def _form() -> ConfigDict:
    """The base config, made once: a sweep checks hundreds of configs."""
    return base_config()


def freeze(config: ConfigDict) -> FrozenConfigDict:
    """The config as a run uses it: nothing in it can change, dicts inside tuples included.

    Raises:
      ConfigError: it does not have the form of the base config.
    """
    frozen = config.copy_and_resolve_references()
    check_form(frozen)
    with frozen.unlocked():
        _freeze_tuples(frozen)
    return FrozenConfigDict(frozen)


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


# Accepted values of what no other part of the code would check.
_BOUNDS = {
    "seed": Bounds(0, 2**32 - 1),  # JAX's keys would take a larger one for a smaller one.
    "batch_size": Bounds(1, 2**24),
    "timeout_seconds": Bounds(1),
    "data.shots": Bounds(0),
    "data.examples": Bounds(0),
    "data.workers": Bounds(0, 1024),
    "data.threads": Bounds(1, 1024),
    "data.prefetch": Bounds(1, 1024),
    "mix.mixup_alpha": Bounds(0),
    "mix.cutmix_alpha": Bounds(0),
    "loss.label_smoothing": SHARE,
    "optim.accum_steps": Bounds(1, 2**24),
    "optim.ema_decay": SHARE,
    "checkpoint.every_steps": Bounds(1),
    "checkpoint.keep_last": Bounds(1),
    "checkpoint.keep_every_steps": Bounds(0),
    "log.every_steps": Bounds(1),
}
_CHOICES = {"data.on_bad": ON_BAD, "checkpoint.best_mode": ("max", "min")}


def validate(config: ConfigDict | FrozenConfigDict) -> None:
    """Checks what no other part of the code would, or not before the run has begun.

    Raises:
      ConfigError: naming the key.
    """
    for key, bounds in _BOUNDS.items():
        check_value(key, _get(config, key), bounds=bounds)
    for key, accepted in _CHOICES.items():
        check_value(key, _get(config, key), choices=accepted)
    for key in ("init_skip", "optim.freeze"):
        for pattern in _get(config, key):
            check_pattern(pattern, key=key)
    for hint in config.init_hints:
        if not isinstance(hint, tuple) or len(hint) != 2 or not isinstance(hint[0], str):
            raise ConfigError(
                f"init_hints: {hint!r} is no hint: write pairs (name, value), such as "
                '(("num_heads", 4),).'
            )
    if config.data.shots and config.data.examples:
        raise ConfigError(
            "data.shots and data.examples are set: choose by class or from all, and let the other "
            "be 0."
        )
    for step in config.checkpoint.keep_steps:
        if type(step) is not int or step < 1:
            raise ConfigError(
                f"checkpoint.keep_steps has {step!r}: write numbers of updates, such as (100, 300)."
            )
    _check_evals(config)
    steps = config.log.profile_steps
    whole = all(type(step) is int for step in steps)
    if steps and not (whole and len(steps) == 2 and 0 <= steps[0] <= steps[1]):
        raise ConfigError(
            f"log.profile_steps is {tuple(steps)}: give (first, last) with 0 <= first <= last, or "
            "() for no trace."
        )


def _get(config: ConfigDict, key: str) -> Any:
    section, _, leaf = key.rpartition(".")
    return (config[section] if section else config)[leaf]


def _check_evals(config: ConfigDict) -> None:
    for name, entry in config.evals.items():
        if name == "train":
            raise ConfigError(
                "evals.train: its results would be called as those of the training itself, "
                "train/loss. Give it another name."
            )
        if entry.every_steps < 0:
            raise ConfigError(
                f"evals.{name}.every_steps is {entry.every_steps}: it must be positive, or 0 to "
                "evaluate at the end alone."
            )
    best = config.checkpoint.best_metric
    measured = [f"{name}/{metric}" for name in config.evals for metric in CLASSIFICATION_METRICS]
    if best and best not in measured:
        raise ConfigError(
            f'checkpoint.best_metric is "{best}", which the run does not measure. '
            + (did_you_mean(best, measured) if measured else "It has no config.evals.")
        )


def check_best(config: ConfigDict | FrozenConfigDict, *, total_steps: int) -> None:
    """Checks that the best of several checkpoints is looked for, if one is.

    A checkpoint can be the best only if the metric is measured at its step.

    Args:
      config: of the run.
      total_steps: its length.

    Raises:
      ConfigError: no step but the last is both saved and evaluated.
    """
    if not config.checkpoint.best_metric:
        return
    name = config.checkpoint.best_metric.rpartition("/")[0]
    save, measure = config.checkpoint.every_steps, config.evals[name].every_steps
    both = math.lcm(save, measure)  # 0 if it is evaluated only at the end.
    if save < total_steps <= (both or total_steps):
        raise ConfigError(
            f"checkpoint.best_metric is {config.checkpoint.best_metric}, but no step before the "
            f"last, {total_steps:,}, is both saved (checkpoint.every_steps={save}) and evaluated "
            f"(evals.{name}.every_steps={measure}): make the second a multiple of the first."
        )


def check_pattern(pattern: Any, *, key: str) -> None:
    """Raises ConfigError unless `pattern`, which stands in the config's `key`, can be searched."""
    try:
        re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{key}: {pattern!r} is not a regular expression: {error}.") from error


def parse_args(arg: str | None, **defaults: Any) -> ConfigDict:
    """The arguments of a config file: what follows the colon in `configs/vit_i1k.py:variant=L/16`.

    Args:
      arg: "key=value,key=value", or None or "" for none.
      **defaults: every argument that the file takes; a value has its default's type.

    Raises:
      ConfigError: an unknown argument, or a value of another type.
    """
    args = ConfigDict(defaults)
    for i, item in enumerate((arg or "").split(",") if arg else ()):
        key, equals, text = item.partition("=")
        if not equals:
            comma = " A value ends at a comma: give one that has a comma to its key, such as "
            raise ConfigError(
                f'Config argument "{item}": write key=value. {_accepted(defaults)}'
                + (f"{comma}--config.data.data_dir=FOLDER." if i else "")
            )
        if key not in defaults:
            hint = did_you_mean(key, defaults) if defaults else _accepted(defaults)
            raise ConfigError(f'Unknown config argument "{key}". {hint}')
        kind = type(defaults[key])
        try:
            args[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ConfigError(f'Config argument {key}="{text}" is not a {kind.__name__}.') from None
    return args


def _accepted(defaults: dict[str, Any]) -> str:
    if not defaults:
        return "This config takes none."
    return "Accepted: " + ", ".join(f"{key}={value}" for key, value in defaults.items()) + "."
