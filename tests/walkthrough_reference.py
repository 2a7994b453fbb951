"""A ViT's forward pass in float64 and plain NumPy: every array that a walkthrough shows.

It shares no code with the models or with `vit_jax.analysis`; only the feature map of a hybrid's
stem is taken as it is.
"""

import numpy as np
from scipy.special import erf, expit, log_softmax, softmax


def reference(config, params, image, trace, *, feature_map=None):
    """Returns the arrays by the names of the walkthrough.

    Args:
      config: of the model.
      params: with stacked blocks.
      image: prepared, [height, width, channels].
      trace: the walkthrough's choice of layer, head, patch, query and label; no array is read.
      feature_map: of the stem; None: the model has none.
    """
    params = _float64(params)
    image = np.asarray(image, np.float64)
    arrays = {
        "image": image,
        "channel_min": image.min((0, 1)),
        "channel_mean": image.mean((0, 1)),
        "channel_max": image.max((0, 1)),
    }
    source = image
    if feature_map is not None:
        source = arrays["feature_map"] = np.asarray(feature_map, np.float64)
    x = _embed(arrays, config, params, source, trace.patch)
    if config.pre_norm:
        x = _norm(arrays, "pre_norm", x, params["encoder"]["pre_norm"], config)
    rows, norms = [], []
    for layer in range(config.depth):
        block = _layer_of(params["encoder"]["blocks"], layer)
        of_block = _block(config, block, x, trace)
        if layer == trace.layer:
            arrays |= of_block
        x = of_block["block_output"]
        rows.append(of_block["head_attention"].mean(0))
        norms.append(np.sqrt((x**2).sum(1)))
    arrays["layer_attention"], norms = np.array(rows), np.array(norms)
    arrays["class_norm"] = norms[:, 0]
    arrays["patch_norm"] = norms[:, config.num_prefix :].mean(1)
    arrays["last_block"] = x
    _output(arrays, config, params, x, trace)
    return arrays


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def _layer_of(tree, layer):
    if isinstance(tree, dict):
        return {name: _layer_of(value, layer) for name, value in tree.items()}
    return tree[layer]


def _embed(arrays, config, params, source, chosen):
    (rows, columns), (height, width) = config.grid, config.patch_size
    patches = []
    for row in range(rows):
        for column in range(columns):
            y, x = row * height, column * width
            patches.append(source[y : y + height, x : x + width])
    arrays["patches"] = np.array(patches)
    vectors = arrays["patch_vectors"] = np.array([patch.ravel() for patch in patches])
    arrays["patch_std"] = np.array([np.sqrt(np.mean((v - v.mean()) ** 2)) for v in vectors])
    kernel = params["embedding"]["kernel"].reshape(-1, config.width)
    arrays["patch_kernel"] = kernel
    arrays["patch_products"] = vectors[chosen] * kernel[:, 0]
    arrays["patch_sum"] = sum(arrays["patch_products"])
    bias = params["embedding"].get("bias", np.zeros(config.width))
    arrays["patch_bias"] = bias
    z = arrays["projected"] = vectors @ kernel + bias
    if config.posemb == "sincos2d":
        arrays["positions"] = np.array(
            [_sincos(y, x, config.width) for y in range(rows) for x in range(columns)]
        )
        z = arrays["positioned"] = z + arrays["positions"]
    prefix = []
    names = {"class_token": "cls", "distillation_token": "dist", "registers": "registers"}
    for name, key in names.items():
        if key in params:
            arrays[name] = params[key][0]
            prefix.extend(params[key][0])
    x = arrays["sequence"] = np.array([*prefix, *z])
    if config.posemb == "learned":
        table = list(params["pos_embedding"][0])
        with_row = len(table) - rows * columns
        without = [np.zeros(config.width)] * (len(prefix) - with_row)
        arrays["positions"] = np.array(table[:with_row] + without + table[with_row:])
        x = x + arrays["positions"]
    arrays["embedded"] = x
    return x


