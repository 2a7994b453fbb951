"""Reads a compiled program's text: the kind and the size of each instruction."""

import dataclasses
import math
import re

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\("
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"^(?P<dtype>[a-z]+\d*)\w*\[(?P<dims>[\d,]*)\]")
_BITS = {"pred": 8, "s": 0, "u": 0, "f": 0, "bf": 0, "c": 0}  # Of others the number is in the name.

MATMUL, ATTENTION, ELEMENTWISE = "matrix products", "attention", "elementwise and reductions"
COPY, COLLECTIVE, OPTIMIZER = "copies", "collectives", "optimizer and metrics"
KINDS = (MATMUL, ATTENTION, ELEMENTWISE, COPY, COLLECTIVE, OPTIMIZER)

# Instructions that contain others, which are counted themselves.
_CONTROL = ("while", "conditional", "call", "tuple", "get-tuple-element", "parameter", "bitcast")
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_COPIES = (
    "copy", "transpose", "concatenate", "slice", "dynamic-slice", "dynamic-update-slice", "pad",
    "reshape", "bitcast", "parameter", "constant", "broadcast", "tuple", "get-tuple-element",
    "convert", "gather",
)  # fmt: skip
_PRODUCTS = ("dot", "convolution")
_PRODUCT_TARGETS = re.compile("gemm|matmul|conv|cublas|dot", re.I)
_ATTENTION_TARGETS = re.compile("fmha|attention", re.I)
_PROJECTIONS = re.compile(r"/attn/(query|key|value|out|qkv)\w*/")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
      name: as in a trace.
      opcode: such as "fusion".
      size_bytes: of its result; of a tuple, 0.
      shape: such as "f32[16,197,192]".
      source: path of modules and the operation that it was traced from; of a fusion that of its
        result, or any inside it; "": unknown.
      target: of a custom call: what it calls.
      inside: opcodes of the computation that a fusion calls.
    """

    name: str
    opcode: str
    size_bytes: int
    shape: str
    source: str
    target: str = ""
    inside: tuple[str, ...] = ()

    @property
    def is_control(self) -> bool:
        """Whether its time is that of other instructions."""
        return self.opcode in _CONTROL

    @property
    def kind(self) -> str:
        """Returns what its time is spent on, one of KINDS."""
        if self.opcode.removesuffix("-start").removesuffix("-done") in _COLLECTIVES:
            return COLLECTIVE
        in_attention = "/attn/" in self.source and not _PROJECTIONS.search(f"{self.source}/")
        if _ATTENTION_TARGETS.search(self.target) or in_attention:
            return ATTENTION
        opcodes = {self.opcode, *self.inside}
        if opcodes & {*_PRODUCTS} or (self.target and _PRODUCT_TARGETS.search(self.target)):
            return MATMUL
        # Operations of the model are traced in its forward pass, jvp, or its backward pass.
        if self.source and "jvp(" not in self.source:
            return OPTIMIZER
        if {*(self.inside or (self.opcode.removesuffix("-start").removesuffix("-done"),))} <= {
            *_COPIES
        }:
            return COPY
        return ELEMENTWISE


def parse(text: str) -> dict[str, Instruction]:
    """Returns the instructions of a program outside of fusions, by name.

    Args:
      text: `compiled.as_text()`.
    """
    lines: dict[str, list[str]] = {}
    computation = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            computation = match["name"]
        elif _INSTRUCTION.match(line):
            lines.setdefault(computation, []).append(line)
    fused = set(re.findall(r" fusion\(.*?calls=%?([\w.\-]+)", text))
    own = [line for name, each in lines.items() if name not in fused for line in each]
    instructions = {each.name: each for each in (_instruction(line, lines) for line in own)}
    for line in own:  # In the order of the program: what an operand has inherited is inherited.
        _inherit_source(instructions, line)
    return instructions


def _inherit_source(instructions: dict[str, Instruction], line: str) -> None:
    """Gives an instruction that the compiler made, without a source, that of an operand."""
    match = _INSTRUCTION.match(line)
    assert match
    if instructions[match["name"]].source:
        return
    operands = re.findall(r"%([\w.\-]+)", line[match.end() :].partition(")")[0])
    for name in operands:
        operand = instructions.get(name)
        if operand and operand.source and operand.opcode != "parameter":
            changed = dataclasses.replace(instructions[match["name"]], source=operand.source)
            instructions[changed.name] = changed
            return


def _instruction(line: str, computations: dict[str, list[str]]) -> Instruction:
    match = _INSTRUCTION.match(line)
    assert match
    called = re.search(r"calls=%?([\w.\-]+)", line) if match["opcode"] == "fusion" else None
    body = computations.get(called[1], []) if called else []
    inside = [m["opcode"] for m in map(_INSTRUCTION.match, body) if m]
    sources = [_source(line), *(_source(each) for each in reversed(body))]
    target = re.search(r'custom_call_target="([^"]*)"', line)
    return Instruction(
        name=match["name"],
        opcode=match["opcode"],
        size_bytes=array_bytes(match["shape"]),
        shape=match["shape"].partition("{")[0],
        source=next(filter(None, sources), ""),
        target=target[1] if target else "",
        inside=tuple(dict.fromkeys(inside)),
    )


def _source(line: str) -> str:
    match = re.search(r'op_name="([^"]*)"', line)
    return match[1] if match else ""


def array_bytes(shape: str) -> int:
    """Returns the bytes of a shape such as "f32[16,197]{1,0}"; 0 for a tuple."""
    match = _ARRAY.match(shape)
    if not match:
        return 0
    letters = match["dtype"].rstrip("0123456789")
    bits = _BITS.get(letters) or int(match["dtype"].removeprefix(letters) or 8)
    return math.prod(int(dim) for dim in match["dims"].split(",") if dim) * bits // 8
