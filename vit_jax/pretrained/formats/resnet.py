"""BiT's ResNets, alone or as the stem of a hybrid, in four sets of tensor names.

GOOGLE: big_vision's bit.py (v1), and the stems of vision_transformer's hybrids. TENSORFLOW: the
files of the BiT paper (v2). BIT_PAPER: what big_vision's bit_paper.py saves of these. TIMM_NAMES:
timm's ResNetV2, which also has different epsilons.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.config.model import RESNET_NUMERICS
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import ResnetConfig, StemConfig
from vit_jax.pretrained.formats.base import CheckpointFiles, Description, Format
from vit_jax.pretrained.formats.entries import Entry
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.formats.names import of_optimizer, renamed, without_prefix
from vit_jax.pretrained.preprocess import from_family, from_timm, output_size

# Numerics of timm's group norm and standardised convolutions.
TIMM = {"gn_eps": 1e-5, "std_eps": 1e-8, "std_eps_in": "var"}


class ResnetNames(NamedTuple):
    """Names of convolutions and norms.

    Attributes:
      unit: prefix of a unit; {s} and {u} are the numbers of its stage and of itself.
      first: the number of the first stage and of the first unit.
      convs: the three convolutions of a unit.
      norms: the three norms of a unit.
      proj: the convolution of the shortcut.
      proj_norm: the norm of the shortcut.
      root: the first convolution of the network.
      root_norm: its norm.
      kernel: suffix of a kernel.
      norm: suffixes of a norm's scale and bias.
      layout: layout of kernels, a key of LAYOUTS in `entries`.
    """

    unit: str
    first: int
    convs: tuple[str, ...]
    norms: tuple[str, ...]
    proj: str
    proj_norm: str
    root: str
    root_norm: str
    kernel: str = "/kernel"
    norm: tuple[str, str] = ("/scale", "/bias")
    layout: str = "same"


_ABC = ("a", "b", "c")
GOOGLE = ResnetNames(
    "block{s}/unit{u}/", 1, ("conv1", "conv2", "conv3"), ("gn1", "gn2", "gn3"), "conv_proj",
    "gn_proj", "conv_root", "gn_root",
)  # fmt: skip
TENSORFLOW = ResnetNames(
    "block{s}/unit{u:02}/", 1, tuple(f"{x}/standardized_conv2d" for x in _ABC),
    tuple(f"{x}/group_norm" for x in _ABC), "a/proj/standardized_conv2d", "",
    "root_block/standardized_conv2d", "", norm=("/gamma", "/beta"),
)  # fmt: skip
BIT_PAPER = ResnetNames(
    "block{s}/unit{u:02}/", 1, ("conv1", "conv2", "conv3"), ("gn1", "gn2", "gn3"), "conv_proj", "",
    "root_block/conv_root", "",
)  # fmt: skip
TIMM_NAMES = ResnetNames(
    "stages.{s}.blocks.{u}.", 0, ("conv1", "conv2", "conv3"), ("norm1", "norm2", "norm3"),
    "downsample.conv", "downsample.norm", "stem.conv", "stem.norm", ".weight",
    (".weight", ".bias"), "conv",
)  # fmt: skip


def stem_entries(stem: StemConfig, names: ResnetNames, *, ours: str, theirs: str) -> list[Entry]:
    """Returns the entries of a ResNet's body.

    Args:
      stem: its `units` are the numbers of units in each stage.
      names: the names in the file.
      ours: prefix of our names: "stem/", or "".
      theirs: prefix of the names in the file.
    """

    def conv(our: str, their: str) -> Entry:
        return Entry(f"{ours}{our}/kernel", f"{theirs}{their}{names.kernel}", names.layout)

    def norm(our: str, their: str) -> tuple[Entry, ...]:
        return tuple(
            Entry(f"{ours}{our}/{leaf}", f"{theirs}{their}{end}")
            for leaf, end in zip(("scale", "bias"), names.norm, strict=True)
        )

    entries = [conv("root/conv", names.root), *norm("root/norm", names.root_norm)]
    for s, units in enumerate(stem.units):
        for u in range(units):
            our = f"stage{s + 1}/unit{u + 1}"
            their = names.unit.format(s=s + names.first, u=u + names.first)
            for k in range(3):
                entries.append(conv(f"{our}/conv{k + 1}", their + names.convs[k]))
                entries += norm(f"{our}/norm{k + 1}", their + names.norms[k])
            entries.append(conv(f"{our}/proj", their + names.proj))
            entries += norm(f"{our}/proj_norm", their + names.proj_norm)
    return entries


def units_of(shapes: Mapping[str, Any], names: ResnetNames, *, prefix: str = "") -> tuple[int, ...]:
    """Returns the number of units in each stage of a file."""
    pattern = re.escape(prefix) + re.escape(names.unit).replace(r"\{s\}", r"(\d+)")
    pattern = re.sub(r"\\\{u(:02)?\\\}", r"(\\d+)", pattern)
    matches = [match.groups() for name in shapes if (match := re.match(pattern, name))]
    units = [(int(s) - names.first, int(u) - names.first) for s, u in matches]
    last = max((s for s, _ in units), default=-1)
    return tuple(
        1 + max((u for s, u in units if s == stage), default=-1) for stage in range(last + 1)
    )


def _find_names(files: CheckpointFiles) -> tuple[ResnetNames, str] | None:
    """Returns the set of names of a ResNet's tensors, and their prefix; None for other files."""
    # BIT_PAPER goes first, because its root's name ends with that of GOOGLE.
    for names in (BIT_PAPER, GOOGLE, TENSORFLOW, TIMM_NAMES):
        root = f"{names.root}{names.kernel}"
        for name in files.tensors:
            if of_optimizer(name):
                continue
            if name == root or (name.endswith(root) and name[-len(root) - 1] in "/."):
                return names, name[: -len(root)]
    return None


