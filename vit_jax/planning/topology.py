"""The devices that a run is planned for, which are not here.

TPUs: descriptions of devices for which libtpu compiles programs on any Linux machine. GPUs: a name
and a number; nothing is compiled for them.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from typing import Any

from vit_jax.errors import ConfigError
from vit_jax.telemetry.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class _Tpu:
    """A kind of TPU.

    Attributes:
      chip: the name of its chip.
      kind: its name in libtpu.
      axes: the number of axes of its torus.
      chips: the number of chips of its pod.
      slices: the shapes of its slices; (): any.
      settings: further arguments of libtpu.
    """

    chip: str
    kind: str
    axes: int
    chips: int
    slices: tuple[tuple[int, ...], ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


# Of TPU v5e and v6e: docs.cloud.google.com/tpu/docs, the page of each, 2026.
_SLICES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# By name in --topology. Axes and chips: likewise.
_TPUS = {
    "v3": _Tpu("TPU v3", "v3", 2, 1024),
    # Megacore joins the two cores of a chip to one device, as on Cloud TPUs.
    "v4": _Tpu("TPU v4", "v4", 3, 4096, settings={"chip_config_name": "megacore"}),
    "v5e": _Tpu("TPU v5e", "v5e", 2, 256, _SLICES_2D),
    "v5p": _Tpu("TPU v5p", "v5p", 3, 8960),
    "v6e": _Tpu("TPU v6e", "v6e", 2, 256, _SLICES_2D),
    "v7": _Tpu("TPU7x", "tpu7x", 3, 9216),
}
# Name in --topology -> name of the chip, and GPUs in a node.
_GPUS: dict[str, tuple[str, int]] = {
    "a100": ("A100 80 GB SXM", 8),
    "h100": ("H100 SXM", 8),
    "h200": ("H200 SXM", 8),
    "b200": ("B200", 8),
}
_CHIPS = {chip.name: chip for chip in CHIPS}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are connected.

    Attributes:
      name: the value of --topology.
      chip: the kind of its chips.
      shape: the number of chips along each axis of a TPU slice; for GPUs, the number of nodes and
        that of GPUs in a node.
      slices: the number of TPU slices, connected by the data centre's network.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether programs can be compiled for it."""
        return self.chip.name.startswith("TPU")

    @property
    def num_chips(self) -> int:
        """Number of chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def ports_by_axis(self) -> tuple[int, ...]:
        """Ports of a chip along each axis of a TPU slice that has several chips along it.

        Two if the axis is a ring: in v5e and v6e one of 16 chips, in v3 of 32; in the others every
        axis, if the slice consists of whole cubes of 4x4x4 chips, which optical switches join. Else
        one, which a chip at the end has. A GPU has one, to a switch.
        """
        if not self.is_tpu:
            return (1,)
        tpu = _TPUS[self.name.partition(":")[0]]
        if tpu.axes == 2:
            rings = [side % math.isqrt(tpu.chips) == 0 for side in self.shape]
        else:
            rings = [all(side % 4 == 0 for side in self.shape)] * tpu.axes
        return tuple(1 + ring for side, ring in zip(self.shape, rings, strict=True) if side > 1)

    @property
    def groups(self) -> int:
        """Number of slices or nodes, between which is the data centre's network."""
        return self.slices if self.is_tpu else self.shape[0]

    @property
    def num_devices(self) -> int:
        """Number of JAX's devices."""
        return self.num_chips * self.chip.devices

    def describe(self) -> str:
        """Returns the topology in words, such as "256 TPU v5e chips (16x16)"."""
        layout = "x".join(map(str, self.shape))
        layout = f"{self.slices} slices of {layout}" if self.slices > 1 else layout
        return (
            f"{self.num_chips:,} {self.chip.name} {'chips' if self.is_tpu else 'GPUs'} ({layout})"
        )


