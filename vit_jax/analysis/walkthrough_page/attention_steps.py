"""The steps of attention in one block: norm, queries and keys, scores, softmax, output."""

import numpy as np

from vit_jax.analysis.walkthrough_page import drawing
from vit_jax.analysis.walkthrough_page.elements import Number, Row, bar, formula, text
from vit_jax.analysis.walkthrough_page.step import BLOCK, Context, Step

Q = '<b class="query">q</b>'
K = '<b class="key">k</b>'
KEYS = '<b class="key">K</b>'  # Of all tokens.
V = '<b class="value">v</b>'
A = '<b class="weight">a</b>'
_LISTED = 5  # Tokens with the largest weights.


def attention_steps(context: Context) -> list[Step]:
    """Returns the steps from a block's input to the output of its attention."""
    steps = [_norm1(context), _projections(context)]
    if context.config.qk_norm:
        steps.append(_qk_norm(context))
    if context.config.rope != "none":
        steps.append(_rotation(context))
    return [*steps, _scores(context), _softmax(context), _values(context), _output(context)]


def norm_rows(context: Context, name: str, before: str, token: int) -> list[Row]:
    """Returns the rows of a norm of one token: its input, each part, its output."""
    arrays = context.trace.arrays
    rows = [
        context.vector_row("<i>x</i>", before, token),
        context.vector_row(
            "(<i>x</i> − <i>μ</i>) / <i>σ</i>" if f"{name}_mean" in arrays else "<i>x</i> / rms",
            f"{name}_standardised", token,
        ),
    ]  # fmt: skip
    if f"{name}_scale" in arrays:
        rows.append(context.vector_row("· <i>γ</i>", f"{name}_scale"))
    if f"{name}_bias" in arrays:
        rows.append(context.vector_row("+ <i>β</i>", f"{name}_bias"))
    return [*rows, context.vector_row("output", name, token, style="result")]


def norm_body(context: Context, name: str, before: str, token: int) -> str:
    """Returns the formula and the numbers of a norm of one token."""
    elements, is_centred = context.elements, f"{name}_mean" in context.trace.arrays
    std = elements.number(f"{name}_std", token)
    if is_centred:
        line = formula(
            "norm(<i>x</i>) = <i>γ</i> (<i>x</i> − <i>μ</i>) / <i>σ</i> + <i>β</i>",
        )
        values = f"<i>μ</i> = {elements.number(f'{name}_mean', token)}, <i>σ</i> = {std}"
    else:
        line = formula("norm(<i>x</i>) = <i>γ</i> <i>x</i> / rms(<i>x</i>)")
        values = f"rms = {std}"
    who = context.token_name(token)
    return (
        line
        + elements.shapes(("<i>X</i>", before), ("norm(<i>X</i>)", name))
        + f"<p>{who}: {values}</p>"
        + elements.vectors(
            "component",
            norm_rows(context, name, before, token),
            caption=f"The norm of one token: {who}",
        )
    )


def _norm1(context: Context) -> Step:
    config, trace = context.config, context.trace
    kind = "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm"
    first = (
        "The first block receives the embedded tokens."
        if trace.layer == 0
        else "The blocks before have changed the tokens already."
    )
    return Step(
        "norm1", BLOCK, kind,
        context.diagram(0)
        + text(f"Here is {context.layer_name}. {first} Before attention, each token is normalised "
               "by itself, so that its size does not matter.")
        + norm_body(context, "norm1", "block_input", trace.query),
    )  # fmt: skip


def _projections(context: Context) -> Step:
    elements, config = context.elements, context.config
    later = config.qk_norm or config.rope != "none"
    names = {"query": Q, "key": K, "value": V}
    rows = []
    for name, symbol in names.items():
        array = f"{name}_projected" if later and name != "value" else name
        rows += context.two_rows(array, symbol, style=name)
    bias = " + <i>b</i>" if config.qkv_bias else ""
    lines = [
        f"{symbol} = <i>x</i> <i>W</i><sub>{letter}</sub>"
        + (bias if config.key_bias or name != "key" else "")
        for (name, symbol), letter in zip(names.items(), "QKV", strict=True)
    ]
    array = "query_projected" if later else "query"
    return Step(
        "projections", BLOCK, "Query, key and value",
        context.diagram(1)
        + text(
            f"Each head makes three vectors from every token: a {Q}uery, what it looks for; a "
            f"{K}ey, what it can be found by; and a {V}alue, what it passes on. Here is "
            f"{context.head_name}."
        )
        + formula(*lines)
        + elements.shapes(("<i>X</i>", "norm1"), (Q, array), (K, array), (V, "value"))
        + elements.vectors("component", rows, caption="Query, key and value of one head"),
    )  # fmt: skip


