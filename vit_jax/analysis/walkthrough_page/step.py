"""What the functions that write the steps share."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vit_jax.analysis.measures.token_norms import prefix_names
from vit_jax.analysis.walkthrough_page import drawing
from vit_jax.analysis.walkthrough_page.elements import Cell, Elements, Row, escape
from vit_jax.analysis.walkthrough_page.trace import Trace
from vit_jax.config.model import VitConfig

INPUT, EMBEDDING, BLOCK, OUTPUT = "Input", "Embedding", "Transformer block", "Output"


class Step(NamedTuple):
    """A step of the page.

    Attributes:
      key: of its numbers in the page's JSON.
      part: the group of the list of steps.
      title: heading, as text.
      body: HTML.
    """

    key: str
    part: str
    title: str
    body: str


@dataclasses.dataclass(frozen=True)
class Context:
    """What a step is written from.

    Attributes:
      trace: the arrays.
      elements: makes HTML, and records the shown numbers.
      pixels: the prepared image to be drawn.
      labels: class names; None: unknown.
    """

    trace: Trace
    elements: Elements
    pixels: UInt8[np.ndarray, "h w c"]
    labels: tuple[str, ...] | None

    @property
    def config(self) -> VitConfig:
        """Architecture."""
        return self.trace.config

    @property
    def query_name(self) -> str:
        """The token whose attention is shown."""
        return "the class token" if self.config.has_class_token else "the shown patch"

    @property
    def patch_name(self) -> str:
        """The shown patch, as a label."""
        return f'<span class="label">patch {self.trace.patch + 1}</span>'

    def class_name(self, index: int) -> str:
        """Returns the name of a class as HTML."""
        name = f"class {index}" if self.labels is None else self.labels[index]
        return f'<span class="label">{escape(name)}</span>'

    def token_name(self, token: int) -> str:
        """Returns the name of a token of the sequence, as HTML."""
        names = prefix_names(self.config)
        name = names[token] if token < len(names) else f"patch {token - len(names) + 1}"
        return f'<span class="label">{name}</span>'

    def two_rows(self, name: str, symbol: str = "", style: str = "") -> list[Row]:
        """Returns the rows of an array [tokens, width] of the query's token and the shown patch."""
        trace = self.trace
        return [
            self.vector_row(f"{symbol} {self.token_name(token)}".strip(), name, token, style=style)
            for token in dict.fromkeys([trace.query, trace.token])
        ]

    def vector_row(self, label: str, name: str, *index: int, style: str = "") -> Row:
        """Returns a row with the first components of a vector, and its last."""
        cells: list[Cell] = self.elements.vector(name, *index)
        return Row(label, cells, style)

    def diagram(self, chosen: int) -> str:
        """Returns the diagram of a block with its part `chosen`."""
        return drawing.block_diagram(chosen, parallel=self.config.parallel)

    @property
    def layer_name(self) -> str:
        """The shown layer, as a label."""
        return f'<span class="label">layer {self.trace.layer + 1} of {self.config.depth}</span>'

    @property
    def head_name(self) -> str:
        """The shown head, as a label."""
        return f'<span class="label">head {self.trace.head + 1} of {self.config.num_heads}</span>'
