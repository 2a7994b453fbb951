"""The attention of one image: where each head of each layer looks, from a query of choice."""

import dataclasses
import math
import numbers
import textwrap
from typing import Any, ClassVar, cast

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.analysis.measures import heat_maps
from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.encoder import Captured, measure_blocks, measured
from vit_jax.analysis.measures.images import Images, open_images
from vit_jax.analysis.measures.readout import (
    has_probe,
    over_all_tokens,
    probe_weights,
    read_tokens,
    read_tokens_text,
)
from vit_jax.analysis.measures.result import NamedArray, Result
from vit_jax.config.model import VitConfig
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.pretrained.model import Pretrained

Query = str | tuple[int, int] | None
_PANELS_IN_ROW = 8


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AttentionMaps(Result):
    """The result of `attention_maps`.

    Attributes:
      attention: weights of the query on the patches.
      prefix_share: share of its attention on prefix tokens.
      probe: weights of a MAP head's probe on the patches; None: the model has none.
      probe_prefix_share: its share on prefix tokens.
      query: what looks, in words.
      patch: top, left, height, width of the query's patch in pixels; None: it is no patch.
      layer: index from 0 of the layer whose heads are drawn; None: all layers, means over heads.
      num_prefix: number of prefix tokens.
      image: the prepared image's pixels.
    """

    attention: Float[np.ndarray, "layer head row column"]
    prefix_share: Float[np.ndarray, "layer head"]
    probe: Float[np.ndarray, "head row column"] | None
    probe_prefix_share: Float[np.ndarray, " head"] | None
    query: str
    patch: tuple[int, int, int, int] | None
    layer: int | None
    num_prefix: int
    image: UInt8[np.ndarray, "height width channels"]

    name: ClassVar[str] = "attention_maps"
    title: ClassVar[str] = "Attention maps"
    shows: ClassVar[str] = (
        "Where the model looks in one image: the attention from the token that its head "
        "reads, or from another one."
    )
    definition: ClassVar[str] = (
        "Attention weights (after the softmax) of one query on the patches, in one image, which "
        "has no interval. The query is the token that the head reads: the class token (with a "
        "distillation token, the mean of both), or the mean over the patches' queries if the head "
        "reads their mean or pools by attention; in the latter case also the weights of the "
        "pooling's probe; or a token of choice. Weights are not renormalised: with the share on "
        "prefix tokens (class, distillation, registers), which are not drawn, they sum to 1. "
        "Uniform attention has the weight 1/N on each of N tokens, prefix tokens included. "
        "Layers are the blocks, counted from 1 in tables and figures and from 0 in arrays."
    )
    source: ClassVar[str] = (
        "Vaswani et al. 2017, arXiv 1706.03762; drawn as in Caron et al. 2021 (DINO), arXiv "
        "2104.14294, figure 1"
    )

    def arrays(self) -> dict[str, NamedArray]:
        """Returns attention [layer, head, row, column], prefix_share, and those of a probe."""
        meaning = f"attention of the query ({self.query}) on the patches"
        share = "share of the query's attention on prefix tokens"
        axes = ("layer", "head", "row", "column")
        arrays = {
            "attention": NamedArray(self.attention, axes, "", meaning),
            "prefix_share": NamedArray(self.prefix_share, axes[:2], "", share),
        }
        if self.probe is not None and self.probe_prefix_share is not None:
            meaning = "attention of the MAP head's probe on the patches"
            arrays["probe"] = NamedArray(self.probe, axes[1:], "", meaning)
            share = "share of the probe's attention on prefix tokens"
            arrays["probe_prefix_share"] = NamedArray(self.probe_prefix_share, axes[1:2], "", share)
        return arrays

    def plot(self) -> Figure:
        """Draws the image, then all layers (means over heads), or the heads of one layer."""
        panels: list[heat_maps.Panel] = [
            (f"query:\n{textwrap.fill(self.query, 20)}", self.image, None)
        ]
        if self.layer is None:
            if self.probe is not None and self.probe_prefix_share is not None:
                panels += [
                    self._panel(f"probe, head {head + 1}", values, share)
                    for head, (values, share) in enumerate(
                        zip(self.probe, self.probe_prefix_share, strict=True)
                    )
                ]
            panels += [
                self._panel(f"layer {layer + 1}", values.mean(axis=0), shares.mean())
                for layer, (values, shares) in enumerate(
                    zip(self.attention, self.prefix_share, strict=True)
                )
            ]
        else:
            panels += [
                self._panel(f"layer {self.layer + 1}, head {head + 1}", values, share)
                for head, (values, share) in enumerate(
                    zip(self.attention[self.layer], self.prefix_share[self.layer], strict=True)
                )
            ]
        with matplotlib.rc_context(figures.STYLE):
            return heat_maps.draw(
                panels, columns=min(_PANELS_IN_ROW, len(panels)),
                scale=("0", "each map's maximum (max)"), from_zero=True, opacity=1.0,
                marked=self.patch, size=1.5,
            )  # fmt: skip

    def _panel(self, title: str, values: np.ndarray, prefix_share: Any) -> heat_maps.Panel:
        uniform = 1 / (values.size + self.num_prefix)
        text = f"{title}\nmax {values.max():.2g}\nuniform {uniform:.2g}"
        if self.prefix_share.any():
            text += f"\nprefix {_percent(float(prefix_share))}"
        return text, self.image, values


