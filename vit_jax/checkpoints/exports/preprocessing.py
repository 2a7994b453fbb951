"""Transforms as the JSON that Hugging Face and timm keep beside a model."""

import math
from typing import Any

from vit_jax.data.recipes import Transforms
from vit_jax.errors import CheckpointError

_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's codes.
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def to_hf(
    transforms: Transforms, *, processor: str, image_size: tuple[int, int], channels: int
) -> dict[str, Any]:
    """The content of preprocessor_config.json.

    What transformers cannot do, resizing without antialiasing or by areas, becomes the same
    method with it; a crop that would begin at half a pixel begins where they round it to, which
    is a pixel beside timm's for every other difference of sides.

    Args:
      transforms: with explicit sizes.
      processor: name of the image processor's class, without "ImageProcessor".
      image_size: of the model: what is made of pictures where the transforms resize nothing.
      channels: of the model.
    """
    mean, std = _statistics(transforms, channels)
    resize = _resize(transforms, image_size)
    crop = _operation(transforms, "center_crop")
    content: dict[str, Any] = {
        "image_processor_type": f"{processor}ImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "resample": _RESAMPLE[_method(resize)],
    }
    if resize["op"] == "resize_small":
        content["size"] = {"shortest_edge": min(_pair(resize["size"]))}
    else:
        content["size"] = dict(zip(("height", "width"), _pair(resize["size"]), strict=True))
    if crop:
        size = dict(zip(("height", "width"), _pair(crop["size"]), strict=True))
        content |= {"do_center_crop": True, "crop_size": size}
    return content


def to_timm(
    transforms: Transforms, *, image_size: tuple[int, int], channels: int
) -> dict[str, Any]:
    """What timm calls pretrained_cfg, without what names the model."""
    mean, std = _statistics(transforms, channels)
    resize = _resize(transforms, image_size)
    side, before = min(image_size), min(_pair(resize["size"]))
    share = side / before
    if math.floor(side / share) != before:  # As timm rounds.
        share = math.nextafter(share, 0)
    return {
        "input_size": [channels, *image_size],
        "interpolation": _method(resize),
        "crop_pct": share,
        "crop_mode": "center" if resize["op"] == "resize_small" else "squash",
        "mean": mean,
        "std": std,
    }


def _operation(transforms: Transforms, *names: str) -> dict[str, Any]:
    return next((dict(op) for op in transforms if op["op"] in names), {})


def _resize(transforms: Transforms, image_size: tuple[int, int]) -> dict[str, Any]:
    found = _operation(transforms, "resize", "resize_small")
    return found or {"op": "resize", "size": image_size}


def _method(resize: dict[str, Any]) -> str:
    method = resize.get("method", "bilinear")
    return method if method in _RESAMPLE else "bilinear"


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _statistics(transforms: Transforms, channels: int) -> tuple[list[float], list[float]]:
    last = transforms[-1]
    if last["op"] == "value_range":
        return [0.5] * channels, [0.5] * channels
    if last["op"] != "normalize":
        raise CheckpointError(f"Pictures are prepared by {last['op']} at last: not expressible.")
    return list(last.get("mean", _IMAGENET[0])), list(last.get("std", _IMAGENET[1]))
