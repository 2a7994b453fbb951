"""Preprocessing as the JSON of transformers and timm.

Both libraries have one pipeline: resize, centre crop, normalise. A model's transforms are converted
to that form (`Pipeline`), with explicit sizes and defaults. The JSON is written so that the library
computes the same pixels; transforms that it cannot express are `Reasons` not to export. They state
differences in levels of 256, measured on six photographs that are resized to 256 and cut to 224.
Sources: transformers 5.23, image_processing_backends.py (TorchvisionBackend, which
AutoImageProcessor prefers); timm 1.0.31, data/transforms_factory.py (transforms_imagenet_eval).
"""

import dataclasses
import math
from typing import Any

import numpy as np

from vit_jax.data.color import GrayscaleToRgb, Normalize, RgbToGrayscale, ValueRange
from vit_jax.data.geometry import CenterCrop, Pad, Resize, ResizeSmall
from vit_jax.data.op import Op
from vit_jax.data.transforms import OPS, Decode
from vit_jax.pretrained.exports.base import Reasons
from vit_jax.pretrained.preprocess import Preprocess

_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's codes.
_NAMES = {cls: name for name, cls in OPS.items()}
_LEVELS = (
    "{library} rounds a resized image to 256 levels; the resize has rounding='none', not "
    "'nearest': pixels differ by at most a level"
)
# torchvision's 8-bit kernels have coarser weights than Pillow's. Measured with torchvision 0.28 and
# transformers 5.23 on nine photographs: 0.3% of the values differ at 224 pixels, 5% (bilinear) or
# 6% (bicubic) at 64, most by a level, at most by two (bilinear) or four; black and white noise by
# up to 26 levels (bicubic).
_BACKEND = (
    "transformers with torchvision, its default, rounds some resized pixels to another level than "
    'Pillow; AutoImageProcessor.from_pretrained(..., backend="pil") gives the model\'s pixels'
)
_STAGES = (Resize, Pad, CenterCrop)  # In this order, each at most once.


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Transforms in the only form that the libraries have.

    Attributes:
      image_size: (height, width) of the result, the model's.
      channels: number of channels of the model.
      exif: whether images are rotated as their EXIF orientation says.
      resize, pad, crop: the operations; None if absent or without an effect.
      mean, std: one number for each channel; a level becomes (level / 255 - mean) / std.
      others: names of the operations that do not fit this form.
    """

    image_size: tuple[int, int]
    channels: int
    exif: bool
    resize: Resize | None
    pad: Pad | None
    crop: CenterCrop | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    others: tuple[str, ...]

    @property
    def keeps_aspect(self) -> bool:
        """Whether the resize keeps the aspect ratio, so that margins depend on the image."""
        return isinstance(self.resize, ResizeSmall)

    def impossible(self) -> list[str]:
        """Returns the reasons that hold for both libraries."""
        return [
            f"its preprocessing has {name}, which the JSON cannot express" for name in self.others
        ]

    def crops_alike(self, offset: str) -> bool:
        """Returns whether a centre crop with this rounding `offset` cuts the same pixels."""
        if self.crop is None or self.crop.offset == offset:
            return True
        if self.resize is None or self.keeps_aspect or self.pad is not None:
            return False
        margins = np.subtract(self.resize.size, self.crop.size)
        return all(m // 2 == round(m / 2) for m in margins.tolist())


def pipeline(preprocess: Preprocess) -> Pipeline:
    """Converts a model's transforms to a pipeline, without operations that have no effect."""
    decode, *ops = preprocess.ops
    assert isinstance(decode, Decode)  # `Preprocess.transforms` begin with it.
    stages: dict[type[Op], Any] = {}
    others: list[str] = []
    mean, std = (), ()
    for op in ops:
        stage = next((cls for cls in _STAGES if isinstance(op, cls)), None)
        if isinstance(op, ValueRange | Normalize):
            mean, std = _statistics(op, preprocess.channels)
        elif stage and not any(cls in stages for cls in _STAGES[_STAGES.index(stage) :]):
            stages[stage] = op
        elif not _has_no_effect(op, decode.channels):
            order = " after another resize, pad or crop" if stage else ""
            others.append(_NAMES[type(op)] + order)
    resize, pad, crop = (stages.get(cls) for cls in _STAGES)
    if pad is not None and _covers(resize, pad.size):
        pad = None
    if pad is not None and crop is None:
        crop = CenterCrop(size=pad.size)  # The model accepts no larger images.
    if pad is not None and crop is not None and pad.size != crop.size:
        others.append("pad to another size than center_crop's")
    if crop is not None and type(resize) is Resize and resize.size == crop.size:
        crop = None
    if pad is not None and pad.fill:
        others.append(f"pad with fill={pad.fill}, not 0")
    if decode.channels != preprocess.channels:
        others.append(f"decode to {decode.channels} channels for a model of {preprocess.channels}")
    return Pipeline(
        image_size=preprocess.image_size,
        channels=preprocess.channels,
        exif=decode.exif,
        resize=resize,
        pad=pad,
        crop=crop,
        mean=mean,
        std=std,
        others=tuple(others),
    )


