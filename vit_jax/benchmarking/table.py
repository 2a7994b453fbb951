"""What was measured as tables, for the terminal and for Markdown."""

from collections.abc import Sequence

from rich.table import Table

from vit_jax.benchmarking.result import Result
from vit_jax.benchmarking.samples import Spread, ratios
from vit_jax.benchmarking.worker import OURS

_UNMEASURED = "-"
HEADINGS = (
    "contender", "train img/s", "forward img/s", "MB steps", "MB process", "GFLOP/s",
    "of matmul", "MFU", "init s", "trace s", "compile s", "loss diff.", "",
)  # fmt: skip


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Returns the cells of each result, in the order of HEADINGS."""
    return [_row(result) for result in results]


def _row(result: Result) -> tuple[str, ...]:
    preparation, verdict = result.preparation, result.verdict
    achieved = result.train_flops_per_second()
    times = (
        (preparation.init_seconds, preparation.trace_seconds, preparation.compile_seconds)
        if preparation
        else (None, None, None)
    )
    loss = None if verdict is None else verdict.loss_difference
    note = "" if result.is_ok else f"{result.status}: {result.message}".removesuffix(": ")
    return (
        result.name,
        format_spread(result.train_rate()),
        format_spread(result.forward_rate()),
        _megabytes(result.steps_bytes),
        _megabytes(result.process_bytes),
        _UNMEASURED if achieved is None else f"{achieved / 1e9:,.0f}",
        _percent(result.matmul_share()),
        _percent(result.mfu()),
        *(_UNMEASURED if each is None else f"{each:.1f}" for each in times),
        _UNMEASURED if loss is None else f"{loss:.0e}",
        note,
    )


def format_spread(spread: Spread | None) -> str:
    """Returns the median with the range in brackets, in three digits."""
    if spread is None:
        return _UNMEASURED
    return f"{digits(spread.median)} ({digits(spread.low)} to {digits(spread.high)})"


def digits(value: float) -> str:
    """Returns three significant digits, never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _megabytes(size: int | None) -> str:
    return _UNMEASURED if size is None else f"{size / 1e6:,.0f}"


def _percent(share: float | None) -> str:
    return _UNMEASURED if share is None else f"{share:.0%}"


def ratio_lines(results: Sequence[Result]) -> list[str]:
    """Returns a line for each case of ours and each peer: how many times as fast ours is.

    A ratio is the median over the rounds, each of which timed both.
    """
    lines = []
    for own in (each for each in results if each.contender == OURS and each.is_ok):
        for peer in (each for each in results if each.contender != OURS and each.is_ok):
            parts = [
                f"{kind} {format_spread(ratios(mine, theirs))}"
                for kind, mine, theirs in (
                    ("train", own.train_seconds, peer.train_seconds),
                    ("forward", own.forward_seconds, peer.forward_seconds),
                )
                if mine and len(mine) == len(theirs)
            ]
            if own.steps_bytes and peer.steps_bytes:
                parts.append(f"memory {digits(own.steps_bytes / peer.steps_bytes)}")
            lines.append(f"{own.name} / {peer.name}: {', '.join(parts)}")
    return lines


def terminal_table(title: str, results: Sequence[Result]) -> Table:
    """Returns the table for a terminal."""
    table = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        is_text = heading in ("contender", "")
        table.add_column(heading, justify="left" if is_text else "right")
    for row in rows(results):
        table.add_row(*row)
    return table


def markdown_table(results: Sequence[Result]) -> str:
    """Returns the table in Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows(results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
