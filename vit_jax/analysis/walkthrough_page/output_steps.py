"""The steps from the last block to the loss."""

from vit_jax.analysis.walkthrough_page import drawing
from vit_jax.analysis.walkthrough_page.attention_steps import norm_body
from vit_jax.analysis.walkthrough_page.elements import Number, Row, bar, formula, text
from vit_jax.analysis.walkthrough_page.step import OUTPUT, Context, Step
from vit_jax.analysis.walkthrough_page.trace import best_classes


def output_steps(context: Context) -> list[Step]:
    """Returns the steps after the blocks, as far as the model has them."""
    config, arrays = context.config, context.trace.arrays
    steps = []
    if config.final_norm == "tokens":
        steps.append(_final_norm(context))
    steps.append(_pooling(context))
    if config.final_norm == "pooled":
        steps.append(_pooled_norm(context))
    if config.rep_size:
        steps.append(_pre_logits(context))
    if not config.num_classes:
        return [*steps, _features(context)]
    steps.append(_head(context))
    if "probabilities" in arrays:
        steps += [_probabilities(context), _loss(context)]
    return steps


def _final_norm(context: Context) -> Step:
    kind = "RMSNorm" if context.config.norm == "rmsnorm" else "LayerNorm"
    return Step(
        "final_norm", OUTPUT, f"The final {kind}",
        text("After the last block, the tokens are normalised a last time.")
        + norm_body(context, "final_norm", "last_block", context.trace.query),
    )  # fmt: skip


def _pooling(context: Context) -> Step:
    config, elements = context.config, context.elements
    rows = [context.vector_row("<i>y</i>", "pooled", style="result")]
    shapes = elements.shapes(("tokens", "tokens"), ("<i>y</i>", "pooled"))
    table = elements.vectors("component", rows, caption="The vector that stands for the image")
    if config.pool in ("map", "map_patches"):
        return Step("pooling", OUTPUT, "Attention pooling", _map_body(context, shapes + table))
    said = {
        "token": ("The class token's output", "Of all tokens, the head reads one: the class token. "
                  "Through attention it has collected what it needs from the patches.",
                  "<i>y</i> = <i>X</i><sub>class</sub>"),
        "gap": ("The mean of the patches", "The head reads the mean of all patches (global average "
                "pooling).", "<i>y</i> = mean<sub><i>j</i></sub> <i>X<sub>j</sub></i>"),
        "token_gap": ("Class token and mean of the patches", "The head reads the class token and "
                      "the mean of all patches, side by side.",
                      "<i>y</i> = [<i>X</i><sub>class</sub> ; mean<sub><i>j</i></sub> "
                      "<i>X<sub>j</sub></i>]"),
    }  # fmt: skip
    title, sentences, line = said[config.pool]
    if config.distilled:
        sentences = (
            "The head reads two tokens, the class token and the distillation token, each with "
            "weights of its own. The vectors here and in the next step are the class token's."
        )
    return Step("pooling", OUTPUT, title, text(sentences) + formula(line) + shapes + table)


def _map_body(context: Context, rest: str) -> str:
    config, weights = context.config, context.trace.arrays["pool_attention"]
    prefix = config.num_prefix if config.pool == "map" else 0
    maps = [
        (f'<span class="label">head {i + 1}</span>',
         drawing.attention_map(row[prefix:], config.grid, f"Attention of the probe, head {i + 1}"))
        for i, row in enumerate(weights)
    ]  # fmt: skip
    return (
        text("A learned query, the probe, attends to the tokens, as a class token would; an MLP "
             "with a residual connection follows. The result stands for the image.")
        + formula("<i>u</i> = MHA(probe, <i>X</i>)", "<i>y</i> = <i>u</i> + MLP(norm(<i>u</i>))")
        + context.elements.shapes(("weights", "pool_attention"))
        + drawing.figure(drawing.small_maps(maps), "What the probe attends to, in each head.")
        + rest
    )  # fmt: skip


def _pooled_norm(context: Context) -> Step:
    elements = context.elements
    rows = [
        context.vector_row("<i>y</i>", "pooled"),
        context.vector_row("norm(<i>y</i>)", "pooled_norm", 0, style="result"),
    ]
    return Step(
        "pooled_norm", OUTPUT, "The norm after pooling",
        text("This model normalises the pooled vector, and not each token.")
        + formula("<i>y</i> ← norm(<i>y</i>)")
        + elements.vectors("component", rows, caption="Before and after the norm"),
    )  # fmt: skip


def _pre_logits(context: Context) -> Step:
    elements = context.elements
    rows = [
        context.vector_row("<i>y W</i> + <i>b</i>", "pre_logits_input"),
        context.vector_row("tanh", "pre_logits", style="result"),
    ]
    return Step(
        "pre_logits", OUTPUT, "The pre-logits layer",
        text("A dense layer with a hyperbolic tangent comes before the head; the published models "
             "that were trained on ImageNet-<span class=label>21k</span> have it.")
        + formula("<i>r</i> = tanh(<i>y W</i> + <i>b</i>)")
        + elements.shapes(("<i>y</i>", "pooled"), ("<i>r</i>", "pre_logits"))
        + elements.vectors("component", rows, caption="The pre-logits"),
    )  # fmt: skip