def _qk_norm(context: Context) -> Step:
    rows = []
    for name, symbol in (("query", Q), ("key", K)):
        rows += context.two_rows(f"{name}_projected", f"{symbol} of")
        rows += context.two_rows(f"{name}_normed", f"norm({symbol}) of", style=name)
    return Step(
        "qk_norm", BLOCK, "Norms of queries and keys",
        context.diagram(1)
        + text("Queries and keys are normalised over the width of the head: their products stay "
               "small however long the model trains.")
        + formula(f"{Q} ← norm({Q}), {K} ← norm({K})")
        + context.elements.vectors("component", rows, caption="Before and after the norms"),
    )  # fmt: skip


def _rotation(context: Context) -> Step:
    elements, trace, config = context.elements, context.trace, context.config
    before = "normed" if config.qk_norm else "projected"
    halves = config.rope == "dinov3"
    partner = "<i>i</i> + <i>d</i><sub>h</sub>/2" if halves else "<i>i</i> + 1"
    rows = [
        context.vector_row(f"{Q} before", f"query_{before}", trace.token, style="query"),
        context.vector_row("cos <i>θ</i>", "rope_cos", trace.patch),
        context.vector_row("sin <i>θ</i>", "rope_sin", trace.patch),
        context.vector_row(f"{Q} rotated", "query", trace.token, style="query"),
        context.vector_row(f"{K} before", f"key_{before}", trace.token, style="key"),
        context.vector_row(f"{K} rotated", "key", trace.token, style="key"),
    ]
    return Step(
        "rotation", BLOCK, "Rotary position embedding",
        context.diagram(1)
        + text(
            f"Pairs of components of {Q} and {K} are rotated by angles that grow with the row or "
            "column of the patch. A product of both then depends on the distance between the "
            "patches. Tokens without pixels are not rotated."
        )
        + formula(
            f"{Q}<sub><i>i</i></sub> ← {Q}<sub><i>i</i></sub> cos <i>θ</i> − "
            f"{Q}<sub>{partner}</sub> sin <i>θ</i>",
            f"{Q}<sub>{partner}</sub> ← {Q}<sub>{partner}</sub> cos <i>θ</i> + "
            f"{Q}<sub><i>i</i></sub> sin <i>θ</i>",
        )
        + elements.shapes(("<i>θ</i>", "rope_cos"), (Q, "query"), (K, "key"))
        + elements.vectors("component", rows, caption=f"The rotation of {context.patch_name}"),
    )  # fmt: skip


