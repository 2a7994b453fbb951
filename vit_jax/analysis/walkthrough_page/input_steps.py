"""The steps from the image to the first block's input."""

from vit_jax.analysis.walkthrough_page import drawing
from vit_jax.analysis.walkthrough_page.elements import Number, Row, formula, text
from vit_jax.analysis.walkthrough_page.step import EMBEDDING, INPUT, Context, Step


def input_steps(context: Context) -> list[Step]:
    """Returns the steps up to the first block."""
    config = context.config
    steps = [_image(context)]
    if config.stem is not None:
        steps.append(_stem(context))
    steps += [_patches(context), _flatten(context), _projection(context)]
    middle = [_prefix(context)] if config.num_prefix else []
    if config.posemb == "sincos2d":
        middle.insert(0, _sincos2d(context))
    elif config.posemb == "learned":
        middle.append(_positions(context))
    steps += middle
    if config.pre_norm:
        steps.append(_pre_norm(context))
    return steps


def _image(context: Context) -> Step:
    elements, arrays = context.elements, context.trace.arrays
    figures, stored = "", ""
    if "stored" in arrays:
        figures = drawing.figure(
            drawing.image_tag(arrays["stored"], "The image as it is stored"),
            f"As stored {elements.shape('stored')}",
        )
        stored = "The stored pixels are whole numbers. "
    figures += drawing.figure(
        drawing.over_image("", "The prepared image"), f"Prepared {elements.shape('image')}"
    )
    names = ("red", "green", "blue") if context.config.channels == 3 else ("grey",)
    rows = [
        Row(name, [Number(f"channel_{what}", (i,)) for what in ("min", "mean", "max")])
        for i, name in enumerate(names)
    ]
    return Step(
        "image", INPUT, "The image",
        text(
            f"{stored}The model takes an image of one size, with values in the range of its "
            "training: the image is scaled, cropped and normalised as the checkpoint asks."
        )
        + f'<div class="figures">{figures}</div>'
        + elements.table(["channel", "smallest", "mean", "largest"], rows,
                         caption="Values of the prepared image"),
    )  # fmt: skip


def _stem(context: Context) -> Step:
    elements, feature_map = context.elements, context.trace.arrays["feature_map"]
    drawn = drawing.heat_map(
        feature_map[..., 0], "The first channel of the feature map", chosen=None
    )
    return Step(
        "stem", INPUT, "The feature map of a ResNet",
        text(
            "This model is a hybrid: a small convolutional network looks at the image first. Its "
            "feature map is cut into patches in place of the pixels."
        )
        + elements.shapes(("image", "image"), ("feature map", "feature_map"))
        + drawing.figure(drawn, "The first channel: magenta is positive, grey negative."),
    )  # fmt: skip


