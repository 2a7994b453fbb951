"""TFDS data sets without their data: `tfds.testing.mock_data`, but without TensorFlow.

TFDS's mock encodes its random images with TensorFlow; this one encodes them with Pillow.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class _Records:
    """Examples with random images (as PNG) and labels 0, 1, 2, ... of a data set's features."""

    def __init__(self, features, num_examples: int):
        self._features, self._num_examples = features, num_examples

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        example = {}
        for key, feature in self._features.items():
            if isinstance(feature, tfds.features.Image):
                height, width = (size or 64 for size in feature.shape[:2])
                pixels = rng.integers(0, 256, (height, width, feature.shape[-1] or 3), np.uint8)
                png = io.BytesIO()
                Image.fromarray(pixels.squeeze()).save(png, format="png")
                example[key] = png.getvalue()
            elif isinstance(feature, tfds.features.ClassLabel):
                example[key] = index % feature.num_classes
            elif isinstance(feature, tfds.features.Sequence):
                example[key] = np.array([index % 3, 3 + index % 2])
        return example


@contextlib.contextmanager
def mock_tfds(num_examples: int = 8) -> Iterator[None]:
    """Every TFDS data set has `num_examples` random examples in any split."""

    def as_data_source(builder, split, decoders=None, **kwargs):
        return _Records(builder.info.features, num_examples)

    with tfds.testing.mock_data(
        as_data_source_fn=as_data_source, policy=tfds.testing.MockPolicy.USE_CODE
    ):
        yield
