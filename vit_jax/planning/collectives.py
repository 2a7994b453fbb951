"""What a program sends between devices: collectives by kind, place, dtype and mesh axis."""

import collections
import dataclasses
import math
import re

import numpy as np
from jax.sharding import Mesh

from vit_jax.planning.hlo import Array, Hlo, Instruction

_KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# XLA writes a reduce-scatter on a TPU as a fusion of this name: an all-reduce and a slice.
SCATTER = "all-reduce-scatter"
# Between slices, the host sends what a chip gives it.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of a step that are alike.

    Attributes:
      kind: such as "all-gather".
      in_loop: whether they are inside the loop over the blocks or another.
      dtype: the dtype of the largest array.
      axes: the mesh axes over which they go, such as ("fsdp",).
      network: whether they go between slices or nodes.
      devices: the number of devices in a group; between slices, the number of slices.
      executions: the number of executions in a step.
      bytes: mean bytes of an execution: those of its result, for a reduce-scatter its operand.
      largest: the dimensions of the largest array.
    """

    kind: str
    in_loop: bool
    dtype: str
    axes: tuple[str, ...]
    network: bool
    devices: int
    executions: int
    bytes: float
    largest: tuple[int, ...]

    @property
    def total_bytes(self) -> float:
        """Bytes of all executions of a step."""
        return self.bytes * self.executions

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a step, by a ring's algorithm."""
        if self.kind == "collective-permute":
            return self.total_bytes
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.total_bytes * (self.devices - 1) / self.devices


def collectives(hlo: Hlo, mesh: Mesh, *, slices: int = 1) -> list[Collective]:
    """Returns the collectives of a compiled step, those that send most first.

    Args:
      hlo: the program of one device of `mesh`.
      mesh: the mesh of the program, whose devices in their order are its partitions.
      slices: the number of TPU slices.
    """
    groups: dict[tuple, list[tuple[int, float, Array]]] = collections.defaultdict(list)
    chains: set[tuple[str, ...]] = set()
    for instruction, computation, times in hlo.executed():
        kind = instruction.opcode.removesuffix("-start")
        network = _MEGASCALE.search(instruction.line) if kind == "recv" else None
        if network:
            # Only data crosses slices: see vit_jax.parallel.mesh.
            kind, axes, devices = network[1].lower().replace("_", "-"), ("data",), slices
            moved = instruction.results[:1]
        elif kind in _KINDS:
            axes, devices = _group(instruction.line, mesh)
            moved = _moved(instruction, kind)
        else:
            continue
        if not moved or devices == 1:
            continue
        if match := _CHAIN.search(instruction.line):
            # A collective that overlaps with products is in each fusion from its start to its end.
            chain = (kind, *match.groups())
            if chain in chains:
                continue
            chains.add(chain)
        if computation.startswith(SCATTER):
            kind = "reduce-scatter"
        # The text has no shapes of operands: a reduce-scatter's is its result's times the devices.
        factor = devices if kind == "reduce-scatter" and not computation.startswith(SCATTER) else 1
        largest = max(moved, key=lambda array: array.size)
        key = (kind, times > 1, largest.dtype, axes, bool(network), devices)
        groups[key].append((times, factor * sum(array.size for array in moved), largest))
    result = []
    for (kind, in_loop, dtype, axes, network, devices), entries in groups.items():
        executions = sum(times for times, _, _ in entries)
        total = sum(times * size for times, size, _ in entries)
        largest = max((array for _, _, array in entries), key=lambda array: array.size).dims
        result.append(
            Collective(
                kind,
                in_loop,
                dtype,
                axes,
                network,
                devices,
                executions,
                total / executions,
                largest,
            )
        )
    return sorted(result, key=lambda each: -each.sent_bytes)


def _moved(instruction: Instruction, kind: str) -> tuple[Array, ...]:
    """Returns the arrays that a collective returns."""
    results = instruction.results
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, contexts), of which contexts are scalars.
        arrays = [array for array in results if array.dims]
        return tuple(arrays[len(arrays) // 2 :])
    return results


def _group(line: str, mesh: Mesh) -> tuple[tuple[str, ...], int]:
    """Returns the mesh axes of a collective, and the devices of a group."""
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line):
        edges = np.array(re.findall(r"(\d+),(\d+)", pairs[1]), int)
        moved = edges[edges[:, 0] != edges[:, 1]]
        axes = _varying(moved, mesh) if len(moved) else ()
        return axes, math.prod(mesh.shape[axis] for axis in axes)
    groups = replica_groups(line, mesh.size)
    return _varying(groups, mesh), groups.shape[1]


def replica_groups(line: str, num_devices: int) -> np.ndarray:
    """Returns the groups of a collective, i64[groups, devices], from the text of its line.

    HLO writes them one by one, "{{0,1},{2,3}}"; as an iota, "[2,4]<=[8]"; or as a transposed iota,
    "[4,2]<=[2,4]T(1,0)". Without any, all devices are one group.
    """
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape, source = (tuple(map(int, iota[i].split(","))) for i in (1, 2))
        ids = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            ids = ids.transpose(tuple(map(int, iota[3].split(","))))
        return ids.reshape(shape).reshape(shape[0], -1)
    listed = re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", line)
    if listed:
        return np.array(
            [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        )
    return np.arange(num_devices)[None]


def _varying(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes whose coordinate differs within some group."""
    coordinates = np.unravel_index(groups, tuple(mesh.shape.values()))
    return tuple(
        axis
        for axis, positions in zip(mesh.shape, coordinates, strict=True)
        if (positions != positions[:, :1]).any()
    )
