"""The evaluation preprocessing of a checkpoint's publisher, as transforms.

The transforms come from the JSON file of the checkpoint (`from_hf`, `from_timm`), or, if it has
none, from the publisher's code (`from_family`). `Preprocess` applies them.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from vit_jax.data.color import IMAGENET_MEAN, IMAGENET_STD, Normalize, ValueRange
from vit_jax.data.decode import decode_pillow
from vit_jax.data.op import Op
from vit_jax.data.reading import read_file
from vit_jax.data.recipes import Transforms, evaluation
from vit_jax.data.transforms import ComposedTransform, Decode, compose
from vit_jax.errors import CheckpointError, ConfigError, DataError, did_you_mean
from vit_jax.pretrained.image_inputs import ImageInput, ImageInputs, as_list, name_of
from vit_jax.pretrained.preprocess_fields import Fields

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Defaults of each image processor class. default_to_square: whether a size of one number is the
# side of a square, else the shorter side.
# Source: transformers 5.23, models/{vit,deit,bit,clip,siglip,dinov3_vit}/image_processing_*.py.
_HF_CLASSES: dict[str, dict[str, Any]] = {
    "ViT": {"resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "DeiT": {
        "resample": 3, "image_mean": _HALF, "image_std": _HALF,
        "size at 224": {"height": 256, "width": 256}, "do_center_crop": True,
    },
    "Bit": {
        "resample": 3, "image_mean": _CLIP[0], "image_std": _CLIP[1],
        "size at 224": {"shortest_edge": 224}, "do_center_crop": True, "default_to_square": False,
    },
    "Siglip": {
        "resample": 3, "image_mean": _HALF, "image_std": _HALF, "default_to_square": False,
    },
    "DINOv3ViT": {"resample": 2, "image_mean": _IMAGENET[0], "image_std": _IMAGENET[1]},
}  # fmt: skip
_HF_CLASSES["CLIP"] = _HF_CLASSES["Bit"]
_IMAGENET_FIELDS = {"image_mean": _IMAGENET[0], "image_std": _IMAGENET[1]}
# model_type -> the class of its image processor (AutoImageProcessor's choice), and the fields of
# the family's published files that differ from the defaults of that class. Sources: for DeiT and
# MSN the conversion scripts in transformers; for MAE and DINOv2 the evaluation of Facebook's code.
_HF_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {}),
    "deit": ("DeiT", _IMAGENET_FIELDS),
    "vit_mae": ("ViT", _IMAGENET_FIELDS | {"image_processor_type": "BitImageProcessor"}),
    "vit_msn": ("ViT", _IMAGENET_FIELDS),
    "ijepa": ("ViT", {}),
    "dinov2": ("Bit", _IMAGENET_FIELDS),
    "dinov2_with_registers": ("Bit", _IMAGENET_FIELDS),
    "dinov3_vit": ("DINOv3ViT", {}),
    "siglip_vision_model": ("Siglip", {}),
}
_HF_FILE = "preprocessor_config.json"
_HF_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's codes.

_TIMM_INTERPOLATION = {name: name for name in ("nearest", "bilinear", "bicubic")}


def from_hf(
    preprocessor: Any, *, image_size: tuple[int, int], model_type: str = "vit"
) -> Transforms:
    """Returns the transforms that a preprocessor_config.json describes, with explicit sizes.

    Args:
      preprocessor: parsed content of the file, of any version of transformers.
      image_size: (height, width) of the model, the default for sizes that the file lacks.
      model_type: from config.json; decides the image processor class if the file names none.

    Raises:
      CheckpointError: the content is not an object, or a value is invalid or not supported.
    """
    kind = _hf_class(Fields(_HF_FILE, preprocessor, {}), default=_HF_FAMILIES[model_type][0])
    fields = Fields(_HF_FILE, preprocessor, _HF_CLASSES[kind])
    square = fields.flag("default_to_square", True)
    default_size = _scaled(fields.default("size at 224", {}), image_size)
    resize_to = fields.size("size", default_size or image_size, square=square)
    method = fields.choice("resample", _HF_RESAMPLE)
    ops: list[dict[str, Any]] = [{"op": "decode"}]
    if fields.flag("do_resize", True):
        # DINOv3's processor rescales before it resizes, so it does not round to 256 levels.
        exact = kind == "DINOv3ViT" and fields.flag("do_rescale", True)
        rounding = {"rounding": "none"} if exact else {}
        ops.append(_resize(resize_to, method=method, **rounding))
    if fields.flag("do_center_crop", False):
        crop = fields.size("crop_size", image_size, square=True)
        if "shortest_edge" in crop:
            raise fields.error("crop_size", "height and width", crop)
        side = crop["height"], crop["width"]
        if not fields.flag("do_resize", True) or not _covers(resize_to, crop):
            # transformers' centre crop pads smaller images with zeros.
            ops.append({"op": "pad", "size": side})
        ops.append({"op": "center_crop", "size": side})
    if fields.flag("do_pad", False):
        raise fields.error(
            "do_pad", "false (padding after the normalisation is not supported)", True
        )
    return (*ops, _normalize(*_hf_statistics(fields)))


def published_processor(model_type: str, *, image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns the preprocessor_config.json of a family, for a folder that has none.

    The published sizes are scaled to the model's `image_size`, (height, width).
    """
    kind, fields = _HF_FAMILIES[model_type]
    content = {"image_processor_type": f"{kind}ImageProcessor", **fields}
    if content["image_processor_type"] != "BitImageProcessor":
        return content
    if image_size == (518, 518):  # DINOv2 has positions for 518 pixels, but is evaluated at 224.
        image_size = (224, 224)
    return content | {
        "size": {"shortest_edge": round(max(image_size) * 256 / 224)},
        "crop_size": list(image_size),
    }


