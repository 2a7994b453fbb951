"""Published transforms, as config data: AugReg's levels, and how each code base evaluates."""

from typing import Any

from vit_jax.errors import ConfigError, did_you_mean

Transforms = tuple[dict[str, Any], ...]

# Level -> RandAugment's layers and magnitude, mixup's alpha (Steiner et al., arXiv 2106.10270).
AUGREG_LEVELS = {
    "none": (0, 0, 0.0),
    "light1": (2, 0, 0.0),
    "light2": (2, 10, 0.2),
    "medium1": (2, 15, 0.2),
    "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5),
    "strong2": (2, 20, 0.8),
}


def augreg(level: str) -> tuple[Transforms, float]:
    """The augmentation of "How to train your ViT?" (AugReg).

    Args:
      level: a key of `AUGREG_LEVELS`, from none to strong2.

    Returns:
      Transforms for `config.data.train_transforms`, and the alpha for `config.mix.mixup_alpha`.

    Raises:
      ConfigError: no such level.
    """
    if level not in AUGREG_LEVELS:
        raise ConfigError(f'AugReg has no level "{level}". {did_you_mean(level, AUGREG_LEVELS)}')
    layers, magnitude, mixup_alpha = AUGREG_LEVELS[level]
    randaugment = {"op": "randaugment", "num_layers": layers, "magnitude": magnitude}
    return (
        {"op": "decode"},
        {"op": "random_resized_crop", "area": (0.05, 1.0)},
        {"op": "flip_lr"},
        *([randaugment] if layers else []),
        {"op": "value_range"},
    ), mixup_alpha


def evaluation(
    style: str, *, resize: int | tuple[int, int] | None = None, exif: bool | None = None
) -> Transforms:
    """How a code base prepares images for evaluation, to the bit where that is possible.

    Args:
      style: whose: a key of `EVALUATION`.
      resize: shorter side before the centre crop, in pixels, for the styles that crop: commonly
        256 for 224; or (height, width) that is covered. Left out: the model's size, nothing but
        the longer side's ends is cut off.
      exif: whether to turn images as their EXIF says. Left out: as the code base does.

    Returns:
      Transforms for `config.data.eval_transforms`.

    Raises:
      ConfigError: no such style, or a `resize` for one that does not crop.
    """
    if style not in EVALUATION:
        raise ConfigError(
            f'"{style}" is no known way of evaluation. {did_you_mean(style, EVALUATION)}'
        )
    transforms = tuple(dict(entry) for entry in EVALUATION[style])
    if exif is not None:
        transforms[0]["exif"] = exif
    if resize is not None:
        small = [entry for entry in transforms if entry["op"] == "resize_small"]
        if not small:
            raise ConfigError(f'Evaluation "{style}" squashes and does not crop: omit resize.')
        small[0]["size"] = resize
    return transforms


def _squash(**how: Any) -> dict[str, Any]:
    return {"op": "resize", **how}


def _resize_small(**how: Any) -> dict[str, Any]:
    return {"op": "resize_small", **how}


_DECODE = {"op": "decode"}
_DECODE_AS_STORED = {"op": "decode", "exif": False}
_CROP = {"op": "center_crop"}
_CROP_TORCHVISION = {"op": "center_crop", "offset": "half_even"}
_RANGE = {"op": "value_range"}
_IMAGENET = {"op": "normalize"}

EVALUATION: dict[str, Transforms] = {
    # google-research/vision_transformer.
    "vision_transformer": (
        _DECODE_AS_STORED,
        _squash(antialias=False, rounding="none"),
        _RANGE,
    ),
    # google-research/big_vision, resize_small(256)|central_crop(224)|value_range(-1, 1).
    "big_vision": (_DECODE_AS_STORED, _resize_small(method="area", rounding="down"), _CROP, _RANGE),
    # The same, resize(224)|value_range(-1, 1).
    "big_vision_squash": (_DECODE_AS_STORED, _squash(antialias=False, rounding="down"), _RANGE),
    # Hugging Face: ViTImageProcessor and DeiTImageProcessor's relatives, by checkpoint family.
    "hf_vit": (_DECODE, _squash(), _RANGE),
    "hf_siglip": (_DECODE, _squash(method="bicubic"), _RANGE),
    "hf_dinov2": (_DECODE, _resize_small(method="bicubic", long_side="down"), _CROP, _IMAGENET),
    "hf_dinov3": (_DECODE, _squash(rounding="none"), _IMAGENET),
    # DINOv3's README; its evaluation code does as DINOv2's.
    "dinov3": (_DECODE_AS_STORED, _squash(), _IMAGENET),
    # timm's ViTs that came from Google; with ImageNet's statistics its DeiT, DINO and MAE.
    "timm": (
        _DECODE_AS_STORED,
        _resize_small(method="bicubic", long_side="down"),
        _CROP_TORCHVISION,
        _RANGE,
    ),
    "timm_imagenet": (
        _DECODE_AS_STORED,
        _resize_small(method="bicubic", long_side="down"),
        _CROP_TORCHVISION,
        _IMAGENET,
    ),
    "torchvision": (
        _DECODE_AS_STORED,
        _resize_small(long_side="down"),
        _CROP_TORCHVISION,
        _IMAGENET,
    ),
}