def _patches(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    drawn = drawing.over_image(
        drawing.grid_lines(context.config.grid, trace.patch),
        "The image with the lines between its patches; the shown patch has a frame",
    )
    row, column = divmod(trace.patch, context.config.grid[1])
    figures = drawing.figure(
        drawn,
        f"The grid, read row by row. The frame is {context.patch_name}, in "
        f'<span class="label">row {row + 1}, column {column + 1}</span>.',
    )
    if context.config.stem is None:
        height, width = context.config.patch_size
        y, x = row * height, column * width
        pixels = context.pixels[y : y + height, x : x + width]
        figures += drawing.figure(
            drawing.image_tag(pixels, "The shown patch, enlarged", style="zoom"),
            f"{context.patch_name}, enlarged",
        )
    what = "image" if context.config.stem is None else "feature map"
    return Step(
        "patches", INPUT, "Patches",
        text(
            f"The {what} is cut into {elements.size('patches', 0)} patches that do not overlap. "
            "Each becomes one token, as a word is one in a text. The walkthrough follows the patch "
            "with the most contrast, whose values have the standard deviation "
            f"{elements.number('patch_std', trace.patch)}."
        )
        + elements.shapes((what, "feature_map" if context.config.stem else "image"),
                          ("patches", "patches"))
        + f'<div class="figures">{figures}</div>',
    )  # fmt: skip


def _flatten(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    rows = [context.vector_row("<i>x</i>", "patch_vectors", trace.patch)]
    return Step(
        "vectors", INPUT, "Each patch as a vector",
        text(
            "The values of a patch are written one after another: row by row, and the channels of "
            f"a pixel together. That makes {elements.size('patch_vectors', 1)} numbers."
        )
        + formula("<i>x</i> ∈ ℝ<sup><i>p</i>·<i>p</i>·<i>c</i></sup>")
        + elements.shapes(("patches", "patches"), ("vectors", "patch_vectors"))
        + elements.vectors("value", rows, caption=f"The vector of {context.patch_name}"),
    )  # fmt: skip


def _projection(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    patch = trace.patch
    terms = [
        (Number("patch_vectors", (patch, i)), Number("patch_kernel", (i, 0)),
         Number("patch_products", (i,)))
        for i in range(min(3, len(trace.arrays["patch_products"])))
    ]  # fmt: skip
    has_bias = context.config.patch_bias
    bias = ""
    if has_bias:
        bias = (
            f'<p class="worked">{elements.number("patch_sum")} + bias '
            f"{elements.number('patch_bias', 0)} = "
            f"<strong>{elements.number('projected', patch, 0)}</strong></p>"
        )
    return Step(
        "projection", EMBEDDING, "Projection to the model's width",
        text(
            "One matrix, the same for every patch, maps each vector to the width of the model. "
            "A component is a dot product of the patch with one column of the matrix"
            + (", plus a bias." if has_bias else ".")
        )
        + formula(f"<i>z</i> = <i>x</i> <i>E</i>{' + <i>b</i>' if has_bias else ''}")
        + elements.shapes(("<i>x</i>", "patch_vectors"), ("<i>E</i>", "patch_kernel"),
                          ("<i>z</i>", "projected"))
        + f"<p class=lead>The first component of {context.patch_name}:</p>"
        + elements.worked(terms, Number("patch_sum")) + bias
        + elements.vectors(
            "component", [context.vector_row("<i>z</i>", "projected", patch, style="result")],
            caption=f"The projected {context.patch_name}"),
    )  # fmt: skip


def _prefix(context: Context) -> Step:
    elements, config = context.elements, context.config
    arrays = {"class_token": "a class token", "distillation_token": "a distillation token",
              "registers": "register tokens"}  # fmt: skip
    names = [name for array, name in arrays.items() if array in context.trace.arrays]
    rows = [(array, i) for array in arrays for i in range(len(context.trace.arrays.get(array, ())))]
    rows = [
        context.vector_row(context.token_name(token), array, i)
        for token, (array, i) in enumerate(rows)
    ]
    used = {
        "class": "The class token has no pixels of its own: it collects what the head will read. ",
        "distillation": "The distillation token does so for a second head, which learned from "
        "another network. ",
        "register": "Registers are scratch space that no head reads. ",
    }
    sentences = "".join(
        sentence for name, sentence in used.items() if any(name in entry for entry in names)
    )
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    title = "Class token" if names == ["a class token"] else "Tokens without pixels"
    before = "positioned" if config.posemb == "sincos2d" else "projected"
    return Step(
        "prefix", EMBEDDING, title,
        text(f"In front of the patches comes {listed}, learned in training and the same for every "
             f"image. {sentences}")
        + formula("<i>Z</i> = [prefix ; <i>z</i><sub>1</sub> ; … ; <i>z</i><sub><i>n</i></sub>]")
        + elements.shapes(("patches", before), ("sequence", "sequence"))
        + elements.vectors("component", rows, caption="The learned tokens"),
    )  # fmt: skip


def _positions(context: Context) -> Step:
    elements, trace = context.elements, context.trace
    token = trace.token
    rows = [
        context.vector_row("token", "sequence", token),
        context.vector_row("+ position", "positions", token),
        context.vector_row("= input", "embedded", token, style="result"),
    ]
    return Step(
        "positions", EMBEDDING, "Position embeddings",
        text("Attention does not know where a patch was. So a learned vector for its position is "
             "added to each token.")
        + formula("<i>X</i><sub>0</sub> = <i>Z</i> + <i>E</i><sub>pos</sub>")
        + elements.shapes(("<i>Z</i>", "sequence"), ("<i>E</i><sub>pos</sub>", "positions"),
                          ("<i>X</i><sub>0</sub>", "embedded"))
        + elements.vectors("component", rows, caption=f"The sum of {context.patch_name}")
        + _similarities(context, context.config.num_prefix),
    )  # fmt: skip


def _sincos2d(context: Context) -> Step:
    elements, patch = context.elements, context.trace.patch
    rows = [
        context.vector_row("patch", "projected", patch),
        context.vector_row("+ position", "positions", patch),
        context.vector_row("= input", "positioned", patch, style="result"),
    ]
    return Step(
        "positions", EMBEDDING, "Position embeddings",
        text("Attention does not know where a patch was. So sines and cosines of its column and "
             "row, at many frequencies, are added to each patch. They are computed, not learned.")
        + formula("<i>E</i><sub>pos</sub> = [sin <i>xω</i>, cos <i>xω</i>, sin <i>yω</i>, "
                  "cos <i>yω</i>]")
        + elements.shapes(("patches", "projected"), ("<i>E</i><sub>pos</sub>", "positions"),
                          ("sum", "positioned"))
        + elements.vectors("component", rows, caption=f"The sum of {context.patch_name}")
        + _similarities(context, 0),
    )  # fmt: skip


def _similarities(context: Context, num_prefix: int) -> str:
    """Returns the map of the cosine similarities of the positions with that of the shown patch."""
    trace = context.trace
    positions = trace.arrays["positions"][num_prefix:]
    norms = (positions**2).sum(axis=1) ** 0.5
    products = positions @ positions[trace.patch]
    similarities = products / (norms * norms[trace.patch]).clip(1e-30)
    drawn = drawing.heat_map(
        similarities.reshape(context.config.grid),
        "Similarity of the position embeddings with that of the shown patch", chosen=trace.patch,
    )  # fmt: skip
    return drawing.figure(
        drawn,
        f"Cosine similarity of each position with that of {context.patch_name}: magenta is "
        "similar, grey opposite.",
    )


def _pre_norm(context: Context) -> Step:
    elements = context.elements
    before = context.two_rows("embedded", "before:")
    after = context.two_rows("pre_norm", "after:", style="result")
    return Step(
        "pre_norm", EMBEDDING, "A norm before the first block",
        text("This model, as CLIP, normalises the tokens once before the first block.")
        + formula("<i>X</i><sub>0</sub> ← norm(<i>X</i><sub>0</sub>)")
        + elements.shapes(("<i>X</i><sub>0</sub>", "embedded"), ("normalised", "pre_norm"))
        + elements.vectors("component", [*before, *after], caption="Tokens before and after"),
    )  # fmt: skip
