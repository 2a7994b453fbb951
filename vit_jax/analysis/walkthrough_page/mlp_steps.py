"""The steps of a block after attention: residual, norm, MLP, residual."""

from vit_jax.analysis.walkthrough_page import drawing
from vit_jax.analysis.walkthrough_page.attention_steps import norm_body
from vit_jax.analysis.walkthrough_page.elements import Number, Row, formula, text
from vit_jax.analysis.walkthrough_page.step import BLOCK, Context, Step

_ACTIVATIONS = {
    "gelu": "GELU", "silu": "SiLU", "swiglu": "SiLU", "geglu": "GELU",
}  # fmt: skip


def mlp_steps(context: Context) -> list[Step]:
    """Returns the steps from attention's output to the block's."""
    if context.config.parallel:
        return [_mlp(context), _parallel_residual(context), _layers(context)]
    return [
        _first_residual(context), _norm2(context), _mlp(context), _second_residual(context),
        _layers(context),
    ]  # fmt: skip


def _scaled_rows(context: Context, output: str, scale: str, branch: str) -> list[Row]:
    """Returns the rows of a branch: its output, times the layer scale if there is one."""
    token = context.trace.query
    if not context.config.layer_scale:
        return [context.vector_row("+ branch", output, token)]
    return [
        context.vector_row("branch", output, token),
        context.vector_row("· layer scale <i>λ</i>", scale),
        context.vector_row("+ scaled branch", branch, token),
    ]


def _scale_sentence(context: Context) -> str:
    if not context.config.layer_scale:
        return ""
    return " A learned factor of each component, the layer scale <i>λ</i>, is applied before."


def _first_residual(context: Context) -> Step:
    elements, token = context.elements, context.trace.query
    factor = "<i>λ</i> " if context.config.layer_scale else ""
    rows = [
        context.vector_row("<i>x</i>", "block_input", token),
        *_scaled_rows(context, "attention_output", "scale1", "attention_branch"),
        context.vector_row("= sum", "after_attention", token, style="result"),
    ]
    return Step(
        "residual1", BLOCK, "The residual connection",
        context.diagram(2)
        + text("Attention's output is added to the block's input: a block does not replace a "
               "token, it changes it a little." + _scale_sentence(context))
        + formula(f"<i>X</i>′ = <i>X</i> + {factor}MHA(norm(<i>X</i>))")
        + elements.shapes(("<i>X</i>", "block_input"), ("<i>X</i>′", "after_attention"))
        + elements.vectors("component", rows, caption=f"The sum for {context.query_name}"),
    )  # fmt: skip


def _norm2(context: Context) -> Step:
    kind = "RMSNorm" if context.config.norm == "rmsnorm" else "LayerNorm"
    return Step(
        "norm2", BLOCK, f"{kind} again",
        context.diagram(3)
        + text("Before the MLP, each token is normalised again, with other learned factors.")
        + norm_body(context, "norm2", "after_attention", context.trace.query),
    )  # fmt: skip


def _mlp(context: Context) -> Step:
    elements, config, token = context.elements, context.config, context.trace.query
    activation = _ACTIVATIONS[config.mlp]
    normed = "norm1" if config.parallel else "norm2"
    rows = [context.vector_row("<i>x</i> <i>W</i><sub>1</sub> + <i>b</i>", "hidden_input", token)]
    inner = f"{activation}(<i>x</i> <i>W</i><sub>1</sub>)"
    gate = ""
    if config.gated:
        rows.append(context.vector_row("gate", "gate_input", token))
        inner = f"({activation}(<i>x</i> <i>W</i><sub>g</sub>) ⊙ <i>x</i> <i>W</i><sub>1</sub>)"
        gate = " A gate, made by a matrix of its own, multiplies them."
    rows.append(context.vector_row("hidden units", "hidden", token))
    if config.mlp_norm:
        rows.append(context.vector_row("normalised", "mlp_norm", token))
        inner, gate = f"norm{inner}", gate + " A norm follows."
    output = [context.vector_row("output", "mlp_output", token, style="result")]
    what = "each token by itself, the same two matrices for all. Between them it has"
    if config.parallel:
        what = "the same normalised input as attention, at the same time. It has"
    return Step(
        "mlp", BLOCK, "The MLP",
        context.diagram(4)
        + text(f"The MLP works on {what} {elements.size('hidden', 1)} hidden units with the "
               f"activation {activation}, which lets positive values pass and holds back negative "
               f"ones.{gate}")
        + formula(f"MLP(<i>x</i>) = {inner} <i>W</i><sub>2</sub>")
        + elements.shapes(("<i>X</i>", normed), ("hidden", "hidden"), ("output", "mlp_output"))
        + elements.vectors("hidden unit", rows, caption=f"Hidden units of {context.query_name}")
        + elements.vectors("component", output, caption=f"The output for {context.query_name}"),
    )  # fmt: skip