def _scores(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    query, token = trace.query, trace.token
    terms = [
        (Number("query", (query, i)), Number("key", (token, i)), Number("score_products", (i,)))
        for i in range(min(3, len(trace.arrays["score_products"])))
    ]
    rows = [
        Row(context.token_name(j), [Number("dots", (j,)), Number("scores", (j,))], "key")
        for j in _listed(context)
    ]
    return Step(
        "scores", BLOCK, "Scores",
        context.diagram(1)
        + text(
            f"The query of {context.query_name} is compared with the key of every token by a dot "
            "product. Division by the root of the head's width, "
            f"{elements.size('query', 1)}, keeps the scores from growing with that width."
        )
        + formula(f"<i>s</i><sub><i>j</i></sub> = {Q} · {K}<sub><i>j</i></sub> / "
                  "√<i>d</i><sub>h</sub>")
        + elements.product_shapes((Q, "query"), (KEYS, "key"), ("scores", "scores"))
        + f"<p class=lead>With the key of {context.patch_name}:</p>"
        + elements.worked(
            terms, Number("dots", (token,)),
            after=(f"/ √{elements.size('query', 1)}", Number("scores", (token,))),
        )
        + elements.table(["token", f"{Q} · {K}", "score <i>s</i>"], rows,
                         caption="Tokens with the largest scores, and the shown patch"),
    )  # fmt: skip


def _listed(context: Context) -> list[int]:
    """Returns the tokens with the largest weights, and the shown patch."""
    order = np.argsort(-context.trace.arrays["attention"], kind="stable")[:_LISTED]
    return list(dict.fromkeys([*map(int, order), context.trace.token]))


def _softmax(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    weights = trace.arrays["attention"]
    rows = [
        Row(
            context.token_name(j),
            [Number("scores", (j,)), Number("exponentials", (j,)), Number("attention", (j,)),
             bar(float(weights[j] / weights.max()), "weight")],
        )
        for j in _listed(context)
    ]  # fmt: skip
    rows.append(
        Row("all tokens", ["", Number("exponentials_sum"), Number("attention_sum"), ""], "result")
    )
    drawn = drawing.attention_map(
        weights[context.config.num_prefix :], context.config.grid, "Attention of the head",
        query=None if context.config.has_class_token else trace.patch,
    )  # fmt: skip
    return Step(
        "softmax", BLOCK, "Softmax: attention weights",
        context.diagram(1)
        + text(
            f"The softmax makes positive weights {A} of the scores, whose sum is one: how much "
            f"{context.query_name} takes from each token."
        )
        + formula(
            f"{A}<sub><i>j</i></sub> = exp(<i>s<sub>j</sub></i> − max <i>s</i>) / "
            "Σ<sub><i>i</i></sub> exp(<i>s<sub>i</sub></i> − max <i>s</i>)"
        )
        + elements.shapes(("scores", "scores"), (A, "attention"))
        + '<div class="beside">'
        + drawing.figure(drawn, f"The weights of the patches, {context.layer_name}, "
                         f"{context.head_name}: the deeper the colour, the larger.")
        + elements.table(["token", "<i>s</i>", "exp(<i>s</i> − max)", A, ""], rows,
                         caption="The largest weights", by_column=True)
        + "</div>",
    )  # fmt: skip


def _values(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    rows = [
        context.vector_row(
            f"{A}{V} {context.token_name(j)}", "weighted_values", j, style="value"
        )
        for j in _listed(context)
    ]  # fmt: skip
    rows.append(Row("+ the others", ["…" for _ in rows[0].cells]))
    rows.append(context.vector_row("= sum", "head_output", trace.query, style="result"))
    return Step(
        "values", BLOCK, "The weighted sum of the values",
        context.diagram(1)
        + text(f"The head's output is the sum of the values {V}, each multiplied by its weight.")
        + formula(f"<i>o</i> = Σ<sub><i>j</i></sub> {A}<sub><i>j</i></sub> {V}<sub><i>j</i></sub>")
        + elements.shapes((A, "attention"), (V, "value"), ("<i>o</i> of each query", "head_output"))
        + elements.vectors("component", rows, caption=f"The sum for {context.query_name}"),
    )  # fmt: skip


def _output(context: Context) -> Step:
    elements, trace, config = context.elements, context.trace, context.config
    heads = trace.arrays["head_attention"][:, config.num_prefix :]
    maps = [
        (f'<span class="label">head {i + 1}</span>',
         drawing.attention_map(weights, config.grid, f"Attention of head {i + 1}"))
        for i, weights in enumerate(heads)
    ]  # fmt: skip
    rows = [context.vector_row("heads side by side", "concatenated", trace.query)]
    norm = ""
    if config.attn_norm:
        norm = " A LayerNorm comes between."
        rows.append(context.vector_row("normalised", "attn_norm", trace.query))
    rows.append(
        context.vector_row("output", "attention_output", trace.query, style="result")
    )  # fmt: skip
    return Step(
        "heads", BLOCK, "All heads, and the output projection",
        context.diagram(1)
        + text(
            f"The {elements.size('head_attention', 0)} heads do the same at once, each with "
            "matrices of its own. Their outputs are put side by side, and one more matrix mixes "
            f"them.{norm}"
        )
        + formula("MHA(<i>X</i>) = [<i>o</i><sub>1</sub> ; … ; <i>o</i><sub><i>h</i></sub>] "
                  "<i>W</i><sub>O</sub> + <i>b</i>")
        + elements.shapes(("one head", "head_output"), ("side by side", "concatenated"),
                          ("output", "attention_output"))
        + drawing.figure(
            drawing.small_maps(maps, chosen=trace.head),
            f"What {context.query_name} attends to, in each head of {context.layer_name}.",
        )
        + elements.vectors("component", rows, caption=f"The output for {context.query_name}"),
    )  # fmt: skip
