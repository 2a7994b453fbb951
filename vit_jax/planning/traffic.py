"""Estimates what a program moves between a device's memory (HBM) and its processor."""

import collections

from vit_jax.planning.hlo import Array, Hlo, Instruction

# Operations that move nothing, or call computations that are counted.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "iota", "partition-id", "replica-id", "opt-barrier", "custom-call",
}  # fmt: skip


def hbm_bytes(hlo: Hlo) -> float:
    """Returns the bytes that a step reads from and writes to HBM.

    Each operation outside of fusions reads its operands and writes its results. A fusion that takes
    a slice of an array reads the slice; one that updates a slice writes the slice. Arrays that the
    compiler keeps on the chip do not count. Padding is not counted.
    """
    fused = _fused(hlo)
    total = 0.0
    for name, times in hlo.executions.items():
        if name in fused:
            continue
        lines = hlo.computations[name]
        by_name = {line.name: line for line in lines}
        total += times * sum(_moved(line, by_name, hlo) for line in lines)
    return total


def _fused(hlo: Hlo) -> set[str]:
    """Returns the computations that are part of another one's operation.

    Those of an asynchronous operation, too: what it moves counts at its start and its end.
    """
    pending = [
        called
        for lines in hlo.computations.values()
        for line in lines
        if line.opcode not in ("while", "conditional", "call")
        for called in line.called
    ]
    fused: set[str] = set()
    while pending:
        name = pending.pop()
        if name in fused or name not in hlo.computations:
            continue
        fused.add(name)
        pending += [called for line in hlo.computations[name] for called in line.called]
    return fused


def _moved(line: Instruction, by_name: dict[str, Instruction], hlo: Hlo) -> float:
    if line.opcode in _FREE:
        return 0.0
    if line.opcode.endswith("-done"):
        return sum((array.size for array in line.results if array.in_hbm), 0.0)
    inside = hlo.computations.get(line.called[0], ()) if line.called else ()
    carried = _carried(inside)
    read = 0.0
    for position, operand in enumerate(line.operands):
        source = by_name.get(operand)
        if source is None or source.opcode == "constant":
            continue
        size = sum((array.size for array in source.results if array.in_hbm), 0.0)
        if line.opcode == "fusion":
            size = _part_read(position, inside, size, hlo, carried)
        elif line.opcode in ("slice", "dynamic-slice"):
            size = min(size, line.size)
        elif line.opcode == "slice-start":  # Its results are the operand, the slice and a context.
            size = min(size, line.results[1].size)
        elif line.opcode == "dynamic-update-slice" and position == 0:
            size = 0.0
        read += size
    written = sum((array.size for array in _new(line, inside, carried) if array.in_hbm), 0.0)
    if line.opcode.endswith("-start"):
        written = 0.0  # Counted where it is done.
    for update in [line] if line.opcode == "dynamic-update-slice" else inside:
        if update.opcode == "dynamic-update-slice" and len(update.operands) > 1:
            scope = by_name if update is line else {each.name: each for each in inside}
            part = scope.get(update.operands[1])
            whole = update.size
            if part is not None and written >= whole:
                written += part.size - whole
    return read + written


def _carried(inside: tuple[Instruction, ...]) -> frozenset[str]:
    """Returns what a fusion only hands on: a collective under way, its operands and its results.

    XLA:TPU writes a collective that overlaps with products as a fusion that starts it, fusions that
    carry it on beside their own product, and one that ends it. It counts where it is started.
    """
    under_way = {line.name for line in inside if "chain_id=" in line.line}
    if not under_way or any('"AsyncCollectiveStart"' in line.line for line in inside):
        return frozenset()
    users = collections.defaultdict(set)
    for line in inside:
        for operand in line.operands:
            users[operand].add(line.name)
    ends = under_way | {inside[-1].name}
    return frozenset(
        under_way
        | {line.name for line in inside if line.opcode == "parameter" and users[line.name] <= ends}
    )


def _new(
    line: Instruction, inside: tuple[Instruction, ...], carried: frozenset[str]
) -> tuple[Array, ...]:
    """Returns the results of an operation that it computes itself."""
    if not carried:
        return line.results
    if inside[-1].opcode != "tuple":  # It ends a collective.
        return ()
    sources = inside[-1].operands
    return tuple(
        array for array, source in zip(line.results, sources, strict=True) if source not in carried
    )


def _part_read(
    position: int,
    inside: tuple[Instruction, ...],
    size: float,
    hlo: Hlo,
    carried: frozenset[str] = frozenset(),
) -> float:
    """Returns the bytes that a fusion reads of an operand of `size` bytes, by its position."""
    for line in inside:
        if line.opcode == "parameter" and f" parameter({position})" in line.line:
            read = 0.0 if line.name in carried else _read_of(line.name, inside, size, hlo)
            return min(size, read)
    return size


def _read_of(name: str, lines: tuple[Instruction, ...], size: float, hlo: Hlo) -> float:
    """Returns the bytes that the users of a value read of it: slices, or all."""
    read = 0.0
    for user in lines:
        for position, operand in enumerate(user.operands):
            if operand != name:
                continue
            if user.opcode == "dynamic-slice":
                read += user.size
            elif user.opcode == "bitcast":
                read += _read_of(user.name, lines, size, hlo)
            elif user.opcode == "fusion":
                read += _part_read(position, hlo.computations[user.called[0]], size, hlo)
            elif user.opcode != "dynamic-update-slice" or position:
                read += size
    return read
