"""Reads an optimised program (HLO text): its computations, and how often each is executed."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ITEM_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program: dtype as HLO writes it, dimensions, and whether it lies in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def size(self) -> float:
        """Bytes, without padding."""
        return math.prod(self.dims) * float(_ITEM_BYTES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: the name of its result.
      opcode: the operation, such as "fusion".
      results: the arrays of its result; several if that is a tuple.
      operands: the names of its operands.
      line: the whole line.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str

    @property
    def size(self) -> float:
        """Bytes of its results."""
        return sum((array.size for array in self.results), 0.0)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, without the condition of a loop."""
        names = []
        for one, several in _CALLED.findall(self.line):
            names += [one] if one else re.findall(r"%?([\w.\-]+)", several)
        return tuple(names)


@dataclasses.dataclass(frozen=True)
class Hlo:
    """A program.

    Attributes:
      computations: name -> instructions.
      entry: name of the computation that is executed.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Hlo":
        """Returns the program of a text as `jax.stages.Compiled.as_text` returns it."""
        computations: dict[str, list[Instruction]] = {}
        entry = name = ""
        for line in text.splitlines():
            if header := _HEADER.match(line):
                name = header[2]
                computations[name] = []
                entry = name if header[1] else entry
            elif line.startswith("}"):
                name = ""
            elif name and (instruction := _instruction(line)):
                computations[name].append(instruction)
        return cls({key: tuple(lines) for key, lines in computations.items()}, entry)

    @functools.cached_property
    def executions(self) -> dict[str, int]:
        """How often each computation is executed in a step; those of fusions as their fusion."""
        counts: collections.Counter[str] = collections.Counter()

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations.get(name, ()):
                inside = times * (self.trips(instruction) if instruction.opcode == "while" else 1)
                for called in instruction.called:
                    if called in self.computations:
                        visit(called, inside)

        visit(self.entry, 1)
        return dict(counts)

    def trips(self, loop: Instruction) -> int:
        """Returns the iterations of a loop; 1 if they are unknown."""
        if known := _TRIPS.search(loop.line):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
        lines = self.computations.get(condition[1], ()) if condition else ()
        bounds = [int(n) for one in lines for n in re.findall(r" constant\((\d+)\)", one.line)]
        return max(bounds, default=1)

    def executed(self) -> Iterator[tuple[Instruction, str, int]]:
        """Yields each instruction with its computation and its executions."""
        for name, times in self.executions.items():
            for instruction in self.computations[name]:
                yield instruction, name, times

    def loops(self) -> list[tuple[Instruction, int]]:
        """Returns the loops of the program with their iterations."""
        return [
            (instruction, self.trips(instruction))
            for instruction, _, _ in self.executed()
            if instruction.opcode == "while"
        ]


def arrays(shape: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape, which may be a tuple's."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(" not in layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    )


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, arguments = rest.partition("(")
    operands = re.findall(r"%([\w.\-]+)", arguments[: arguments.find(")")])
    return Instruction(match[1], opcode, arrays(shape), tuple(operands), line)


def _closing(text: str) -> int:
    """Returns the position behind the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    return len(text)