def _features(context: Context) -> Step:
    elements = context.elements
    rows = [context.vector_row("features", "pre_logits", style="result")]
    return Step(
        "features", OUTPUT, "The features",
        text("This model has no head: its output is the vector itself. Images that are alike have "
             "similar vectors, so a linear classifier or a search for neighbours can use them.")
        + elements.shapes(("features", "pre_logits"))
        + elements.vectors("component", rows, caption="The model's output"),
    )  # fmt: skip


def _head(context: Context) -> Step:
    elements, arrays = context.elements, context.trace.arrays
    best = int(arrays["logits"].argmax())
    name = "logit" if context.trace.loss else "output"
    terms = [
        (
            Number("pre_logits", (i,)),
            Number("head_kernel", (i, best)),
            Number("head_products", (i,)),
        )
        for i in range(min(3, len(arrays["head_products"])))
    ]
    one = "logits_class" if context.config.distilled else "logits"
    heads = [name]
    columns = ["logits"]
    more = ""
    if context.config.distilled:
        columns = ["logits_class", "logits_distillation", "logits"]
        heads = ["class token", "distillation token", "mean"]
        more = (
            " The distillation token has a head of its own; the output is the mean of both."
        )  # fmt: skip
    rows = [
        Row(context.class_name(i), [Number(column, (i,)) for column in columns])
        for i in map(int, best_classes(arrays["logits"]))
    ]
    kind = "class" if context.trace.loss else "output"
    return Step(
        "head", OUTPUT, "The head: logits" if context.trace.loss else "The head",
        text(f"A linear layer gives each {kind} a number, the {name}: a dot product with the "
             f"{kind}'s own column of weights, plus a bias.{more}")
        + formula("<i>z</i> = <i>y</i> <i>W</i> + <i>b</i>")
        + elements.shapes(("<i>y</i>", "pre_logits"), ("<i>W</i>", "head_kernel"),
                          ("<i>z</i>", "logits"))
        + f"<p class=lead>The {name} of {context.class_name(best)}:</p>"
        + elements.worked(terms, Number("head_sum"))
        + f'<p class="worked">{elements.number("head_sum")} + bias '
        f"{elements.number('head_bias', best)} = "
        f"<strong>{elements.number(one, best)}</strong></p>"
        + elements.table([kind, *heads], rows, caption=f"The largest {name}s"),
    )  # fmt: skip


def _probabilities(context: Context) -> Step:
    elements, arrays = context.elements, context.trace.arrays
    is_softmax = context.trace.loss == "softmax_xent"
    logits = arrays["logits"]
    verdict = f"The model says <strong>{context.class_name(int(logits.argmax()))}</strong>."
    if len(logits) > 1 and logits.min() == logits.max():
        verdict = "All classes have the same probability: the head is not trained."
    rows = [
        Row(
            context.class_name(i),
            [Number("logits", (i,)), Number("probabilities", (i,)),
             bar(float(arrays["probabilities"][i]), "probability")],
            "result" if rank == 0 else "",
        )
        for rank, i in enumerate(map(int, best_classes(arrays["logits"])))
    ]  # fmt: skip
    sentences = (
        "The softmax turns the logits of all classes into probabilities with the sum one."
        if is_softmax
        else "The logistic function turns each logit into a probability. They need no sum of one: "
        "several classes, or none, may be in the image."
    )
    line = (
        "<i>p<sub>c</sub></i> = exp(<i>z<sub>c</sub></i>) / Σ<sub><i>i</i></sub> exp(<i>z<sub>i"
        "</sub></i>)"
        if is_softmax
        else "<i>p<sub>c</sub></i> = 1 / (1 + exp(−<i>z<sub>c</sub></i>))"
    )
    return Step(
        "probabilities", OUTPUT, "Class probabilities",
        text(sentences)
        + formula(line)
        + elements.shapes(("<i>z</i>", "logits"), ("<i>p</i>", "probabilities"))
        + f'<div class="verdict">{drawing.over_image("", "The prepared image")}<p>{verdict}</p>'
        "</div>"
        + elements.table(["class", "logit", "probability", ""], rows,
                         caption="The most probable classes", by_column=True),
    )  # fmt: skip


def _loss(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    label = trace.label
    assert label is not None  # There are probabilities.
    name = context.class_name(label)
    is_softmax = trace.loss == "softmax_xent"
    whose = (
        f"{name}, the class that the model predicts: no label was given"
        if trace.is_label_predicted
        else f"{name}, the label of this image"
    )
    line = (
        "<i>L</i> = −log <i>p</i><sub>label</sub>"
        if is_softmax
        else "<i>L</i> = −log <i>p</i><sub>label</sub> − Σ<sub><i>c</i> ≠ label</sub> "
        "log(1 − <i>p<sub>c</sub></i>)"
    )
    terms = f"−log {elements.number('probabilities', label)}"
    if not is_softmax:
        terms = f"{elements.number('class_losses', label)} + … (the other classes)"
    return Step(
        "loss", OUTPUT, "The loss",
        text(
            "Training makes one number small: the loss, here the "
            f"{'cross-entropy' if is_softmax else 'sum of a binary cross-entropy for each class'}, "
            f"for {whose}. It is zero only if the model is sure and right. Its gradient changes "
            "every matrix of the steps before."
        )
        + formula(line)
        + f'<p class="worked">{terms} = <strong>{elements.number("loss")}</strong></p>',
    )  # fmt: skip
