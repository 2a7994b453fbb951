"""The section `model` of the base config: every key of every kind of model, with its meaning."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def model_section() -> ConfigDict:
    """The section `model`. A placeholder, None, stands for: as the variant was published."""
    c = ConfigDict()
    # A name of vit_jax.models.variants: S/16, R26+S/32, BiT-R50x1, Mixer-B/16. "": init_from's.
    c.variant = "S/16"
    c.image_size = (224,)  # (side,) or (height, width), in pixels.
    c.channels = 3  # Of the images that the model is fed.
    c.num_classes = placeholder(int)  # None: as many as the data set has.
    c.head_bias_init = 0.0  # E.g. -6.9 or -10 with the sigmoid loss and many classes.

    # How it is trained and computed.
    c.dropout = 0.0  # After embedding, attention and in the MLP.
    c.attention_dropout = 0.0  # Of the attention weights.
    c.stochastic_depth = 0.0  # Of the last block; grows linearly from 0 at the first.
    c.dtype = "float32"  # Of the computation: float32 or bfloat16. Parameters are float32.
    c.attention = "auto"  # Back end of attention: auto, xla or cudnn.
    c.scan = True  # Compile one block and loop over it: compile time independent of depth.
    c.remat = "none"  # What the backward pass recomputes: see vit_jax.models.blocks.REMAT.
    # Low-rank adapters of attention's four projections (arXiv 2106.09685). Freeze what they adapt:
    # optim.freeze, as configs/finetune.py:mode=lora does.
    c.lora_rank = 0  # 0: none.
    c.lora_alpha = 16.0  # Their sum is multiplied by lora_alpha / lora_rank.

    # The architecture and its numerics. None: as the variant was published, or as the checkpoint
    # of init_from has it; where neither says, VitConfig's default, which is named first.
    c.width = placeholder(int)
    c.depth = placeholder(int)
    c.mlp_dim = placeholder(int)
    c.num_heads = placeholder(int)
    c.token_mlp_dim = placeholder(int)  # Of a Mixer's MLP over tokens.
    # What the head reads: token, gap, map, map_patches (of the patches alone) or token_gap.
    c.pool = placeholder(str)
    c.class_token = placeholder(bool)  # False: only if the head reads it.
    c.distilled = placeholder(bool)  # False; a distillation token and its head, as DeiT's.
    c.registers = placeholder(int)  # 0; tokens that stand for nothing (arXiv 2309.16588).
    c.posemb = placeholder(str)  # learned, sincos2d or none.
    c.posemb_prefix = placeholder(str)  # Tokens with a learned position: class, none, all.
    c.posemb_resize = placeholder(str)  # Kernel for another grid: vit_jax.models.resize.KERNELS.
    c.rope = placeholder(str)  # Rotary positions: none, dinov3, axial_ij or axial_xy.
    c.rope_theta = placeholder(float)  # 100; the longest period.
    c.rope_periods = placeholder(tuple)  # (): those of theta; or a quarter of a head's width.
    c.rope_grid = placeholder(tuple)  # axial: scaled to these (rows, columns); (0, 0): not scaled.
    c.rep_size = placeholder(int)  # Width of the tanh pre-logits layer; 0: none; -1: the model's.
    c.ln_eps = placeholder(float)  # 1e-6; LayerNorm epsilon.
    c.gelu = placeholder(str)  # tanh (Google's models) or erf (PyTorch's).
    c.patch_bias = placeholder(bool)  # True; of the patch embedding.
    c.qkv_bias = placeholder(bool)  # True; of query, key and value.
    c.key_bias = placeholder(bool)  # True; False: of query and value alone (DINOv3, EVA).
    c.qk_norm = placeholder(bool)  # False; normalise queries and keys.
    c.qk_norm_bias = placeholder(bool)  # False; these norms have biases.
    c.attn_norm = placeholder(bool)  # False; a norm before attention's output projection.
    c.mlp = placeholder(str)  # gelu, silu; with a gate: swiglu, geglu.
    c.mlp_norm = placeholder(bool)  # False; a norm in the MLP (EVA-02).
    c.layer_scale = placeholder(float)  # 0: none; else the branches' initial factors.
    c.pre_norm = placeholder(bool)  # False; a norm before the first block (CLIP).
    c.final_norm = placeholder(str)  # Of tokens, pooled (of what is pooled) or none.
    c.norm = placeholder(str)  # layernorm or rmsnorm.
    c.parallel = placeholder(bool)  # False; attention and MLP side by side.

    c.resnet = ConfigDict()  # Of the variants BiT-..., and of the stem of R...+...
    c.resnet.units = placeholder(tuple)  # Of each stage: (3, 4, 6, 3).
    c.resnet.width_factor = placeholder(float)  # 1: 64 channels in the root.
    c.resnet.version = placeholder(str)  # v1 (activation after convolutions) or v2 (before).
    c.resnet.padding = placeholder(str)  # same (v1), explicit (v2) or explicit_zeros.
    c.resnet.gn_eps = placeholder(float)  # GroupNorm epsilon: 1e-6 (v1) or 1e-5 (v2).
    c.resnet.std_eps = placeholder(float)  # Of standardised kernels: 1e-5 (v1) or 1e-10 (v2).
    c.resnet.std_eps_in = placeholder(str)  # That is added to the std (v1) or the var (v2).
    return c
