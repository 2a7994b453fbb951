"""Random legal models of timm and transformers, saved as their users save them.

Every switch of a constructor is drawn, with tiny widths; every parameter is random. A model is
saved bare (its tensors alone, with hints for what they do not tell) or as a folder with the
config.json that its library writes.
"""

import functools
import json
import pathlib
import warnings
from typing import Any, NamedTuple

import numpy as np

from tests.references import outputs, randomise, reference, transformers_outputs


class Made(NamedTuple):
    """A saved model of a library, and its outputs.

    Attributes:
      path: of the file or folder.
      hints: for `load_pretrained`.
      images: float32 [b, h, w, c].
      expected: its outputs, computed in float64, by our names.
      allowed: ten times the float32 noise of each.
      description: the class and its arguments.
    """

    path: pathlib.Path
    hints: dict[str, Any]
    images: np.ndarray
    expected: dict[str, np.ndarray]
    allowed: dict[str, float]
    description: str


def make(library: str, seed: int, folder: pathlib.Path) -> Made:
    """Returns the random model of a seed.

    Args:
      library: timm_bare, timm_folder or transformers.
      seed: of everything random.
      folder: to write into.
    """
    rng = np.random.default_rng(seed)
    maker = {"transformers": _transformers}.get(library, functools.partial(_timm, library))
    for _ in range(50):  # Some drawn arguments are incompatible.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return maker(rng, folder)
        except (AssertionError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            continue
    raise AssertionError(f"{library} {seed}: no legal model in 50 draws")


def _pick(rng, *choices, p=0.5):
    """Returns the first choice with probability p, else one of the others."""
    if rng.random() < p or len(choices) == 1:
        return choices[0]
    return choices[1 + rng.integers(len(choices) - 1)]


def _size(rng, patch):
    """Returns a square or other grid of patches, and the image size in pixels."""
    grid = _pick(rng, (2, 2), (3, 3), (2, 4), (4, 2))
    return tuple(int(g * p) for g, p in zip(grid, patch, strict=True))


# ------------------------------------------------------------------------------------------ timm

# Names of timm's activations -> the equivalent hints, for a plain and for a gated MLP.
_ACTIVATIONS = {
    None: ({"gelu": "erf", "mlp": "gelu"}, {"gelu": "erf", "mlp": "geglu"}),
    "gelu_tanh": ({"gelu": "tanh", "mlp": "gelu"}, {"gelu": "tanh", "mlp": "geglu"}),
    "silu": ({"mlp": "silu"}, {"mlp": "swiglu"}),
    "relu": ({"mlp": "relu"}, {"mlp": "reglu"}),
    "quick_gelu": ({"gelu": "quick"}, {"gelu": "quick", "mlp": "geglu"}),
}


def _common(rng) -> dict[str, Any]:
    """Returns arguments that all of timm's classes have."""
    heads = int(rng.integers(1, 4))
    patch = _pick(rng, (8, 8), (4, 8))
    size = _size(rng, patch)
    return {
        "img_size": size[0] if size[0] == size[1] else size,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_chans": _pick(rng, 3, 1, p=0.8),
        "num_classes": _pick(rng, 3, 0, p=0.8),
        "embed_dim": heads * int(_pick(rng, 8, 16)),
        "depth": int(rng.integers(1, 4)),
        "num_heads": heads,
        "mlp_ratio": _pick(rng, 2.0, 1.5, 4.0),
        "qkv_bias": _pick(rng, True, False, p=0.7),
        "qk_norm": _pick(rng, False, True, p=0.7),
        "init_values": _pick(rng, None, 0.1),
        "class_token": _pick(rng, True, False, p=0.7),
        "no_embed_class": _pick(rng, False, True),
        "drop_rate": _pick(rng, 0.0, 0.1, p=0.8),
        "drop_path_rate": _pick(rng, 0.0, 0.1, p=0.8),
        "dynamic_img_size": _pick(rng, False, True, p=0.8),
    }


def _pool(rng, usual, *others):
    """Returns an activation, mostly one that vit_jax supports."""
    return _pick(rng, _pick(rng, usual, "token", "avg", "map", p=0.3), *others, p=0.85)


def _vit(rng) -> dict[str, Any]:
    """Returns arguments of VisionTransformer."""
    return _common(rng) | {
        "global_pool": _pool(rng, "token", "avgmax", "max", "prr", ""),
        "scale_attn_norm": _pick(rng, False, True, p=0.85),
        "scale_mlp_norm": _pick(rng, False, True, p=0.85),
        "proj_bias": _pick(rng, True, False, p=0.9),
        "pos_embed": _pick(rng, "learn", "none", "", p=0.85),
        "reg_tokens": _pick(rng, 0, 1, 3, p=0.6),
        "pre_norm": _pick(rng, False, True, p=0.8),
        "final_norm": _pick(rng, True, False, p=0.8),
        "fc_norm": _pick(rng, None, True, False),
        "pool_include_prefix": _pick(rng, False, True, p=0.85),
        "dynamic_img_pad": _pick(rng, False, True, p=0.95),
        "weight_init": _pick(rng, "", "jax", p=0.9),
        "act_layer": _pick(rng, None, "gelu_tanh", "silu", "relu", "quick_gelu", p=0.7),
        "norm_layer": _pick(rng, None, "layernorm", "rmsnorm", "simplenorm", p=0.9),
    }


def _classes_of_vit(rng) -> dict[str, Any]:
    """Returns arguments of VisionTransformer that are classes, which no config.json can hold."""
    reference("timm")
    from timm.layers import Mlp, SwiGLU, SwiGLUPacked
    from timm.models import vision_transformer as vit

    blocks = (vit.ResPostBlock, vit.ParallelScalingBlock, vit.ParallelThingsBlock)
    return {
        "mlp_layer": _pick(rng, Mlp, SwiGLU, SwiGLUPacked, p=0.6),
        "block_fn": _pick(rng, vit.Block, *blocks, vit.DiffParallelScalingBlock, p=0.9),
        "attn_layer": _pick(rng, "", "diff", p=0.95),
        "embed_norm_layer": _pick(rng, None, "layernorm", p=0.95),
    }


def _eva(rng) -> dict[str, Any]:
    """Returns arguments of Eva."""
    return _common(rng) | {
        "global_pool": _pool(rng, "avg", "avgmax", "max", ""),
        "qkv_fused": _pick(rng, True, False),
        "num_kv_heads": _pick(rng, None, 1, p=0.95),
        "swiglu_mlp": _pick(rng, False, True),
        "swiglu_align_to": _pick(rng, 0, 8, p=0.8),
        "scale_mlp": _pick(rng, False, True),
        "scale_attn_inner": _pick(rng, False, True, p=0.8),
        "attn_type": _pick(rng, "eva", "rope"),
        "attn_only_layer_scale": _pick(rng, False, True, p=0.95),
        "num_reg_tokens": _pick(rng, 0, 1, 3, p=0.6),
        "use_abs_pos_emb": _pick(rng, True, False, p=0.6),
        "use_rot_pos_emb": _pick(rng, True, False, p=0.6),
        "rope_type": _pick(rng, "cat", "dinov3", "mixed", "mrope", p=0.75),
        "rope_grid_offset": _pick(rng, 0.0, 1.0, p=0.9),
        "rope_grid_indexing": _pick(rng, "ij", "xy", p=0.6),
        "rope_temperature": _pick(rng, 1e4, 100.0, 37.0, p=0.4),
        "rope_rotate_half": _pick(rng, False, True, p=0.75),
        "rope_rescale_coords": _pick(rng, None, 2.0, p=0.9),
        "ref_feat_shape": _pick(rng, None, (3, 3), (16, 16)),
        "use_post_norm": _pick(rng, False, True, p=0.9),
        "use_pre_transformer_norm": _pick(rng, False, True, p=0.8),
        "use_post_transformer_norm": _pick(rng, None, True, False, p=0.7),
        "use_fc_norm": _pick(rng, None, True, False, p=0.7),
        "attn_pool_num_heads": _pick(rng, None, 1, p=0.8),
        "attn_pool_mlp_ratio": _pick(rng, None, 2.0, p=0.8),
    }


def _timm(mode, rng, folder) -> Made:
    timm = reference("timm")
    kind = _pick(rng, "VisionTransformer", "Eva", "VisionTransformerDistilled", p=0.4)
    arguments = _eva(rng) if kind == "Eva" else _vit(rng)
    if mode == "timm_folder":
        name = {
            "VisionTransformer": "vit_base_patch16_224",
            "Eva": "eva_giant_patch14_224",
            "VisionTransformerDistilled": "deit_base_distilled_patch16_224",
        }[kind]
        return _saved(timm, folder, name, _drop_some(rng, arguments), kind)
    hidden: dict[str, Any] = {} if kind == "Eva" else _classes_of_vit(rng)
    eps = _pick(rng, None, 1e-5, 1e-3, p=0.7)
    if eps and not arguments.get("norm_layer"):
        hidden["norm_layer"] = functools.partial(timm.layers.LayerNorm, eps=eps)
    module = timm.models.eva if kind == "Eva" else timm.models.vision_transformer
    cls = getattr(timm.models.deit if "Distilled" in kind else module, kind)
    model = randomise(cls(**arguments | hidden), seed=int(rng.integers(1000)))
    path = folder / _pick(rng, "model.safetensors", "model.pth")
    _save(model, path, wrapper=_pick(rng, "", "state_dict", "model_ema"))
    gated = bool(arguments.get("swiglu_mlp")) or "SwiGLU" in _name(hidden.get("mlp_layer"))
    gated |= isinstance(hidden.get("mlp_layer"), functools.partial)
    hints = {"num_heads": arguments["num_heads"], "image_size": arguments["img_size"]}
    hints |= _hints_of(arguments, hidden, kind, gated=gated, eps=eps)
    return _made(path, hints, model, arguments, f"{kind} {hidden}")


def _name(layer) -> str:
    return getattr(layer, "__name__", str(layer))


def _drop_some(rng, arguments):
    """Returns some of the arguments, as a user passes them."""
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    return {k: v for k, v in arguments.items() if k in sizes or rng.random() < 0.4}


def _hints_of(arguments, hidden, kind, *, gated, eps) -> dict[str, Any]:
    """Returns hints for what the tensors do not show; an unknown hint where none exists."""
    eva = kind == "Eva"
    plain, with_gate = _ACTIVATIONS[arguments.get("act_layer")]
    if eva and gated:
        hints: dict[str, Any] = {"mlp": "swiglu"}
    else:
        hints = dict(with_gate if gated else plain)
    pool = arguments["global_pool"]
    if arguments.get("pool_include_prefix") and pool in ("avg", "map", "max", "avgmax"):
        pool = {"map": "map_all"}.get(pool, f"{pool}_all")
    if eva and pool == "map":  # Eva's attention pools all tokens, VisionTransformer's the patches.
        pool = "map_all"
    hints["pool"] = pool or "nothing"
    if kind.endswith("Distilled"):
        hints["pool"] = "token"
    hints["ln_eps"] = eps or 1e-6
    if _name(hidden.get("block_fn")) == "ResPostBlock" or arguments.get("use_post_norm"):
        hints["norm"] = "post"  # There is no such hint.
    if not eva:
        return hints | {"rope": "none"}
    hints["rope"] = "none"
    if arguments["use_rot_pos_emb"]:
        dinov3 = arguments["rope_type"] == "dinov3"
        hints["rope"] = "dinov3" if dinov3 else f"axial_{arguments['rope_grid_indexing']}"
        hints["rope_theta"] = arguments["rope_temperature"]
        if not dinov3 and arguments["ref_feat_shape"]:
            hints["rope_grid"] = arguments["ref_feat_shape"]
        elif not dinov3:
            hints["rope_grid"] = (0, 0)
        turned = arguments["rope_rotate_half"] != dinov3
        turned |= dinov3 and arguments["rope_grid_indexing"] == "xy"
        if turned or arguments["rope_grid_offset"] or arguments["rope_type"] == "mrope":
            hints["rope"] += " in another way"
    if pool == "map_all" and arguments["attn_pool_num_heads"] not in (None, arguments["num_heads"]):
        hints["attn_pool_num_heads"] = arguments["attn_pool_num_heads"]  # There is no such hint.
    return hints


def _save(model, path, *, wrapper):
    import safetensors.torch
    import torch

    if path.suffix == ".pth":
        state = model.state_dict()
        torch.save({wrapper: state} if wrapper else state, path)
    else:
        safetensors.torch.save_model(model, path)


def _saved(timm, folder, name, arguments, kind) -> Made:
    """Writes a folder as timm does."""
    model = randomise(timm.create_model(name, pretrained=False, **arguments))
    timm.models._hub.save_for_hf(model, folder, safe_serialization=True)
    return _made(folder, {}, model, arguments, f"{name} ({kind})")


def _made(path, hints, model, arguments, description) -> Made:
    size = arguments["img_size"]
    size = (size, size) if isinstance(size, int) else size
    channels = arguments.get("in_chans", 3)
    images = np.random.default_rng(5).standard_normal((2, *size, channels), np.float32)

    def forward(module, x):
        tokens = module.forward_features(x)
        return {"tokens": tokens, "logits": module.forward_head(tokens)}

    headless = hasattr(model, "dist_token") and not model.num_classes
    # Without heads timm returns the mean of both tokens, which no published model uses.
    read = (lambda found: {"tokens": found["tokens"]}) if headless else (lambda found: found)
    expected, allowed = outputs(_calling(model, forward), images, read)
    return Made(path, hints, images, expected, allowed, f"{description} {arguments}")


# ---------------------------------------------------------------------------------- transformers

_HF = {
    "ViT": ("Model", "ForImageClassification"),
    "DeiT": ("Model", "ForImageClassification", "ForImageClassificationWithTeacher"),
    "Dinov2": ("Model", "ForImageClassification"),
    "Dinov2WithRegisters": ("Model", "ForImageClassification"),
    "DINOv3ViT": ("Model",),
    "IJepa": ("Model", "ForImageClassification"),
    "ViTMAE": ("Model", "ForPreTraining"),
    "ViTMSN": ("Model", "ForImageClassification"),
    "SiglipVision": ("Model",),
    "Siglip": ("ForImageClassification",),
}
_HF_ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "swish", "relu",
                   "quick_gelu", "mish", "gelu_10")  # fmt: skip


