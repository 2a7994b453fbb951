"""Transforms as config data: a tuple of dicts {"op": name, **arguments}, applied in order.

For example, to train on ImageNet and to evaluate on it:

    ({"op": "decode"}, {"op": "random_resized_crop"}, {"op": "flip_lr"}, {"op": "value_range"})
    ({"op": "decode"}, {"op": "resize_small", "size": 256}, {"op": "center_crop"},
     {"op": "value_range"})

The arguments of an operation are the fields of its class in `OPS`. Images are uint8 [height, width,
channels] from `decode` on and float32 from `value_range` or `normalize` on. A wrong order is an
error when the transforms are composed, before an image is read.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from vit_jax.data import color, geometry, randaugment
from vit_jax.data.decode import MAX_PIXELS, decode_image
from vit_jax.data.decoded_cache import DecodedCache
from vit_jax.data.decoded_crop import EXACT, FAST, DecodedCrop
from vit_jax.data.op import FLOAT, STORED, UINT8, Op, Scaling
from vit_jax.errors import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode(Op):
    """Decodes a file or stored uint8 pixels to uint8 [height, width, channels].

    Attributes:
      channels: 3 or 1.
      exif: apply the EXIF orientation.
    """

    channels: int = 3
    exif: bool = True
    takes: ClassVar[tuple[str, ...]] = (STORED,)

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels={self.channels} should be 3 (RGB) or 1 (gray).")

    def gives(self, kind: str) -> str:
        return UINT8

    def __call__(
        self, image: bytes | np.ndarray, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        return decode_image(image, channels=self.channels, exif=self.exif)


OPS: dict[str, type[Op]] = {
    "decode": Decode,
    "resize": geometry.Resize,
    "resize_small": geometry.ResizeSmall,
    "center_crop": geometry.CenterCrop,
    "pad": geometry.Pad,
    "random_crop": geometry.RandomCrop,
    "random_resized_crop": geometry.RandomResizedCrop,
    "flip_lr": geometry.FlipLr,
    "random_erasing": geometry.RandomErasing,
    "randaugment": randaugment.RandAugment,
    "three_augment": color.ThreeAugment,
    "color_jitter": color.ColorJitter,
    "grayscale_to_rgb": color.GrayscaleToRgb,
    "rgb_to_grayscale": color.RgbToGrayscale,
    "value_range": color.ValueRange,
    "normalize": color.Normalize,
}


@dataclasses.dataclass(frozen=True)
class ComposedTransform:
    """A sequence of operations on the "image" of an example.

    Attributes:
      ops: the operations, in order.
      gives: the kind of the transformed image; one of those in `vit_jax.data.op`.
      key: the config key of the transforms, for messages.
      shape: required (height, width, channels) of the transformed image; None: any.
      decoded_crop: computes the first two operations, decode and random_resized_crop, as one; None:
        the first two are others.
      cache: decodes the image before the operations, or has its pixels; None: no cache.
    """

    ops: tuple[Op, ...]
    gives: str
    key: str
    shape: tuple[int, int, int] | None = None
    decoded_crop: DecodedCrop | None = None
    cache: DecodedCache | None = None

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns a copy of the example with a transformed image.

        Args:
          example: "image": an encoded file or an array; other entries do not change.
          rng: the only source of randomness.

        Raises:
          ConfigError: the transformed image does not have the required shape.
          DataError: the image is broken, or too small for a crop.
        """
        image: Any = example["image"]
        ops = self.ops
        if self.cache is not None and isinstance(first := ops[0], Decode):
            image = self.cache.decoded(image, channels=first.channels, exif=first.exif)
        if self.decoded_crop is not None:
            image, ops = self.decoded_crop(image, rng), ops[2:]
        for op in ops:
            image = op(image, rng)
        if self.shape not in (None, image.shape):
            raise ConfigError(
                f"{self.key} make images of height, width, channels {image.shape}, but the model "
                f"takes {self.shape}: add a resize or a crop, set channels of decode, or set "
                "model.image_size and model.channels."
            )
        return {**example, "image": np.ascontiguousarray(image)}

    def stages(self) -> tuple["ComposedTransform", Scaling | None]:
        """Returns the transform to uint8, and the last operation, which scales that to float32.

        Images of one byte for each level take a quarter of the time to copy. If the last operation
        is another, or is not finite for every level: this transform, and None.
        """
        *ops, last = self.ops
        kind = functools.reduce(lambda kind, op: op.gives(kind), ops, STORED)
        if not isinstance(last, Scaling) or kind != UINT8 or self.shape is None:
            return self, None
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(self.shape[-1], axis=-1)
        try:
            with np.errstate(all="ignore"):
                is_finite = np.isfinite(last(levels)).all()
        except ConfigError:  # Other channels: the transform says so, of an example.
            return self, None
        return (
            (dataclasses.replace(self, ops=tuple(ops), gives=kind), last)
            if is_finite
            else (self, None)
        )