def attention_maps(
    pretrained: Pretrained,
    image: Images,
    *,
    layer: int | None = None,
    query: Query = None,
) -> AttentionMaps:
    """Shows where the heads of each layer look in an image.

    `Pretrained.attention` is a shorter way to such maps, which differs for two kinds of models: of
    one with a distillation token it shows the class token's row (here: the mean of the rows of both
    tokens), and of one with `pool="token_gap"` also the class token's (here: half of that, and half
    of the mean of the patches' rows). query="class" gives its rows here.

    Args:
      pretrained: a ViT or hybrid.
      image: see `vit_jax.analysis.measures.images.open_images`; of several the first.
      layer: index of the layer whose heads the figure shows, from 0, or from -1 backwards; None:
        all layers, means over their heads. The arrays have all layers and heads.
      query: whose attention: (row, column) of a patch, from 0; "class", "distillation",
        "register0", ...; None: the token that the head reads.

    Raises:
      ConfigError: the model has no such layer or token.
      NotApplicableError: the model has no attention.

    Example:
      >>> model = create("mu/16", image_size=32)
      >>> result = analysis.attention_maps(model, "cat.png", query=(0, 1))
      >>> result.attention.shape  # Layers, heads, rows and columns of patches.
      (1, 2, 2, 2)
      >>> total = result.attention.sum(axis=(2, 3)) + result.prefix_share
      >>> np.testing.assert_allclose(total, 1, rtol=1e-6)
    """
    model = measured(pretrained)
    config = model.vit
    if layer is not None:
        reason = f"the model has {config.depth} layers"
        layer = whole_number(
            "layer", layer, low=-config.depth, high=config.depth - 1, reason=reason
        )
    if isinstance(query, list):
        query = cast(Query, tuple(query))
    shares = jnp.asarray(query_shares(config, query), jnp.float32)
    prepared = open_images(pretrained, image).first(1)
    rows = measure_blocks(
        model.model, model.variables, prepared, _row_of_query, ("attention",), (shares,)
    )
    attention, prefix_share = _on_patches(np.asarray(rows)[:, 0], config)
    probe, probe_prefix_share = None, None
    if has_probe(config):
        weights = over_all_tokens(probe_weights(model.model, model.variables, prepared), config)
        probe, probe_prefix_share = _on_patches(np.asarray(weights)[0], config)
    return AttentionMaps(
        checkpoint=model.name,
        num_images=1,
        attention=attention,
        prefix_share=prefix_share,
        probe=probe,
        probe_prefix_share=probe_prefix_share,
        query=_query_text(config, query),
        patch=_rectangle(config, query),
        layer=None if layer is None else layer % config.depth,
        num_prefix=config.num_prefix,
        image=pretrained.preprocess.restored(prepared)[0],
    )


def _row_of_query(captured: Captured, shares: Float[Array, " n"]) -> Float[Array, "b heads n"]:
    return jnp.einsum("q,bhqk->bhk", shares, captured["attention"])


def query_shares(config: VitConfig, query: Query) -> Float[np.ndarray, " n"]:
    """Returns the share of each token in a query; the shares sum to 1.

    Raises:
      ConfigError: the model has no such token.
    """
    if query is None:
        return read_tokens(config)
    if isinstance(query, str):
        names = _prefix_names(config)
        if query not in names:
            advice = did_you_mean(query, names) if names else "It has no prefix tokens."
            raise ConfigError(
                f'The model has no token "{query}". {advice} Or write (row, column) of a patch.'
            )
        return np.eye(config.num_tokens)[names.index(query)]
    rows, columns = config.grid
    is_patch = isinstance(query, tuple) and len(query) == 2
    is_patch = is_patch and all(isinstance(i, numbers.Integral) for i in query)
    if not is_patch or not (0 <= query[0] < rows and 0 <= query[1] < columns):
        raise ConfigError(
            f"query is {query}: the model has {rows} rows and {columns} columns of patches; write "
            "(row, column), both from 0."
        )
    return np.eye(config.num_tokens)[config.num_prefix + query[0] * columns + query[1]]


def _prefix_names(config: VitConfig) -> list[str]:
    """Returns the names of the prefix tokens in their order."""
    names = ["class"] * config.has_class_token + ["distillation"] * config.distilled
    return names + [f"register{i}" for i in range(config.registers)]


def _on_patches(
    weights: Float[np.ndarray, "*axes n"], config: VitConfig
) -> tuple[Float[np.ndarray, "*axes row column"], Float[np.ndarray, "*axes"]]:
    prefix, patches = np.split(weights, [config.num_prefix], axis=-1)
    return patches.reshape(*patches.shape[:-1], *config.grid), prefix.sum(axis=-1)


def _query_text(config: VitConfig, query: Query) -> str:
    if query is None:
        return read_tokens_text(config)
    if isinstance(query, str):
        return query if query.startswith("register") else f"{query} token"
    return f"patch in row {query[0] + 1}, column {query[1] + 1}"


def _percent(share: float) -> str:
    """Returns a share with two significant digits, without an exponent: "0.53%", "12%"."""
    digits = 1 - math.floor(math.log10(100 * share)) if share > 0 else 0
    return f"{share:.{max(digits, 0)}%}"


def _rectangle(config: VitConfig, query: Query) -> tuple[int, int, int, int] | None:
    if not isinstance(query, tuple):
        return None
    (height, width), (row, column) = config.stride, query
    return row * height, column * width, height, width