def _has_no_effect(op: Op, channels: int) -> bool:
    gray = isinstance(op, RgbToGrayscale) and channels == 1
    return gray or (isinstance(op, GrayscaleToRgb) and channels == 3)


def _covers(resize: Resize | None, size: tuple[int, int]) -> bool:
    return resize is not None and bool(np.all(np.greater_equal(resize.size, size)))


def _statistics(op: ValueRange | Normalize, channels: int) -> tuple[tuple[float, ...], ...]:
    """Returns mean and standard deviation for each channel, of levels in 0..1."""
    if isinstance(op, ValueRange):
        width = op.vmax - op.vmin
        return (-op.vmin / width,) * channels, (1 / width,) * channels
    return tuple(tuple(np.broadcast_to(v, channels).tolist()) for v in (op.mean, op.std))


def to_hf(preprocess: Preprocess, *, processor: str) -> tuple[dict[str, Any], Reasons]:
    """Returns the content of preprocessor_config.json, and reasons for different pixels.

    Args:
      preprocess: the model's preprocessing.
      processor: class of the image processor if there is no crop, without "ImageProcessor".
    """
    steps = pipeline(preprocess)
    resize, crop = steps.resize, steps.crop
    if crop is not None:
        processor = "Bit"  # Before version 5 the other classes do not crop.
    if resize is not None and _is_hf_exact(resize):
        processor = "DINOv3ViT"  # The only one that resizes without rounding to 256 levels.
    content: dict[str, Any] = {
        "image_processor_type": f"{processor}ImageProcessor",
        "do_resize": resize is not None,
        "do_center_crop": crop is not None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(steps.mean),
        "image_std": list(steps.std),
    }
    if resize is not None:
        sides = dict(zip(("height", "width"), resize.size, strict=True))
        content["size"] = {"shortest_edge": max(resize.size)} if steps.keeps_aspect else sides
        content["resample"] = _RESAMPLE.get(resize.method, _RESAMPLE["bilinear"])
    if crop is not None:
        content["crop_size"] = dict(zip(("height", "width"), crop.size, strict=True))
    if steps.channels == 3:
        content["do_convert_rgb"] = True
    return content, _hf_reasons(steps)


def _is_hf_exact(resize: Resize) -> bool:
    """Returns whether transformers resizes without rounding, as the model does."""
    return resize.rounding == "none" and not _resampling(resize, to="transformers")


def _needs_pillow(resize: Resize, *, padded: bool) -> bool:
    """Returns whether transformers resizes as the model does with Pillow only.

    With Pillow, it pads odd margins on the other side, which is worse than a bilinear level.
    """
    if resize.rounding != "nearest" or _resampling(resize, to="transformers"):
        return False
    return resize.method == "bicubic" or not padded


def _hf_reasons(steps: Pipeline) -> Reasons:
    impossible, preprocessing, notes = steps.impossible(), [], _gray(steps)
    resize, crop = steps.resize, steps.crop
    if resize is not None:
        preprocessing += _resampling(resize, to="transformers")
        if resize.rounding == "none" and not _is_hf_exact(resize):
            preprocessing.append(_LEVELS.format(library="transformers"))
    if isinstance(resize, ResizeSmall) and len(set(resize.size)) > 1:
        impossible.append(
            f"its resize_small covers {resize.size[0]}x{resize.size[1]} pixels; transformers "
            "resizes the shorter side, which covers squares only"
        )
    if isinstance(resize, ResizeSmall) and resize.long_side != "down":
        preprocessing.append(
            "transformers rounds the longer side down; resize_small has long_side='nearest', not "
            "'down': some images are a pixel longer"
        )
    if not steps.crops_alike("down"):
        preprocessing.append(
            "transformers starts a centre crop a pixel earlier for some odd margins; center_crop "
            "has offset='half_even', not 'down'"
        )
    if resize is not None and _needs_pillow(resize, padded=steps.pad is not None):
        notes.append(_BACKEND)
    if steps.pad is not None:
        notes.append("without torchvision, transformers pads odd margins on the other side")
    elif crop is not None and resize is None:
        notes.append(
            "transformers pads images that are smaller than the crop; vit_jax refuses them"
        )
    if not steps.exif:
        notes.append("transformers rotates images by their EXIF orientation; decode has exif=False")
    return Reasons(tuple(impossible), tuple(preprocessing), notes=tuple(notes))