def compose(
    transforms: Iterable[Any],
    *,
    image_size: Iterable[int] | int,
    channels: int | None = None,
    key: str = "transforms",
    decode: str = EXACT,
    cache: DecodedCache | None = None,
) -> ComposedTransform:
    """Checks transforms and composes them to a function.

    Args:
      transforms: dicts {"op": name in `OPS`, **arguments}; the first is decode.
      image_size: side, or (side,), or (height, width), in pixels; the default of every `size`.
      channels: the model's channels: the transformed images must be normalised and have
        `image_size` and these channels. None: no such check.
      key: the config key of the transforms, for messages.
      decode: "exact" or "fast", see `config.data.decode`.
      cache: keeps decoded images; with decode "exact". None: no cache.

    Returns:
      A function of (example, random generator) that can be pickled.

    Raises:
      ConfigError: an unknown operation or argument, an invalid value, an operation on a kind of
        images that it does not accept, or images for a model that are not normalised.
    """
    image_size = _height_width(image_size, where="image_size")
    ops: list[Op] = []
    kind, previous = STORED, ""
    for i, entry in enumerate(transforms):
        if not isinstance(entry, Mapping):
            raise ConfigError(f'{key}[{i}] is {entry!r}: write {{"op": "resize", "size": 224}}.')
        entry = dict(entry)
        name = entry.pop("op", None)
        where = f'{key}[{i}] ("{name}")'
        if not isinstance(name, str) or name not in OPS:
            hint = did_you_mean(str(name), OPS, see="vit-jax transforms")
            raise ConfigError(f"{where}: no such operation. {hint}")
        op = _make(OPS[name], entry, image_size=image_size, where=where)
        if kind not in op.takes:
            raise ConfigError(f"{where} {_order_problem(op, kind, previous)}")
        ops.append(op)
        kind, previous = op.gives(kind), name
    crop = _decoded_crop(ops, decode=decode, key=key)
    if channels is None:
        return ComposedTransform(tuple(ops), kind, key, decoded_crop=crop, cache=cache)
    if kind != FLOAT:
        raise ConfigError(
            f"{key} end with images that are {kind}, but a model takes {FLOAT}: add value_range or "
            "normalize."
        )
    return ComposedTransform(tuple(ops), kind, key, (*image_size, channels), crop, cache)


def _decoded_crop(ops: list[Op], *, decode: str, key: str) -> DecodedCrop | None:
    match ops:
        case [Decode() as first, geometry.RandomResizedCrop() as crop, *_]:
            return DecodedCrop(
                channels=first.channels, exif=first.exif, crop=crop, is_fast=decode == FAST
            )
    if decode == FAST:
        raise ConfigError(
            f'data.decode is "{FAST}", which is for {key} that begin with decode and '
            f"random_resized_crop. Set data.decode={EXACT}."
        )
    return None


def _make(
    cls: type[Op], arguments: dict[str, Any], *, image_size: tuple[int, int], where: str
) -> Op:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in arguments:
        if key not in fields:
            hint = did_you_mean(key, fields) if fields else "It takes none."
            raise ConfigError(f'{where}: no such argument, "{key}". {hint}')
    if "size" in fields:
        size = arguments.get("size")
        size = image_size if size is None else _height_width(size, where=f"{where}: size")
        arguments = {**arguments, "size": size}
    try:
        return cls(**{k: _typed(k, v, fields[k].type) for k, v in arguments.items()})
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from e


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Converts a value to its field's type: int to float, and JSON's lists to tuples."""
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, v, typing.get_args(hint)[0]) for v in value)
    is_bool = isinstance(value, bool)  # In Python, bool is a subclass of int.
    if hint is float and isinstance(value, int) and not is_bool:
        return float(value)
    if typing.get_origin(hint) is tuple or not isinstance(value, hint) or is_bool != (hint is bool):
        expected = hint.__name__ if isinstance(hint, type) else hint
        raise ConfigError(f"{name}: {value!r} should be {expected}.")
    return value


def _height_width(size: Any, *, where: str) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, Iterable) else (size, size)
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise ConfigError(f"{where}={size!r} should be a side or (height, width), in pixels.")
    if math.prod(pair) > MAX_PIXELS:
        raise ConfigError(f"{where}={size!r} is more than {MAX_PIXELS:,} pixels.")
    return pair


def _order_problem(op: Op, kind: str, previous: str) -> str:
    if not previous:
        return "comes first, but that must be decode, which takes both files and arrays."
    if op.takes == (STORED,):
        return "must come first, and only once."
    return (
        f"takes images that are {' or '.join(op.takes)}; after {previous} they are {kind}. "
        f"Move it to before {previous}."
    )
