"""One image through a ViT: every array of the forward pass that a walkthrough shows."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vit_jax.analysis.measures.encoder import Captured, Measured, Variables, measure_blocks
from vit_jax.analysis.walkthrough_page.arithmetic import Arrays, block_norm, dense, norm, softmax
from vit_jax.config.model import VitConfig
from vit_jax.models import Vit
from vit_jax.models.blocks import CAPTURED, Block
from vit_jax.models.heads import MapHead
from vit_jax.models.positions import rotation, sincos2d
from vit_jax.models.resnet import Stem

MOST_CLASSES = 5  # Listed with their probabilities.


@dataclasses.dataclass(frozen=True)
class Trace:
    """The arrays of a forward pass by name, and what was chosen to be shown.

    Attributes:
      config: of the model.
      arrays: float32, of one image; the functions of this file and its readers define the names.
      layer: shown block, from 0.
      head: shown head, from 0.
      patch: shown patch: the one with the largest standard deviation, from 0, in row-major order.
      query: token whose attention is shown: the class token, or the shown patch if there is none.
      loss: of the head: see `vit_jax.pretrained.load.Pretrained`.
      label: class of the loss; None: the model has no classes.
      is_label_predicted: whether no label was given, so that it is the predicted class.
    """

    config: VitConfig
    arrays: Arrays
    layer: int
    head: int
    patch: int
    query: int
    loss: str
    label: int | None
    is_label_predicted: bool

    @property
    def token(self) -> int:
        """Position of the shown patch in the sequence."""
        return self.config.num_prefix + self.patch


def trace(
    measured: Measured,
    image: Float[np.ndarray, "height width channels"],
    *,
    stored: UInt8[np.ndarray, "..."] | None,
    layer: int,
    head: int,
    loss: str,
    label: int | None,
) -> Trace:
    """Runs an image through a model.

    Args:
      measured: a ViT or hybrid.
      image: prepared.
      stored: the image before its preparation; None: unknown.
      layer: block to be shown, from 0.
      head: head to be shown, from 0.
      loss: see `vit_jax.pretrained.load.Pretrained`.
      label: class of the loss; None: the predicted one.
    """
    config, params = measured.vit, measured.variables["params"]
    arrays: Arrays = {} if stored is None else {"stored": stored}
    source = image
    if config.stem is not None:
        stem = _feature_map(config, params["stem"], image[None])
        source = arrays["feature_map"] = np.asarray(stem)[0]
    arrays |= patches_of(image, source, config)
    patch = int(arrays["patch_std"].argmax())
    query = 0 if config.has_class_token else config.num_prefix + patch
    model = cast(Vit, measured.model)
    forward, block = jax.device_get(
        _forward(model, measured.variables, image[None], layer, query)
    )  # fmt: skip
    arrays |= _embedding(params, forward["embed"], arrays["patch_vectors"], patch, config)
    if config.pre_norm:
        arrays |= block_norm(
            "pre_norm", arrays["embedded"], params["encoder"]["pre_norm"], config
        )  # fmt: skip
    arrays |= _attention(forward, block, config, head=head, query=query, patch=patch)
    arrays |= _mlp(forward, block, arrays, config)
    arrays |= _layers(forward, config)
    arrays |= _output(forward, params, config, loss=loss, label=label)
    is_predicted = label is None and "probabilities" in arrays
    if is_predicted:
        label = int(arrays["logits"].argmax())
    return Trace(config, arrays, layer, head, patch, query, loss, label, is_predicted)


@functools.partial(jax.jit, static_argnames="config")
def _feature_map(config: VitConfig, params: Any, images: Array) -> Array:
    assert config.stem is not None
    return cast(Array, Stem(config.stem, config.dtype).apply({"params": params}, images))


def _of_block(captured: Captured, query: Any) -> Captured:
    return {
        "input": captured["input"][0],
        "token_norm": jnp.linalg.norm(captured["blocks"][0], axis=-1),
        "layer_attention": captured["attention"][0, :, query].mean(axis=0),
    }


@functools.partial(jax.jit, static_argnames=("model",))
def _forward(
    model: Vit, variables: Variables, images: Float[Array, "1 h w c"], layer: Any, query: Any
) -> tuple[Captured, Any]:
    """Returns what the model gives of itself, and the parameters of the block `layer`.

    Intermediates of that block have their own names; others "last_block", "token_norm", ...
    """
    config, params = model.config, variables["params"]
    blocks = measure_blocks(model, variables, images, _of_block, ("blocks", "attention"), (query,))
    block_params = jax.tree.map(lambda leaf: leaf[layer], params["encoder"]["blocks"])
    x = blocks.pop("input")[layer][None]
    _, block = Block(config, False, CAPTURED).apply({"params": block_params}, x, jnp.zeros(()))
    is_map = config.pool in ("map", "map_patches")
    capture = ("embed", "blocks") + (("pool_attention",) if is_map else ())
    logits, whole = model.apply(variables, images, capture=capture)
    whole["last_block"] = whole.pop("blocks")[-1]
    if is_map:
        tokens = whole["tokens"]
        tokens = tokens if config.pool == "map" else tokens[:, config.num_prefix :]
        whole["pooled"] = MapHead(config).apply({"params": params["map_head"]}, tokens)[0]
    of_image = {name: value[0] for name, value in {**block, **whole}.items()}
    captured = {**of_image, **blocks, "logits": logits[0], "block_input": x[0]}
    return captured, block_params


# ------------------------------------------------------------------------------------- embedding


def patches_of(
    image: Float[np.ndarray, "height width channels"],
    source: Float[np.ndarray, "height2 width2 channels2"],
    config: VitConfig,
) -> Arrays:
    """Returns the ranges of an image, and its patches.

    Args:
      image: prepared.
      source: what is cut into patches: the image, or the feature map of a hybrid's stem.
      config: of the model.
    """
    (rows, columns), (height, width) = config.grid, config.patch_size
    cut = source[: rows * height, : columns * width]
    patches = cut.reshape(rows, height, columns, width, -1).swapaxes(1, 2)
    patches = np.ascontiguousarray(patches.reshape(rows * columns, height, width, -1))
    vectors = patches.reshape(len(patches), -1)
    return {
        "image": image,
        "channel_min": image.min(axis=(0, 1)),
        "channel_max": image.max(axis=(0, 1)),
        "channel_mean": image.mean(axis=(0, 1)),
        "patches": patches,
        "patch_vectors": vectors,
        "patch_std": vectors.std(axis=1),
    }


def _embedding(
    params: Any, embedded: np.ndarray, vectors: np.ndarray, patch: int, config: VitConfig
) -> Arrays:
    kernel = np.asarray(params["embedding"]["kernel"]).reshape(vectors.shape[1], -1)
    arrays: Arrays = {
        "patch_kernel": kernel,
        "patch_products": vectors[patch] * kernel[:, 0],
        "patch_sum": np.asarray(vectors[patch] @ kernel[:, 0]),
        "projected": dense(vectors, params["embedding"], inputs=3),
        "embedded": embedded,
    }
    if config.patch_bias:
        arrays["patch_bias"] = np.asarray(params["embedding"]["bias"])
    names = {"class_token": "cls", "distillation_token": "dist", "registers": "registers"}
    prefix = {ours: np.asarray(params[name][0]) for ours, name in names.items() if name in params}
    arrays |= prefix
    patches = arrays["projected"]
    if config.posemb == "sincos2d":
        arrays["positions"] = np.asarray(sincos2d(config.grid, config.width))[0]
        patches = arrays["positioned"] = patches + arrays["positions"]
    arrays["sequence"] = np.concatenate([*prefix.values(), patches])
    if config.posemb == "learned":
        table, rows = np.asarray(params["pos_embedding"])[0], config.posemb_rows
        zeros = np.zeros((config.num_prefix - rows, config.width), np.float32)
        arrays["positions"] = np.concatenate([table[:rows], zeros, table[rows:]])
    return arrays


# ----------------------------------------------------------------------------------------- block


def _attention(
    forward: Arrays, block: Any, config: VitConfig, *, head: int, query: int, patch: int
) -> Arrays:
    """Returns the attention of one block; scores and weights are those of one head and query."""
    attn, x = block["attn"], np.asarray(forward["block_input"])
    arrays: Arrays = {"block_input": x, **block_norm("norm1", x, block["norm1"], config)}
    head_width = config.width // config.num_heads
    shape = len(x), config.num_heads, head_width
    for name in ("query", "key", "value"):
        arrays[f"{name}_projected"] = dense(arrays["norm1"], attn[name]).reshape(shape)[:, head]
        arrays[name] = np.asarray(forward[name])[:, head]
        if config.qk_norm and name != "value":
            normed = norm(
                f"{name}_normed", arrays[f"{name}_projected"], attn[f"{name}_norm"], config,
                rms=False,
            )  # fmt: skip
            arrays[f"{name}_normed"] = normed[f"{name}_normed"]
    if rotate := rotation(config):
        arrays |= {"rope_cos": rotate.cos, "rope_sin": rotate.sin}
    token = config.num_prefix + patch
    scale = np.float32(head_width**-0.5)
    arrays["score_products"] = arrays["query"][query] * arrays["key"][token]
    arrays["dots"] = arrays["key"] @ arrays["query"][query]
    arrays["scores"] = arrays["dots"] * scale
    arrays["exponentials"] = np.exp(arrays["scores"] - arrays["scores"].max())
    arrays["exponentials_sum"] = np.asarray(arrays["exponentials"].sum())
    arrays["head_attention"] = np.asarray(forward["attention"])[:, query]
    arrays["attention"] = arrays["head_attention"][head]
    arrays["attention_sum"] = np.asarray(arrays["attention"].sum())
    arrays["weighted_values"] = arrays["attention"][:, None] * arrays["value"]
    arrays["head_output"] = np.asarray(forward["heads"])[:, head]
    concatenated = arrays["concatenated"] = np.asarray(forward["heads"]).reshape(len(x), -1)
    if config.attn_norm:
        normed = norm("attn_norm", concatenated, attn["norm"], config, rms=False)
        concatenated = arrays["attn_norm"] = normed["attn_norm"]
    arrays["attention_output"] = dense(concatenated, attn["out"], inputs=2)
    arrays["attention_branch"] = np.asarray(forward["attention_branch"])
    if config.layer_scale:
        arrays["scale1"] = block["scale1"]
    return arrays


def _mlp(forward: Arrays, block: Any, arrays: Arrays, config: VitConfig) -> Arrays:
    mlp, result = block["mlp"], {}
    if config.parallel:
        normed = arrays["norm1"]
    else:
        result["after_attention"] = arrays["block_input"] + arrays["attention_branch"]
        result |= block_norm("norm2", result["after_attention"], block["norm2"], config)
        normed = result["norm2"]
        if config.layer_scale:
            result["scale2"] = block["scale2"]
    result["hidden_input"] = dense(normed, mlp["fc1"])
    if config.gated:
        result["gate_input"] = dense(normed, mlp["gate"])
    hidden = result["hidden"] = np.asarray(forward["hidden"])
    if config.mlp_norm:
        result |= block_norm("mlp_norm", hidden, mlp["norm"], config)
        hidden = result["mlp_norm"]
    result["mlp_output"] = dense(hidden, mlp["fc2"])
    result["mlp_branch"] = np.asarray(forward["mlp_branch"])
    result["block_output"] = np.asarray(forward["blocks"])
    return result


# ---------------------------------------------------------------------------------------- output


def _layers(forward: Arrays, config: VitConfig) -> Arrays:
    norms = np.asarray(forward["token_norm"])
    arrays: Arrays = {
        "layer_attention": np.asarray(forward["layer_attention"]),
        "patch_norm": norms[:, config.num_prefix :].mean(axis=1),
    }
    if config.has_class_token:
        arrays["class_norm"] = norms[:, 0]
    return arrays


def _output(
    forward: Arrays, params: Any, config: VitConfig, *, loss: str, label: int | None
) -> Arrays:
    """Returns what follows the blocks, up to the loss; `label` None: the predicted class."""
    arrays: Arrays = {name: np.asarray(forward[name]) for name in ("last_block", "tokens")}
    if config.final_norm == "tokens":
        arrays |= block_norm(
            "final_norm", arrays["last_block"], params["encoder"]["norm"], config
        )  # fmt: skip
    tokens = arrays["tokens"]
    patches = tokens[config.num_prefix :]
    if "pool_attention" in forward:
        arrays["pool_attention"] = np.asarray(forward["pool_attention"])[:, 0]
        arrays["pooled"] = np.asarray(forward["pooled"])
    elif config.pool == "token":
        arrays["pooled"] = tokens[0]
    else:
        mean = patches.mean(axis=0)
        arrays["pooled"] = mean if config.pool == "gap" else np.concatenate([tokens[0], mean])
    x = arrays["pooled"]
    if config.final_norm == "pooled":
        arrays |= block_norm("pooled_norm", x[None], params["norm"], config)
        x = arrays["pooled_norm"][0]
    if config.rep_size:
        arrays["pre_logits_input"] = dense(x[None], params["pre_logits"])[0]
    arrays["pre_logits"] = np.asarray(forward["pre_logits"])
    if not config.num_classes:
        return arrays
    arrays["logits"] = np.asarray(forward["logits"])
    best = int(arrays["logits"].argmax())
    kernel = np.asarray(params["head"]["kernel"])
    arrays["head_kernel"] = kernel
    arrays["head_bias"] = np.asarray(params["head"]["bias"])
    arrays["head_products"] = arrays["pre_logits"] * kernel[:, best]
    arrays["head_sum"] = np.asarray(arrays["pre_logits"] @ kernel[:, best])
    if config.distilled:
        arrays["logits_class"] = arrays["pre_logits"] @ kernel + arrays["head_bias"]
        arrays["logits_distillation"] = dense(tokens[1:2], params["head_dist"])[0]
    return arrays | _loss(arrays["logits"], loss, best if label is None else label)


def _loss(logits: Float[np.ndarray, "classes"], loss: str, label: int) -> Arrays:
    """Returns the probabilities and the loss of a label; nothing for a regression."""
    if loss == "softmax_xent":
        shifted = logits - logits.max()
        value = np.log(np.exp(shifted).sum()) - shifted[label]
        return {"probabilities": softmax(logits), "loss": np.asarray(value)}
    if loss == "sigmoid_xent":
        # -log sigmoid(z) of the label's class, and -log(1 - sigmoid(z)) of the others.
        signs = np.where(np.arange(len(logits)) == label, np.float32(-1), np.float32(1))
        losses = np.logaddexp(np.float32(0), signs * logits)
        probabilities = np.exp(-np.logaddexp(np.float32(0), -logits))
        return {
            "probabilities": probabilities, "class_losses": losses,
            "loss": np.asarray(losses.sum()),
        }  # fmt: skip
    return {}


def best_classes(logits: Float[np.ndarray, "classes"]) -> Int[np.ndarray, "best"]:
    """Returns the classes with the largest outputs, the largest first."""
    return np.argsort(-logits, kind="stable")[:MOST_CLASSES]