def _hf_class(fields: Fields, *, default: str) -> str:
    """Returns the key of `_HF_CLASSES` that a file names, or `default`: the oldest name none."""
    name = fields.text("feature_extractor_type", f"{default}FeatureExtractor")
    name = fields.text("image_processor_type", name)
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    if kind not in _HF_CLASSES:
        classes = ", ".join(f"{kind}ImageProcessor" for kind in _HF_CLASSES)
        raise fields.error("image_processor_type", f"one of {classes}", name)
    return kind


def _scaled(size: Mapping[str, int], image_size: tuple[int, int]) -> dict[str, int]:
    """Scales a class's default size, which is for images of 224 pixels, to an image size."""
    sides = {"height": image_size[0], "width": image_size[1], "shortest_edge": max(image_size)}
    return {key: round(value * sides[key] / 224) for key, value in size.items()}


def _covers(resize: Mapping[str, int], crop: Mapping[str, int]) -> bool:
    short = resize.get("shortest_edge", 0)
    return all(resize.get(key, short) >= crop[key] for key in ("height", "width"))


def _resize(size: Mapping[str, int], **kwargs: Any) -> dict[str, Any]:
    if "shortest_edge" in size:
        return {"op": "resize_small", "size": size["shortest_edge"], "long_side": "down", **kwargs}
    return {"op": "resize", "size": (size["height"], size["width"]), **kwargs}


