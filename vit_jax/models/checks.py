"""What the configs of all kinds of models check when they are made."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError, did_you_mean

DTYPES = ("float32", "bfloat16")  # Of the computation.
_LONGEST_SIDE = 2**14  # Of an image, in pixels.
# The smallest and the largest accepted value: ten times what anybody has published, and more.
_SPANS = {
    "width": (1, 2**17),
    "depth": (1, 1024),
    "mlp_dim": (1, 2**20),
    "token_mlp_dim": (1, 2**20),
    "num_heads": (1, 2**12),
    "channels": (1, 2**10),
    "num_classes": (0, 2**24),
    "rep_size": (0, 2**17),
    "registers": (0, 2**10),
    "lora_rank": (0, 2**12),
}
_PROBABILITIES = ("dropout", "attention_dropout", "stochastic_depth")
_POSITIVE = ("ln_eps", "rope_theta", "lora_alpha")


def check_choices(cfg: Any, choices: Mapping[str, Sequence[str]], *, where: str = "model.") -> None:
    """Checks the fields that are names.

    Args:
      cfg: a dataclass.
      choices: accepted values of its fields.
      where: what stands before a field's name in a run's config.

    Raises:
      ConfigError: naming the field and the nearest that is accepted.
    """
    for field, accepted in choices.items():
        value = getattr(cfg, field)
        if value not in accepted:
            raise ConfigError(f'{where}{field} is "{value}". ' + did_you_mean(value, accepted))


def check_ranges(cfg: Any) -> None:
    """Checks the fields that are numbers, each by itself.

    Args:
      cfg: a dataclass; what it does not have is not checked.

    Raises:
      ConfigError: naming the field.
    """
    for field in _PROBABILITIES:
        if not 0 <= getattr(cfg, field, 0) < 1:
            raise ConfigError(f"model.{field} is {getattr(cfg, field)}: it must be in [0, 1).")
    for field, (low, high) in _SPANS.items():
        if not low <= getattr(cfg, field, low) <= high:
            raise ConfigError(
                f"model.{field} is {getattr(cfg, field)}: it must be from {low} to {high:,}."
            )
    for field in _POSITIVE:
        if not getattr(cfg, field, 1) > 0:
            raise ConfigError(f"model.{field} is {getattr(cfg, field)}: it must be above 0.")


def check_multiple(image_size: tuple[int, int], patch_size: tuple[int, int], *, what: str) -> None:
    """Checks that patches fill images.

    Args:
      image_size: height and width, pixels.
      patch_size: the same of what they must be a multiple of.
      what: the name of that, for the error.

    Raises:
      ConfigError: a side is no multiple; naming the nearest that are.
    """
    for side, image, patch in zip(("height", "width"), image_size, patch_size, strict=True):
        if image % patch or image < patch:
            below, above = image // patch * patch, (image // patch + 1) * patch
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"model.image_size has the {side} {image}, which is not a multiple of {what} "
                f"{patch}. The nearest that are: {nearest}."
            )


def check_images(shape: tuple[int, ...], image_size: tuple[int, int], channels: int) -> None:
    """Checks that a batch of images is what the model takes.

    Args:
      shape: of the batch.
      image_size: of the model, pixels.
      channels: of the model.

    Raises:
      ConfigError: it is not.
    """
    if shape[1:] != (*image_size, channels):
        raise ConfigError(
            f"This model takes images of height, width, channels {(*image_size, channels)}, not "
            f"{shape[1:]}: set model.image_size and model.channels, or resize the images."
        )


def check_capture(capture: Collection[str], capturable: Sequence[str]) -> None:
    """Raises ConfigError unless all that is to be captured can be; naming the nearest."""
    for name in capture:
        if name not in capturable:
            raise ConfigError(f'Cannot capture "{name}". ' + did_you_mean(str(name), capturable))


def numbers(
    value: tuple[Any, ...], name: str, kind: type, *, count: int | None = None
) -> tuple[Any, ...]:
    """A tuple of `count` numbers (None: any) of one kind, int or float; `name` is for the error.

    Raises:
      ConfigError: something else is in it.
    """
    if not all(type(item) in (int, kind) for item in value) or count not in (None, len(value)):
        many = "" if count is None else f"{count} "
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{name} is {value}: write a tuple of {many}{what}.")
    return tuple(kind(item) for item in value)


def square(size: tuple[Any, ...], name: str) -> tuple[int, int]:
    """(side,) or (height, width) as (height, width); `name` is for the error."""
    if len(size) not in (1, 2) or not all(type(side) is int and side > 0 for side in size):
        raise ConfigError(f"{name} is {size}: write (side,) or (height, width), whole pixels.")
    if max(size) > _LONGEST_SIDE:
        raise ConfigError(f"{name} is {size}: a side must be at most {_LONGEST_SIDE:,} pixels.")
    return size[0], size[-1]