def _hf_arguments(rng, family) -> dict[str, Any]:
    heads = int(rng.integers(1, 4))
    patch = _pick(rng, 8, 4) if family != "ViT" else _pick(rng, (8, 8), (4, 8))
    size = _size(rng, np.broadcast_to(patch, 2))
    arguments = {
        "hidden_size": heads * int(_pick(rng, 8, 16)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "intermediate_size": int(rng.integers(9, 40)),
        "hidden_act": _pick(rng, *_HF_ACTIVATIONS, p=0.4),
        "hidden_dropout_prob": _pick(rng, 0.0, 0.1),
        "attention_probs_dropout_prob": _pick(rng, 0.0, 0.1),
        "layer_norm_eps": _pick(rng, 1e-6, 1e-12, 1e-3),
        "image_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": patch if isinstance(patch, int) else list(patch),
        "num_channels": _pick(rng, 3, 1, p=0.8),
        "qkv_bias": _pick(rng, True, False, p=0.7),
        "id2label": {k: f"thing {k}" for k in range(3)},
    }
    more = {
        "Dinov2": {"mlp_ratio": _pick(rng, 2, 3), "layerscale_value": 0.5,
                   "use_swiglu_ffn": _pick(rng, False, True), "drop_path_rate": 0.1,
                   "use_mask_token": _pick(rng, True, False), "apply_layernorm": True},
        "DINOv3ViT": {
            **{f"{name}_bias": _pick(rng, True, False, p=0.8)
               for name in ("query", "value", "proj", "mlp")},
            "key_bias": _pick(rng, False, True), "use_gated_mlp": _pick(rng, False, True),
            "num_register_tokens": _pick(rng, 0, 2), "rope_theta": _pick(rng, 100.0, 37.0),
            "layerscale_value": 0.5, "pos_embed_rescale": _pick(rng, 2.0, None),
            "pos_embed_shift": _pick(rng, None, 0.1), "pos_embed_jitter": _pick(rng, None, 1.1),
        },
        "ViTMAE": {"mask_ratio": 0.0, "decoder_hidden_size": 8, "decoder_num_attention_heads": 2,
                   "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 8,
                   "norm_pix_loss": _pick(rng, False, True)},
        "SiglipVision": {"vision_use_head": _pick(rng, True, False, p=0.7),
                         "attention_dropout": 0.1},
    }  # fmt: skip
    pooled = {"pooler_output_size": _pick(rng, None, 10), "pooler_act": _pick(rng, "tanh", "relu")}
    more |= {"ViT": pooled, "DeiT": pooled, "IJepa": pooled, "Siglip": more["SiglipVision"]}
    registers = {"num_register_tokens": _pick(rng, 4, 1, 0)}
    more["Dinov2WithRegisters"] = more["Dinov2"] | registers
    # A config class stores unknown keys unchanged.
    return arguments | more.get(family, {})


def _transformers(rng, folder) -> Made:
    transformers = reference("transformers")
    import torch

    family = list(_HF)[rng.integers(len(_HF))]
    head = _HF[family][rng.integers(len(_HF[family]))]
    arguments = _hf_arguments(rng, family)
    config_class = getattr(transformers, f"{family}Config")
    if family == "Siglip":
        vision = {k: v for k, v in arguments.items() if k != "id2label"}
        config = config_class(vision_config=vision, id2label=arguments["id2label"])
    else:
        config = config_class(**arguments)
    model = getattr(transformers, f"{family}{head}")(config)
    randomise(model, seed=int(rng.integers(1000)))
    model.save_pretrained(folder)
    path = folder
    if rng.random() < 0.3:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if rng.random() < 0.3:  # Only differences from the class's defaults, as in old files.
        content = json.loads((folder / "config.json").read_text())
        slim = config.to_diff_dict() | {k: content[k] for k in ("model_type", "architectures")}
        (folder / "config.json").write_text(json.dumps(slim))
    size = np.broadcast_to(arguments["image_size"], 2).tolist()
    shape = (2, *size, arguments["num_channels"])
    images = np.random.default_rng(5).standard_normal(shape, np.float32)
    if family == "ViTMAE":  # Without masking and shuffling.
        encoder = getattr(model, "vit", model)
        noise = torch.arange(encoder.embeddings.patch_embeddings.num_patches).expand(2, -1)
        model = _calling(encoder, lambda module, x: module(x, noise=noise.to(x.dtype)))

    expected, allowed = outputs(model, images, transformers_outputs)
    return Made(path, {}, images, expected, allowed, f"{family}{head} {arguments}")


def _calling(module, forward):
    """Returns a PyTorch module that computes `forward(module, x)`."""
    import torch

    class Calling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x):
            return forward(self.module, x)

    return Calling().eval()
