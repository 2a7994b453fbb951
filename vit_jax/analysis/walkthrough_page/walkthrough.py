"""One image through a checkpoint, step by step, as an HTML page."""

import dataclasses
import html
import os
from typing import ClassVar

import jax
import numpy as np
from etils import epath
from jaxtyping import Float32, UInt8
from PIL import Image

from vit_jax import storage
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.classes import class_number
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.images import Images, ImageStream, open_images
from vit_jax.analysis.walkthrough_page.page import page
from vit_jax.analysis.walkthrough_page.trace import Trace, trace
from vit_jax.data.decode import decode_pillow
from vit_jax.data.reading import read_file
from vit_jax.data.transforms import Decode
from vit_jax.errors import ConfigError, DataError, NonFiniteError
from vit_jax.pretrained.model import Pretrained

_FILE = "walkthrough.html"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Walkthrough:
    """One image through a checkpoint; `save` writes the page, a notebook shows it.

    Attributes:
      checkpoint: name of the checkpoint.
      image_name: location of the image.
      trace: every array of the forward pass that the page shows numbers of.
      html: the page; it needs no other file and no network.
    """

    title: ClassVar[str] = "Walkthrough"
    shows: ClassVar[str] = (
        "One image step by step through the model, with every number, on a page of its own."
    )
    checkpoint: str
    image_name: str
    trace: Trace
    html: str

    def save(self, path: epath.PathLike) -> list[epath.Path]:
        """Writes the page; returns its path in a list, as results of measures do.

        Args:
          path: a file whose name ends in .html, or a folder, which gets walkthrough.html.

        Raises:
          DataError: the file cannot be written.
        """
        path = storage.as_path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            path = path / _FILE
        with storage.reported(DataError, f"{path} cannot be written"):
            storage.make_folder(path.parent)
            storage.write_bytes(path, self.html.encode())
        return [path]

    def __repr__(self) -> str:
        """Returns what is shown, and how to see it."""
        return (
            f"Walkthrough: {self.checkpoint}, {self.image_name}, layer {self.trace.layer + 1}, "
            f"head {self.trace.head + 1}; save(folder) writes {_FILE}"
        )

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="Walkthrough" '
            'style="width: 100%; height: 48rem; border: 1px solid #ccc"></iframe>'
        )


def walkthrough(
    pretrained: Pretrained,
    image: Images,
    *,
    label: int | str | None = None,
    layer: int = 0,
    head: int = 0,
) -> Walkthrough:
    """Makes a page that shows one image's way through a model, with all its numbers.

    Each step has its formula, its shapes and values: patches, projection, position embeddings, the
    attention of one head, the MLP, the layers, the head, the loss. They are of the model's own
    intermediates, or computed from its parameters, in float32.

    Args:
      pretrained: a ViT or hybrid.
      image: see `vit_jax.analysis.measures.images.open_images`; the first that can be read.
      label: class of the loss, by its number or name. None: the data's label if the data have the
        model's classes, else the predicted class.
      layer: block whose attention and MLP are shown, from 0.
      head: head whose attention is shown, from 0.

    Raises:
      NotApplicableError: the model has no attention.
      ConfigError: there is no such layer, head or class.
      DataError: the image cannot be read.
      NonFiniteError: a value of the forward pass is NaN or infinite.

    Example:
      >>> page = analysis.walkthrough(create("mu/16", image_size=32, num_classes=10), "digits:test")
      >>> [path.name for path in page.save("steps")]
      ['walkthrough.html']
      >>> page.trace.arrays["attention"].shape  # Of the class token: on itself and four patches.
      (5,)
    """
    model = measured(pretrained)
    config = model.vit
    layer = _index("layer", layer, config.depth)
    head = _index("head", head, config.num_heads)
    stream = open_images(pretrained, image)
    labels = pretrained.labels
    chosen = _class_of(label, labels, config.num_classes)
    index, prepared, stored = _read(pretrained, stream)
    if label is None and stream.has_labels and labels and stream.source.class_names == labels:
        chosen = int(stream.source[index]["label"])
    with jax.default_matmul_precision("highest"):
        traced = trace(
            model, prepared, stored=stored, layer=layer, head=head, loss=pretrained.loss,
            label=chosen,
        )  # fmt: skip
    for name, values in traced.arrays.items():
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f'"{name}" of {model.name} has values that are NaN or infinite: the parameters or '
                "the image are broken."
            )
    image_name = stream.source.describe(index)
    return Walkthrough(
        checkpoint=model.name,
        image_name=image_name,
        trace=traced,
        html=page(
            traced, pixels=pretrained.preprocess.restored(prepared[None])[0], labels=labels,
            checkpoint=model.name, image_name=image_name, notes=pretrained.all_notes,
        ),
    )  # fmt: skip


def _index(name: str, index: int, count: int) -> int:
    reason = f"the model has {count} {name}s, counted from 0 to {count - 1}, or from -1 backwards"
    return whole_number(name, index, low=-count, high=count - 1, reason=reason) % count


def _class_of(
    label: int | str | None, labels: tuple[str, ...] | None, num_classes: int
) -> int | None:
    """Returns the number of a class that a user has named.

    Raises:
      ConfigError: the model has no such class.
    """
    if label is None:
        return None
    if not num_classes:
        raise ConfigError(f"label={label!r}: the model has no classes. Leave label out.")
    return class_number("label", label, labels=labels, num_classes=num_classes)


def _read(
    pretrained: Pretrained, stream: ImageStream
) -> tuple[int, Float32[np.ndarray, "h w c"], UInt8[np.ndarray, "..."] | None]:
    """Returns the first image that can be read: its position, prepared, and as it is stored.

    The last is None of an image that was prepared already.

    Raises:
      DataError: none can be read; the message is that of the first.
    """
    rng = np.random.default_rng(0)  # Required, but evaluation transforms are deterministic.
    first: DataError | None = None
    for index in range(len(stream)):
        try:
            example = stream.source[index]
            prepared = np.asarray(stream.transform(example, rng)["image"], np.float32)
            break
        except DataError as error:
            first = first or DataError(f"{stream.source.describe(index)}: {error}")
    else:
        assert first is not None  # A stream has an image.
        raise first
    image, decode = example["image"], pretrained.preprocess.ops[0]
    assert isinstance(decode, Decode)  # A model's transforms begin with it.
    if isinstance(image, str | os.PathLike):  # In a list with images in memory.
        image = read_file(image)
    if isinstance(image, Image.Image):
        return index, prepared, decode_pillow(image, channels=decode.channels, exif=decode.exif)
    is_prepared = isinstance(image, np.ndarray) and image.dtype != np.uint8
    return index, prepared, None if is_prepared else decode(image, rng)