def recognises(files: CheckpointFiles) -> bool:
    """Returns whether the file is a ResNet, not a hybrid."""
    return _find_names(files) is not None and not any(
        "Transformer/" in name or "patch_embed" in name for name in files.tensors
    )


def describe(files: CheckpointFiles, hints: Hints) -> Description:
    """See `Format`."""
    match = _find_names(files)
    assert match is not None  # See `recognises`.
    names, prefix = match
    if names is TIMM_NAMES:
        tensors = renamed(files.tensors, lambda name: name.removeprefix(prefix))
    else:
        tensors = without_prefix(files.tensors, prefix)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    root = shapes[f"{names.root}{names.kernel}"]
    width, channels = (root[0], root[1]) if names is TIMM_NAMES else (root[3], root[2])
    head = next((shapes[name] for name in _HEADS if name in shapes), None)
    num_classes = 0 if head is None else head[0] if names is TIMM_NAMES else head[-1]
    version = "v1" if f"{names.root_norm}{names.norm[0]}" in shapes else "v2"
    numerics = RESNET_NUMERICS[version]
    if names is TIMM_NAMES:
        numerics = numerics | TIMM | {"padding": "explicit_zeros" if version == "v2" else "same"}
    facts = {"units": units_of(shapes, names), "width_factor": width / 64, "version": version,
             "channels": channels, "num_classes": num_classes, **numerics}  # fmt: skip
    published = files.config.get("pretrained_cfg")
    transforms = from_timm(published) if published else None
    if transforms is not None:
        facts |= {"preprocessing": "pretrained_cfg", "image_size": output_size(transforms)}
        conventions = {}
    else:
        conventions = {"preprocessing": "bit", "image_size": (224, 224)}
    facts, assumed = hints.merge(facts, conventions)
    family = facts.pop("preprocessing")
    try:
        config = ResnetConfig(**facts)
    except ConfigError as error:
        raise CheckpointError(f"{files.path} describes no ResNet: {error}") from error
    if transforms is None:
        transforms = from_family(family, image_size=config.image_size)
    unused = (r"(opt|optimizer|step)(/.*)?", r".*\.num_batches_tracked")
    return Description(config, tensors, unused, transforms, assumed=assumed)


_HEADS = ("head/kernel", "head/conv2d/kernel", "head.fc.weight")


def entries(config: ResnetConfig) -> tuple[Entry, ...]:
    """See `Format`."""
    bodies = [
        entry
        for names in (GOOGLE, TENSORFLOW, BIT_PAPER, TIMM_NAMES)
        for entry in stem_entries(config, names, ours="", theirs="")
    ]
    return (
        *bodies,
        Entry("norm/scale", "group_norm/gamma"),
        Entry("norm/bias", "group_norm/beta"),
        Entry("norm/scale", "norm-pre-head/scale"),
        Entry("norm/bias", "norm-pre-head/bias"),
        Entry("norm/scale", "norm.weight"),
        Entry("norm/bias", "norm.bias"),
        Entry("head/kernel", "head/kernel"),
        Entry("head/bias", "head/bias"),
        Entry("head/kernel", "head/conv2d/kernel"),
        Entry("head/bias", "head/conv2d/bias"),
        Entry("head/kernel", "head.fc.weight", "dense_1x1"),
        Entry("head/bias", "head.fc.bias"),
    )


FORMAT = Format("BiT ResNet", recognises, describe, entries)