def _second_residual(context: Context) -> Step:
    elements, token = context.elements, context.trace.query
    factor = "<i>λ</i> " if context.config.layer_scale else ""
    rows = [
        context.vector_row("<i>x</i>′", "after_attention", token),
        *_scaled_rows(context, "mlp_output", "scale2", "mlp_branch"),
        context.vector_row("= sum", "block_output", token, style="result"),
    ]
    return Step(
        "residual2", BLOCK, "The second residual connection",
        context.diagram(5)
        + text("The MLP's output is added as well. The sum is the output of the block, of the same "
               "shape as its input.")
        + formula(f"<i>X</i>″ = <i>X</i>′ + {factor}MLP(norm(<i>X</i>′))")
        + elements.shapes(("<i>X</i>′", "after_attention"), ("<i>X</i>″", "block_output"))
        + elements.vectors("component", rows, caption=f"The sum for {context.query_name}"),
    )  # fmt: skip


def _parallel_residual(context: Context) -> Step:
    elements, token = context.elements, context.trace.query
    factor = "<i>λ</i> " if context.config.layer_scale else ""
    rows = [
        context.vector_row("<i>x</i>", "block_input", token),
        context.vector_row("+ attention", "attention_branch", token),
        context.vector_row("+ MLP", "mlp_branch", token),
        context.vector_row("= sum", "block_output", token, style="result"),
    ]
    return Step(
        "residual2", BLOCK, "The residual connection",
        context.diagram(5)
        + text("The outputs of attention and MLP are added to the block's input together: a block "
               "does not replace a token, it changes it a little." + _scale_sentence(context))
        + formula(f"<i>X</i>″ = <i>X</i> + {factor}(MHA(norm(<i>X</i>)) + MLP(norm(<i>X</i>)))")
        + elements.shapes(("<i>X</i>", "block_input"), ("<i>X</i>″", "block_output"))
        + elements.vectors("component", rows, caption=f"The sum for {context.query_name}"),
    )  # fmt: skip


def _layers(context: Context) -> Step:
    elements, trace, config = context.elements, context.trace, context.config
    names = {"class_norm": "class token", "patch_norm": "patches, mean"}
    series = {name: trace.arrays[name] for name in names if name in trace.arrays}
    chart = drawing.line_chart(
        list(series.items()), "The norms of the tokens after each layer, from zero up"
    )
    legend = ", ".join(f'<b class="{name}">{names[name]}</b>' for name in series)
    maps = [
        (f'<span class="label">layer {i + 1}</span>',
         drawing.attention_map(weights[config.num_prefix :], config.grid,
                               f"Attention in layer {i + 1}, mean of the heads"))
        for i, weights in enumerate(trace.arrays["layer_attention"])
    ]  # fmt: skip
    rows = [
        Row(f'<span class="label">layer {i + 1}</span>',
            [Number(name, (i,)) for name in series])
        for i in range(config.depth)
    ]  # fmt: skip
    return Step(
        "layers", BLOCK, "Layer after layer",
        text(f"The model has {elements.size('layer_attention', 0)} such blocks, one after another, "
             "each with parameters of its own. The tokens keep their shape and change their "
             "meaning: from pixels to what the head can read.")
        + formula("<i>X</i><sub><i>l</i>+1</sub> = block<sub><i>l</i></sub>(<i>X</i><sub><i>l</i>"
                  "</sub>)")
        + drawing.figure(
            drawing.small_maps(maps, chosen=trace.layer),
            f"What {context.query_name} attends to in each layer, mean of the heads.",
        )
        + drawing.figure(chart, f"Norm of the tokens after each layer: {legend}.")
        + elements.table(["after", *(names[name] for name in series)], rows,
                         caption="The norm of the tokens"),
    )  # fmt: skip
