"""A realistic folder of images: photographs of three classes, in every format.

    python -m tests.images FOLDER [NUMBER_OF_EACH]

They are pieces, at random positions and sizes, of the photographs that come with scikit-learn (a
temple, a flower) and Matplotlib (a portrait).
"""

import pathlib
import sys

import matplotlib.cbook
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image


def photographs() -> dict[str, Image.Image]:
    """Three photographs by name, RGB."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB")
    return {
        "temple": Image.fromarray(load_sample_image("china.jpg")),
        "flower": Image.fromarray(load_sample_image("flower.jpg")),
        "portrait": portrait,
    }


def save(image: Image.Image, stem: pathlib.Path, kind: int) -> None:
    """Writes an image in one of eight ways."""
    match kind % 8:
        case 0:
            image.save(stem.with_suffix(".jpg"), quality=85)
        case 1:
            image.save(stem.with_suffix(".png"))
        case 2:
            image.save(stem.with_suffix(".webp"), quality=85)
        case 3:
            image.convert("L").save(stem.with_suffix(".JPEG"))
        case 4:
            image.convert("RGBA").save(stem.with_suffix(".png"))
        case 5:
            image.convert("CMYK").save(stem.with_suffix(".jpg"))
        case 6:
            high = np.asarray(image.convert("L"), np.uint16) * 257
            Image.fromarray(high).save(stem.with_suffix(".png"))
        case 7:  # Stored rotated, with an EXIF orientation.
            exif = Image.Exif()
            exif[0x0112] = 6
            image.rotate(90, expand=True).save(stem.with_suffix(".jpg"), exif=exif)


def make(folder: pathlib.Path, *, each: int, seed: int = 0) -> None:
    """Fills folder/CLASS with `each` images of every class."""
    rng = np.random.default_rng(seed)
    for name, photograph in photographs().items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            side = int(rng.integers(120, 280))
            left = int(rng.integers(0, photograph.width - side))
            top = int(rng.integers(0, photograph.height - side))
            piece = photograph.crop((left, top, left + side, top + side))
            width, height = (int(n) for n in rng.integers(80, 200, 2))
            save(piece.resize((width, height)), folder / name / f"{i:03d}", i)


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]), each=int(sys.argv[2]) if len(sys.argv) > 2 else 100)