def parse(name: str, *, slices: int = 1) -> Topology:
    """Returns the topology of a name.

    Args:
      name: "v5e:16x16", a kind of TPU and the chips along each axis of a slice; or "h200x8", a kind
        of GPU and their number.
      slices: the number of such TPU slices.

    Raises:
      ConfigError: the name is no topology.
    """
    text = name.strip().lower()
    kind = re.match(r"[a-z]*\d*[a-z]?(?=[:x]|$)", text)
    known = kind[0] if kind else ""
    if known in _TPUS and (match := re.fullmatch(r"\w+:(\d+(?:x\d+)*)", text)):
        tpu, shape = _TPUS[known], tuple(map(int, match[1].split("x")))
        if len(shape) != tpu.axes or not 0 < math.prod(shape) <= tpu.chips:
            sides = "x".join("ABC"[: tpu.axes])
            raise ConfigError(
                f"--topology={name}: a slice of {known} is {known}:{sides} with up to "
                f"{tpu.chips:,} chips. More chips: --slices."
            )
        if tpu.slices and shape not in tpu.slices:
            accepted = ", ".join("x".join(map(str, each)) for each in tpu.slices)
            raise ConfigError(f"--topology={name}: Cloud TPU has slices of {known} of {accepted}.")
        if slices >= 1:
            return Topology(text, _CHIPS[tpu.chip], shape, slices)
    if known in _GPUS and (match := re.fullmatch(rf"{known}x(\d+)", text)):
        chip, node = _GPUS[known]
        count = int(match[1])
        if slices != 1:
            raise ConfigError(
                f"--slices={slices}: GPUs have no slices; write {known}x{count * slices}."
            )
        if count and (count <= node or count % node == 0):
            shape = (1, count) if count <= node else (count // node, node)
            return Topology(text, _CHIPS[chip], shape)
        raise ConfigError(f"--topology={name}: up to {node} GPUs, or a multiple of {node}.")
    if slices < 1:
        raise ConfigError(f"--slices={slices}: it must be 1 or more.")
    raise ConfigError(
        f"--topology={name} is not known.{_hint(text, known)} Accepted are {', '.join(_TPUS)} with "
        f"the chips along each axis, and {', '.join(_GPUS)} with their number, such as "
        "v5e:16x16, v5p:8x8x8 or h200x8."
    )


def _hint(text: str, known: str) -> str:
    """Returns a topology that may be meant, as a question; or "".

    Google Cloud names a slice by its number of chips, or of cores where a chip has two.
    """
    if match := re.fullmatch(r"(v5litepod|v6e|v5p|v4)-(\d+)", text):
        kind = "v5e" if match[1] == "v5litepod" else match[1]
        chips = int(match[2]) // (1 if _TPUS[kind].axes == 2 else 2)
        if shapes := [shape for shape in _TPUS[kind].slices if math.prod(shape) == chips]:
            return f" Did you mean {kind}:{'x'.join(map(str, shapes[0]))}?"
        return f" Did you mean {kind} with the axes of its {chips:,} chips?"
    nearest = difflib.get_close_matches(known, [*_TPUS, *_GPUS], n=1)
    return f" Did you mean {nearest[0]}?" if nearest and nearest[0] != known else ""


# What libtpu reads when it is loaded on a machine without TPUs.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # No queries to Google Cloud.
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Two plans at once.
    # Any host will do: a description does not depend on it, but libtpu complains without.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def prepare_environment() -> None:
    """Lets JAX use this machine's processor alone, quietly. Call it before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(topology: Topology) -> list[Any]:
    """Returns the descriptions of a TPU topology's devices, for `vit_jax.parallel.mesh.make_mesh`.

    Raises:
      ConfigError: libtpu is not installed, or has no such slice.
    """
    import jax
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"A plan for {topology.name} needs libtpu, TPU's compiler, which runs on any Linux "
            'machine with an x86-64 processor: pip install "vit-jax[plan]".'
        )
    tpu = _TPUS[topology.name.partition(":")[0]]
    settings = dict(tpu.settings)
    if topology.slices > 1:
        settings["num_slices"] = topology.slices
    if any(side % 2 for side in topology.shape[:2]):  # A host has 2x2 chips by default.
        settings["chips_per_host_bounds"] = (1, 1, 1)
    layout = f"{tpu.kind}:{'x'.join(map(str, topology.shape))}"
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=layout, **settings)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"--topology={topology.name}: libtpu has no such slice ({error}). Choose another "
            "shape: docs.cloud.google.com/tpu/docs lists those of each kind."
        ) from error
    return list(description.devices)
