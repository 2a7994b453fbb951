"""Models of transformers and timm that resemble ours give equal outputs, or are refused."""

import numpy as np
import pytest

from tests.references import outputs as reference_outputs
from tests.references import randomise, reference
from tests.tiny_checkpoints import outputs, random_images
from vit_jax.errors import CheckpointError
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.slow  # Takes minutes.

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
         "patch_size": 8, "intermediate_size": 80}  # fmt: skip
LABELS = {"id2label": {k: f"thing {k}" for k in range(5)}}
TIMM = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5, "patch_size": 8}


def saved_by_transformers(folder, name, **settings):
    transformers = reference("transformers")
    if name == "SiglipForImageClassification":
        config = transformers.SiglipConfig(vision_config=SIZES, **settings)
    elif name == "SiglipVisionModel":
        config = transformers.SiglipVisionConfig(**SIZES | settings)
    else:
        config = transformers.ViTConfig(**SIZES | settings)
    model = randomise(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    return model


def saved_by_timm(folder, name, **settings):
    timm = reference("timm")
    settings = {"img_size": 32} | TIMM | settings
    model = randomise(timm.create_model(name, pretrained=False, **settings))
    timm.models._hub.save_for_hf(model, folder, model_args=settings)
    return model


RIGHT = {
    "SigLIP's classifier": (
        saved_by_transformers, "SiglipForImageClassification", LABELS,
    ),
    "another pooler's width": (saved_by_transformers, "ViTModel", {"pooler_output_size": 40}),
    "no square": (saved_by_transformers, "ViTForImageClassification",
                  LABELS | {"image_size": [32, 48], "patch_size": [8, 16]}),
    "timm's gray": (saved_by_timm, "vit_base_patch16_224", {"in_chans": 1}),
    "timm's tanh": (saved_by_timm, "vit_base_patch16_224", {"act_layer": "gelu_tanh"}),
    "timm's rotary positions": (saved_by_timm, "vit_small_patch16_rope_224", {}),
    "attention that pools the patches alone": (
        saved_by_timm, "vit_so150m_patch16_reg4_map_256", {},
    ),
    "SiLU": (saved_by_transformers, "ViTForImageClassification", LABELS | {"hidden_act": "silu"}),
    "SigLIP's SiLU, in its head too": (
        saved_by_transformers, "SiglipVisionModel", {"hidden_act": "silu"},
    ),
    "timm's mean without any norm": (
        saved_by_timm, "vit_base_patch16_224", {"global_pool": "avg", "final_norm": False},
    ),
}  # fmt: skip
REFUSED = {
    "another pooler": (saved_by_transformers, "ViTModel", {"pooler_act": "relu"}, "pooler_act"),
    "norms after branches": (
        saved_by_timm, "vit_base_patch16_rpn_224", {}, "block_fn='ResPostBlock'",
    ),
    "a mean of all tokens": (
        saved_by_timm, "vit_base_patch16_224",
        {"global_pool": "avg", "pool_include_prefix": True}, "avg with pool_include_prefix",
    ),
    "timm's relu": (saved_by_timm, "vit_base_patch16_224", {"act_layer": "relu"}, "relu"),
    "learned rotary positions": (
        saved_by_timm, "vit_small_patch16_rope_mixed_224", {}, "rope.freqs",
    ),
    "root mean squares": (
        saved_by_timm, "vit_base_patch16_224", {"norm_layer": "rmsnorm"}, "norm1/bias",
    ),
    "parallel branches": (saved_by_timm, "vit_small_patch16_18x2_224", {}, "of no known format"),
    "BEiT": (saved_by_timm, "beit_base_patch16_224", {}, "relative_position_bias_table"),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_outputs_are_equal(kind, tmp_path):
    save, name, settings = RIGHT[kind]
    model = save(tmp_path, name, **settings)
    loaded = load_pretrained(tmp_path)
    images = random_images(loaded)

    def read(output):
        if name in ("ViTModel", "SiglipVisionModel"):
            return {"pre_logits": output.pooler_output}
        return {"logits": getattr(output, "logits", output)}

    expected, allowed = reference_outputs(model, images, read)
    ours = outputs(loaded, images)
    for key, array in expected.items():
        assert np.abs(ours[key] - array).max() <= allowed[key]


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_refused(kind, tmp_path):
    save, name, settings, message = REFUSED[kind]
    save(tmp_path, name, **settings)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(tmp_path)
    assert message in str(error.value)