def to_timm(preprocess: Preprocess) -> tuple[dict[str, Any], Reasons]:
    """Returns the preprocessing keys of timm's pretrained_cfg, and reasons for different pixels.

    timm always resizes. If the model's transforms do not, the resize is to the model's image size:
    it leaves images of that size, the only ones that the model accepts, unchanged.
    """
    steps = pipeline(preprocess)
    resize = steps.resize or Resize(size=steps.image_size)
    content = {
        "input_size": [steps.channels, *steps.image_size],
        "interpolation": resize.method if resize.method in _RESAMPLE else "bilinear",
        "crop_pct": _crop_pct(steps.image_size, resize.size),
        "crop_mode": "center" if steps.keeps_aspect else "squash",
        "mean": list(steps.mean),
        "std": list(steps.std),
    }
    return content, _timm_reasons(steps)


def _timm_reasons(steps: Pipeline) -> Reasons:
    impossible, preprocessing, notes = steps.impossible(), [], _gray(steps)
    resize, size = steps.resize, steps.image_size
    if steps.pad is not None:
        impossible.append("its preprocessing pads; timm does not")
    if resize is None and steps.crop is not None:
        impossible.append("its preprocessing crops without a resize; timm always resizes")
    elif resize is None:
        notes.append("timm resizes images of other sizes than the model's; vit_jax refuses them")
    else:
        preprocessing += _resampling(resize, to="timm")
        if resize.rounding == "none":
            preprocessing.append(_LEVELS.format(library="timm"))
        if _crop_pct(size, resize.size) is None:
            impossible.append(
                f"it resizes to {resize.size[0]}x{resize.size[1]} and crops {size[0]}x{size[1]}; "
                "timm has one ratio (crop_pct) for both sides"
            )
    long_side = "down" if resize is None or len(set(resize.size)) == 1 else "nearest"
    if isinstance(resize, ResizeSmall) and resize.long_side != long_side:
        preprocessing.append(
            f"timm rounds the longer side as long_side='{long_side}' does; resize_small has "
            f"'{resize.long_side}': for some images it is a pixel off"
        )
    if not steps.crops_alike("half_even"):
        preprocessing.append(
            "timm starts a centre crop a pixel later for some odd margins; center_crop has "
            "offset='down', not 'half_even'"
        )
    if steps.exif:
        notes.append("timm does not rotate images by their EXIF orientation; decode has exif=True")
    return Reasons(tuple(impossible), tuple(preprocessing), notes=tuple(notes))


def _crop_pct(size: tuple[int, int], before: tuple[int, int]) -> float | None:
    """Returns the ratio r with floor(size / r) == before, for height and width; or None."""
    ratio = min(side / larger for side, larger in zip(size, before, strict=True))
    for crop_pct in (ratio, math.nextafter(ratio, 0)):
        if crop_pct <= 1 and all(
            math.floor(side / crop_pct) == larger for side, larger in zip(size, before, strict=True)
        ):
            return crop_pct
    return None


def _resampling(resize: Resize, *, to: str) -> list[str]:
    """Returns how a library's kernels differ: they antialias, and round to the nearest level."""
    reasons = []
    if resize.method not in _RESAMPLE:
        reasons.append(
            f'{to} has no resize with method="{resize.method}"; bilinear is written: pixels differ '
            "by about a level on average"
        )
    elif resize.method == "nearest":  # Pillow and PyTorch accumulate rounded coordinates.
        reasons.append(f"{to} may take the neighbouring pixel for ties of method='nearest'")
    elif not resize.antialias:
        reasons.append(
            f"{to} antialiases where an image shrinks; the resize has antialias=False: pixels "
            "differ by two or three levels on average"
        )
    if resize.rounding == "down":
        reasons.append(
            f"{to} rounds to the nearest level; the resize has rounding='down', not 'nearest': "
            "pixels differ by at most a level"
        )
    return reasons


def sixteen_bits(library: str) -> Reasons:
    """Returns the note that a library cannot read images of 16 bits."""
    note = (
        f"images of 16 bits: {library} gets them clipped to 255, nearly white; convert them to 8 "
        "bits first"
    )
    return Reasons(notes=(note,))


def _gray(steps: Pipeline) -> list[str]:
    if steps.channels == 3:
        return []
    return ["images must be converted to greyscale (Pillow's mode L) before the library gets them"]