def _sincos(y, x, width):
    frequencies = [10_000 ** (-i / (width // 4 - 1)) for i in range(width // 4)]
    functions = [(np.sin, x), (np.cos, x), (np.sin, y), (np.cos, y)]
    return [function(place * w) for function, place in functions for w in frequencies]


def _norm(arrays, name, x, params, config, rms=None):
    rms = config.norm == "rmsnorm" if rms is None else rms
    mean = np.zeros(len(x)) if rms else x.mean(1)
    std = np.sqrt(((x - mean[:, None]) ** 2).mean(1) + config.ln_eps)
    y = (x - mean[:, None]) / std[:, None]
    arrays |= {f"{name}_mean": mean, f"{name}_std": std, f"{name}_standardised": y}
    arrays |= {f"{name}_{key}": value for key, value in params.items()}
    arrays[name] = y * params.get("scale", 1) + params.get("bias", 0)
    return arrays[name]


def _project(x, params):
    """[n, width] by a kernel [width, heads, d] -> [heads, n, d]."""
    y = np.einsum("nw,whd->hnd", x, params["kernel"])
    return y + params["bias"][:, None] if "bias" in params else y


def _rotated(config, q):
    """Rotates [heads, n, d], each pair as a complex number; also returns the angles."""
    rows, columns = config.grid
    quarter = q.shape[-1] // 4
    periods = np.array(config.rope_periods) if config.rope_periods else None
    if periods is None:
        periods = np.array([config.rope_theta ** (i / quarter) for i in range(quarter)])
    angles = []
    for row in range(rows):
        for column in range(columns):
            if config.rope == "dinov3":
                place = [2 * np.pi * (2 * (row + 0.5) / rows - 1),
                         2 * np.pi * (2 * (column + 0.5) / columns - 1)]  # fmt: skip
            else:
                trained = [t or n for t, n in zip(config.rope_grid, config.grid, strict=True)]
                place = [row * trained[0] / rows, column * trained[1] / columns]
            if config.rope == "axial_xy":
                place = place[::-1]
            angles.append(np.concatenate([place[0] / periods, place[1] / periods]))
    angles, n = np.array(angles), rows * columns
    patches = q[:, -n:]
    if config.rope == "dinov3":
        half = patches.shape[-1] // 2
        turned = (patches[..., :half] + 1j * patches[..., half:]) * np.exp(1j * angles)
        patches = np.concatenate([turned.real, turned.imag], axis=-1)
        angles = np.concatenate([angles, angles], axis=1)
    else:
        turned = (patches[..., ::2] + 1j * patches[..., 1::2]) * np.exp(1j * angles)
        patches = np.stack([turned.real, turned.imag], axis=-1).reshape(patches.shape)
        angles = np.repeat(angles, 2, axis=1)
    return np.concatenate([q[:, :-n], patches], axis=1), angles


def _block(config, block, x, trace):
    arrays, attn = {"block_input": x}, block["attn"]
    y = _norm(arrays, "norm1", x, block["norm1"], config)
    of_heads = {}
    for name in ("query", "key", "value"):
        of_heads[name] = _project(y, attn[name])
        arrays[f"{name}_projected"] = of_heads[name][trace.head]
        if config.qk_norm and name != "value":
            params = attn[f"{name}_norm"]
            of_heads[name] = np.array(
                [_norm({}, "", head, params, config, rms=False) for head in of_heads[name]]
            )
            arrays[f"{name}_normed"] = of_heads[name][trace.head]
        if config.rope != "none" and name != "value":
            of_heads[name], angles = _rotated(config, of_heads[name])
            arrays |= {"rope_cos": np.cos(angles), "rope_sin": np.sin(angles)}
        arrays[name] = of_heads[name][trace.head]
    query, key, value = of_heads.values()
    weights = softmax(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]), axis=-1)
    outputs = weights @ value
    q, k, v = arrays["query"], arrays["key"], arrays["value"]
    token = config.num_prefix + trace.patch
    arrays["score_products"] = q[trace.query] * k[token]
    arrays["dots"] = np.array([np.dot(q[trace.query], row) for row in k])
    arrays["scores"] = arrays["dots"] / np.sqrt(len(k[0]))
    arrays["exponentials"] = np.exp(arrays["scores"] - max(arrays["scores"]))
    arrays["exponentials_sum"] = sum(arrays["exponentials"])
    arrays["head_attention"] = weights[:, trace.query]
    arrays["attention"] = arrays["exponentials"] / arrays["exponentials_sum"]
    arrays["attention_sum"] = np.float64(1)
    arrays["weighted_values"] = np.array(
        [a * row for a, row in zip(arrays["attention"], v, strict=True)]
    )
    arrays["head_output"] = outputs[trace.head]
    joined = arrays["concatenated"] = np.concatenate(list(outputs), axis=1)
    if config.attn_norm:
        joined = _norm(arrays, "attn_norm", joined, attn["norm"], config, rms=False)
    out = attn["out"]["kernel"].reshape(-1, config.width)
    arrays["attention_output"] = joined @ out + attn["out"]["bias"]
    scale1 = arrays["scale1"] = block.get("scale1", np.ones(config.width))
    branch = arrays["attention_branch"] = arrays["attention_output"] * scale1
    if config.parallel:
        scale2, normed = scale1, y
    else:
        scale2 = arrays["scale2"] = block.get("scale2", np.ones(config.width))
        x = arrays["after_attention"] = x + branch
        normed = _norm(arrays, "norm2", x, block["norm2"], config)
    arrays["mlp_output"] = _mlp(arrays, config, block["mlp"], normed, kind=config.mlp)
    arrays["mlp_branch"] = arrays["mlp_output"] * scale2
    arrays["block_output"] = x + arrays["mlp_branch"] + (branch if config.parallel else 0)
    return arrays


def _mlp(arrays, config, mlp, x, *, kind):
    hidden = arrays["hidden_input"] = x @ mlp["fc1"]["kernel"] + mlp["fc1"]["bias"]
    if "gate" in mlp:
        gate = arrays["gate_input"] = x @ mlp["gate"]["kernel"] + mlp["gate"]["bias"]
        hidden = _activation(kind, config.gelu, gate) * hidden
    else:
        hidden = _activation(kind, config.gelu, hidden)
    arrays["hidden"] = hidden
    if "norm" in mlp:
        hidden = _norm(arrays, "mlp_norm", hidden, mlp["norm"], config)
    return hidden @ mlp["fc2"]["kernel"] + mlp["fc2"]["bias"]


def _activation(kind, gelu, x):
    if kind in ("silu", "swiglu"):
        return x * expit(x)
    if gelu == "tanh":
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def _output(arrays, config, params, x, trace):
    if config.final_norm == "tokens":
        x = _norm(arrays, "final_norm", x, params["encoder"]["norm"], config)
    arrays["tokens"] = x
    patches = x[config.num_prefix :]
    if config.pool.startswith("map"):
        read = x if config.pool == "map" else patches
        pooled = _map(arrays, config, params["map_head"], read)
    else:
        mean = sum(patches) / len(patches)
        pooled = {"token": x[0], "gap": mean, "token_gap": np.append(x[0], mean)}[config.pool]
    arrays["pooled"] = pooled
    if config.final_norm == "pooled":
        pooled = _norm(arrays, "pooled_norm", pooled[None], params["norm"], config)[0]
    if config.rep_size:
        layer = params["pre_logits"]
        arrays["pre_logits_input"] = pooled @ layer["kernel"] + layer["bias"]
        pooled = np.tanh(arrays["pre_logits_input"])
    arrays["pre_logits"] = pooled
    if not config.num_classes:
        return
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    logits = arrays["logits_class"] = pooled @ kernel + bias
    if config.distilled:
        layer = params["head_dist"]
        arrays["logits_distillation"] = x[1] @ layer["kernel"] + layer["bias"]
        logits = (logits + arrays["logits_distillation"]) / 2
    best = np.argmax(logits)
    arrays |= {"logits": logits, "head_kernel": kernel, "head_bias": bias}
    arrays["head_products"] = pooled * kernel[:, best]
    arrays["head_sum"] = sum(arrays["head_products"])
    label = trace.label
    if trace.loss == "softmax_xent":
        arrays["probabilities"] = softmax(logits)
        arrays["loss"] = -log_softmax(logits)[label]
    elif trace.loss == "sigmoid_xent":
        arrays["probabilities"] = expit(logits)
        targets = np.eye(len(logits))[label]
        probabilities = np.where(targets == 1, expit(logits), expit(-logits))
        arrays["class_losses"] = -np.log(probabilities)
        arrays["loss"] = sum(arrays["class_losses"])


def _map(arrays, config, head, x):
    attn = head["attn"]
    query = _project(head["probe"][0], attn["query"])
    key, value = _project(x, attn["key"]), _project(x, attn["value"])
    weights = softmax(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]), axis=-1)
    arrays["pool_attention"] = weights[:, 0]
    joined = np.concatenate(list(weights @ value), axis=1)
    out = attn["out"]["kernel"].reshape(-1, config.width)
    u = joined @ out + attn["out"]["bias"]
    y = _norm({}, "", u, head["norm"], config)
    kind = "silu" if config.mlp == "silu" else "gelu"
    return (u + _mlp({}, config, head["mlp"], y, kind=kind))[0]