def _hf_statistics(fields: Fields) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean m and standard deviation s for levels in 0..1.

    They satisfy (level / 255 - m) / s == (level * factor - offset - mean) / std.
    """
    factor = fields.number("rescale_factor", 1 / 255, low=1e-6, high=1e3)
    factor = 255 * factor if fields.flag("do_rescale", True) else 255.0
    mean, std = fields.statistics("image_mean"), fields.statistics("image_std", low=1e-6)
    if not fields.flag("do_normalize", True):
        mean, std = (0.0,), (1.0,)
    if len(mean) != len(std):
        raise fields.error("image_std", f"{len(mean)} numbers, as image_mean has", std)
    offset = 1.0 if fields.flag("rescale_offset", False) else 0.0
    return tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std)


def _normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    if set(mean) == set(std) == {0.5}:
        return {"op": "value_range"}
    return {"op": "normalize", "mean": mean, "std": std}


def from_timm(pretrained_cfg: Any) -> Transforms:
    """Returns the transforms that timm's pretrained_cfg describes, with explicit sizes.

    Args:
      pretrained_cfg: input_size [channels, height, width], and optional keys with timm's defaults
        (timm 1.0, data/config.py): bicubic, crop_pct .875, ImageNet's statistics.

    Raises:
      CheckpointError: the content is not an object, or a value is invalid or not supported.
    """
    fields = Fields(
        "pretrained_cfg",
        pretrained_cfg,
        {"interpolation": "bicubic", "crop_mode": "center", "mean": _IMAGENET[0],
         "std": _IMAGENET[1]},
    )  # fmt: skip
    size = fields.shape("input_size", (3, 224, 224))[1:]
    crop_pct = fields.number("crop_pct", 0.875, low=0.01, high=1.0)
    method = fields.choice("interpolation", _TIMM_INTERPOLATION)
    mode = fields.choice("crop_mode", {"center": "resize_small", "squash": "resize"})
    resize_to = tuple(math.floor(side / crop_pct) for side in size)
    resize = {"op": mode, "size": resize_to, "method": method}
    if mode == "resize_small":  # timm rounds the longer side differently for non-square targets.
        resize["long_side"] = "down" if resize_to[0] == resize_to[1] else "nearest"
    mean, std = fields.statistics("mean"), fields.statistics("std", low=1e-6)
    if len(mean) != len(std):
        raise fields.error("std", f"{len(mean)} numbers, as mean has", std)
    return (
        {"op": "decode", "exif": False},
        resize,
        {"op": "center_crop", "size": size, "offset": "half_even"},
        _normalize(mean, std),
    )


def _timm_side(side: int) -> int:
    # The default_cfgs of timm's ViTs: crop_pct is .9, and 1 from 384 pixels on.
    return side if side >= 384 else math.floor(side / 0.9)


# Family -> its evaluation (a key of `vit_jax.data.recipes.EVALUATION`), and a function from the
# side after the crop to the side before it (None: the recipe does not crop).
_FAMILIES: dict[str, tuple[str, Callable[[int], int] | None]] = {
    # google-research/vision_transformer, whatever the size.
    "google": ("vision_transformer", None),
    # google-research/big_vision: resize_small(256)|central_crop(224); its SigLIP and BiT squash.
    "big_vision": ("big_vision", lambda side: round(side * 256 / 224)),
    "siglip": ("big_vision_squash", None),
    "bit": ("big_vision_squash", None),
    "timm": ("timm", _timm_side),
    "timm_imagenet": ("timm_imagenet", _timm_side),
    # facebookresearch/deit, datasets.py with --eval-crop-ratio .875; DeiT III asks for 1.
    "deit": ("timm_imagenet", lambda side: int(side / 0.875)),
    "deit3": ("timm_imagenet", lambda side: side),
    # facebookresearch/mae, util/datasets.py.
    "mae": ("timm_imagenet", lambda side: int(side * 256 / 224) if side <= 224 else side),
    # facebookresearch/dinov2, data/transforms.py: 256, then 224.
    "dinov2": ("timm_imagenet", lambda side: round(side * 256 / 224)),
    # facebookresearch/dinov3, README.
    "dinov3": ("dinov3", None),
    # torchvision's V1 weights, and those of SWAG.
    "torchvision": ("torchvision", lambda side: round(side * 256 / 224)),
    "torchvision_swag": ("timm_imagenet", lambda side: side),
}


def from_family(family: str, *, image_size: tuple[int, int]) -> Transforms:
    """Returns the evaluation transforms of a publisher's code, for checkpoints without a JSON file.

    `family` is a key of `_FAMILIES`, such as "google" or "dinov2"; `image_size` is (height, width).

    Raises:
      CheckpointError: the family is unknown.
    """
    if family not in _FAMILIES:
        raise CheckpointError(f'No family "{family}". {did_you_mean(family, _FAMILIES)}')
    style, side_before_crop = _FAMILIES[family]
    resize = None
    if side_before_crop is not None:
        height, width = image_size
        resize = side_before_crop(height), side_before_crop(width)
    return tuple(
        {**op, "size": image_size} if op["op"] in ("resize", "center_crop") else op
        for op in evaluation(style, resize=resize)
    )


def output_size(transforms: Transforms) -> tuple[int, int] | None:
    """Returns the (height, width) that transforms make; None if they name no size."""
    sizes = [op.get("size") for op in transforms if op["op"] in ("resize", "pad", "center_crop")]
    if not sizes or sizes[-1] is None:
        return None
    height, width = np.broadcast_to(sizes[-1], 2).tolist()
    return height, width


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Prepares images for a model.

    Attributes:
      transforms: begin with decode, and make images of `image_size`.
      image_size: (height, width) in pixels.
      channels: of the model, 3 or 1; the default for decode.
    """

    transforms: Transforms
    image_size: tuple[int, int]
    channels: int = 3

    def __post_init__(self) -> None:
        try:
            _ = self.transform  # Built here, so that invalid transforms raise here.
        except ConfigError as error:
            raise CheckpointError(
                f"The checkpoint's preprocessing cannot be done: {error}"
            ) from error

    @functools.cached_property
    def transform(self) -> ComposedTransform:
        """The composed transforms, of one example."""
        first, *rest = self.transforms
        return compose(
            [{"channels": self.channels, **first}, *rest],
            image_size=self.image_size,
            channels=self.channels,
            key="preprocessing",
        )

    @property
    def ops(self) -> tuple[Op, ...]:
        """The operations, with explicit sizes and defaults."""
        return self.transform.ops

    def __call__(self, images: ImageInputs) -> Float32[np.ndarray, "b h w c"]:
        """Returns a batch of prepared images.

        Args:
          images: a path, a Pillow image, or uint8 pixels [h, w] or [h, w, c]; or a list of these,
            or uint8 pixels [n, h, w, c].

        Raises:
          DataError: the list is empty, or an image is broken or not an image; the message says
            which.
        """
        return np.stack([self.prepare(image, i) for i, image in enumerate(as_list(images))])

    def restored(
        self, images: Float[np.ndarray | Array, "b h w c"]
    ) -> UInt8[np.ndarray, "b h w c"]:
        """Returns the pixels of prepared images: undoes their scaling, not their crop."""
        values, last = np.asarray(images, np.float32), self.ops[-1]
        if isinstance(last, Normalize):
            values = values * np.asarray(last.std, np.float32) + np.asarray(last.mean, np.float32)
        elif isinstance(last, ValueRange):
            values = (values - last.vmin) / (last.vmax - last.vmin)
        else:  # Transforms of one's own: the range of each image.
            low, high = (f(values, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
            values = (values - low) / np.maximum(high - low, 1e-12)
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)

    def prepare(self, image: ImageInput, index: int = 0) -> Float32[np.ndarray, "h w c"]:
        """Returns one prepared image; errors name it by its path or `index`."""
        rng = np.random.default_rng(0)  # Required, but evaluation transforms are deterministic.
        try:
            return self.transform({"image": self._encoded(image)}, rng)["image"]
        except DataError as error:
            raise DataError(f"{name_of(image, index)}: {error}") from error

    def _encoded(self, image: ImageInput) -> bytes | UInt8[np.ndarray, "..."] | np.ndarray:
        """Returns an image in a form that the decode transform accepts: encoded bytes or pixels."""
        if isinstance(image, Image.Image):
            decode = self.ops[0]
            assert isinstance(decode, Decode)  # `transforms` begin with decode.
            return decode_pillow(image, channels=decode.channels, exif=decode.exif)
        if isinstance(image, str | os.PathLike):
            return read_file(image)
        return np.asarray(image)

    def for_size(self, size: Iterable[int]) -> "Preprocess":
        """Returns a copy for another (height, width); all sizes are scaled and rounded."""
        height, width = size
        ratio = height / self.image_size[0], width / self.image_size[1]

        def scale(op: dict[str, Any]) -> dict[str, Any]:
            if op.get("size") is None:
                return op
            pair = np.broadcast_to(op["size"], 2)
            return {
                **op,
                "size": tuple(round(s * r) for s, r in zip(pair.tolist(), ratio, strict=True)),
            }

        return Preprocess(tuple(map(scale, self.transforms)), (height, width), self.channels)


def preprocess(
    images: ImageInputs,
    *,
    image_size: int | tuple[int, int] = 224,
    family: str = "timm_imagenet",
) -> Float32[np.ndarray, "b h w c"]:
    """Returns a batch of images, prepared as a publisher evaluates its models.

    A loaded model has its own: `load_pretrained(...).preprocess`.

    Args:
      images: a path, a Pillow image, or uint8 pixels [h, w] or [h, w, c]; or a list of these, or
        uint8 pixels [n, h, w, c].
      image_size: side, or (height, width), in pixels.
      family: google, big_vision, siglip, bit, timm, timm_imagenet, deit, deit3, mae, dinov2,
        dinov3, torchvision or torchvision_swag.

    Raises:
      CheckpointError: the family is unknown.
      DataError: the list is empty, or an image is broken or not an image.

    Example:
      >>> preprocess([np.zeros((40, 60, 3), np.uint8)], image_size=32, family="google").shape
      (1, 32, 32, 3)
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return Preprocess(from_family(family, image_size=size), size)(images)
