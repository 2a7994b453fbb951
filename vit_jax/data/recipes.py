"""Published transforms as config data: AugReg's levels, and evaluation in each code base."""

from typing import Any

from vit_jax.errors import ConfigError, did_you_mean

Transforms = tuple[dict[str, Any], ...]

# Level -> RandAugment's layers and magnitude, Mixup's alpha (Steiner et al., arXiv 2106.10270).
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
    """Returns the augmentation of "How to train your ViT?" (AugReg).

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
    """Returns the evaluation transforms of a code base, with identical bits where possible.

    Args:
      style: the code base: a key of `EVALUATION`.
      resize: for styles that crop: the shorter side before the centre crop, in pixels (usually 256
        for 224), or a (height, width) to cover. Left out: the model's size, so only the longer side
        is cropped.
      exif: whether to apply the EXIF orientation. Left out: as in the code base.

    Returns:
      Transforms for `config.data.eval_transforms`.

    Raises:
      ConfigError: no such style, or a `resize` for a style that does not crop.
    """
    if style not in EVALUATION:
        raise ConfigError(
            f'There is no style of evaluation "{style}". {did_you_mean(style, EVALUATION)}'
        )
    transforms = tuple(dict(entry) for entry in EVALUATION[style])
    if exif is not None:
        transforms[0]["exif"] = exif
    if resize is not None:
        small = [entry for entry in transforms if entry["op"] == "resize_small"]
        if not small:
            raise ConfigError(f'Evaluation "{style}" does not crop: omit resize.')
        small[0]["size"] = resize
    return transforms


def _resize(**arguments: Any) -> dict[str, Any]:
    return {"op": "resize", **arguments}


def _resize_small(**arguments: Any) -> dict[str, Any]:
    return {"op": "resize_small", **arguments}


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
        _resize(antialias=False, rounding="none"),
        _RANGE,
    ),
    # google-research/big_vision, resize_small(256)|central_crop(224)|value_range(-1, 1).
    "big_vision": (_DECODE_AS_STORED, _resize_small(method="area", rounding="down"), _CROP, _RANGE),
    # The same, resize(224)|value_range(-1, 1).
    "big_vision_squash": (_DECODE_AS_STORED, _resize(antialias=False, rounding="down"), _RANGE),
    # Hugging Face: ViTImageProcessor and DeiTImageProcessor's relatives, by checkpoint family.
    "hf_vit": (_DECODE, _resize(), _RANGE),
    "hf_siglip": (_DECODE, _resize(method="bicubic"), _RANGE),
    "hf_dinov2": (_DECODE, _resize_small(method="bicubic", long_side="down"), _CROP, _IMAGENET),
    "hf_dinov3": (_DECODE, _resize(rounding="none"), _IMAGENET),
    # DINOv3's README. Its evaluation code is that of DINOv2.
    "dinov3": (_DECODE_AS_STORED, _resize(), _IMAGENET),
    # timm's ViTs from Google; timm_imagenet: its DeiT, DINO and MAE.
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
