"""Twelve small image files, each odd in another way, and how two libraries prepare them."""

import json
import pathlib

import numpy as np
from PIL import Image

from tests.references import reference


def write(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes the files; returns their paths by peculiarity."""
    rng = np.random.default_rng(0)

    def pixels(height, width, channels=3):
        y, x = np.mgrid[:height, :width]
        waves = np.sin(y[..., None] / 5 + x[..., None] / 7 + np.arange(channels))
        noise = rng.normal(0, 15, waves.shape)
        return (127 + 100 * waves + noise).clip(0, 255).astype(np.uint8)

    def image(*shape):
        return Image.fromarray(pixels(*shape).squeeze())

    exif = Image.Exif()
    exif[0x0112] = 6
    gray16 = Image.fromarray((pixels(27, 34, 1).squeeze().astype(np.uint16) << 8) + 77)
    images = {
        "ordinary.png": image(61, 83),
        "tiny.png": image(3, 2),
        "one_pixel.png": Image.new("RGB", (1, 1), (200, 30, 90)),
        "tall.png": image(150, 4),
        "wide.png": image(5, 133),
        "gray.png": image(40, 31, 1),
        "alpha.png": image(33, 38, 4),
        "gray_alpha.png": image(35, 36, 2),
        "palette.gif": image(44, 29).quantize(16),
        "cmyk.jpg": image(39, 45).convert("CMYK"),
        "gray16.png": gray16,
        "turned.jpg": image(52, 37),
    }
    for name, odd in images.items():
        odd.save(folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
    return {name: folder / name for name in images}


def by_transformers(content: dict, folder: pathlib.Path, **how):
    """A function of a path: pixels [h, w, c] of transformers' own loader and processor."""
    transformers = reference("transformers")
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **how)

    def prepare(path):
        with Image.open(path) as stored:
            image = transformers.image_utils.load_image(stored)
        values = processor(image, return_tensors="pt")["pixel_values"][0]
        return values.numpy().transpose(1, 2, 0)

    return prepare


def by_timm(content: dict):
    """A function of a path: pixels [h, w, c] of timm's transform, on images opened as timm does."""
    data = reference("timm").data
    config = data.resolve_data_config({}, pretrained_cfg=json.loads(json.dumps(content)))
    transform = data.create_transform(**config)

    def prepare(path):
        with Image.open(path) as stored:
            return transform(stored.convert("RGB")).numpy().transpose(1, 2, 0)

    return prepare
