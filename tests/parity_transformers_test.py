"""Random models of Hugging Face transformers, saved by it, give the same outputs here."""

import jax
import numpy as np
import pytest

from tests.conftest import campaign
from tests.references import outputs, randomise, reference, transformers_outputs
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
         "patch_size": 8}  # fmt: skip
MLP = {"intermediate_size": 80}
LABELS = {"id2label": {k: f"thing {k}" for k in range(5)}}

# Name -> class of the config, class of the model, keys of the config.
CASES = {
    "vit": ("ViTConfig", "ViTForImageClassification", MLP | LABELS),
    "vit gelu_new, no qkv bias": (
        "ViTConfig", "ViTForImageClassification",
        MLP | LABELS | {"hidden_act": "gelu_new", "qkv_bias": False, "layer_norm_eps": 1e-3},
    ),
    "vit with pooler": ("ViTConfig", "ViTModel", MLP),
    "vit gray": ("ViTConfig", "ViTForImageClassification", MLP | LABELS | {"num_channels": 1}),
    "deit": ("DeiTConfig", "DeiTForImageClassification", MLP | LABELS),
    "deit with teacher": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", MLP | LABELS),
    "dinov2 swiglu": ("Dinov2Config", "Dinov2Model", {"use_swiglu_ffn": True, "mlp_ratio": 4}),
    "dinov2 classifier": ("Dinov2Config", "Dinov2ForImageClassification", LABELS),
    "dinov2 registers classifier": (
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification",
        LABELS | {"num_register_tokens": 3},
    ),
    "dinov2 registers swiglu": (
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel",
        {"use_swiglu_ffn": True, "num_register_tokens": 4},
    ),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", MLP | {"num_register_tokens": 4}),
    "dinov3 gated gelu, all biases": (
        "DINOv3ViTConfig", "DINOv3ViTModel",
        MLP | {"use_gated_mlp": True, "key_bias": True, "num_register_tokens": 0},
    ),
    "msn": ("ViTMSNConfig", "ViTMSNForImageClassification", MLP | LABELS),
    "ijepa": ("IJepaConfig", "IJepaModel", MLP),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", MLP),
}  # fmt: skip


FILES = ("model.safetensors", "pytorch_model.bin")


# Each case in one kind of file, alternating; the campaign runs both.
@pytest.mark.parametrize(
    ("case", "file"),
    [
        (case, file) if FILES[i % 2] == file else campaign(case, file)
        for i, case in enumerate(CASES)
        for file in FILES
    ],
)
def test_outputs_are_those_of_transformers(case, file, tmp_path):
    transformers = reference("transformers")
    import torch

    config_class, model_class, settings = CASES[case]
    config = getattr(transformers, config_class)(**SIZES | settings)
    model = randomise(getattr(transformers, model_class)(config))
    model.save_pretrained(tmp_path)
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / file)
    pretrained = load_pretrained(str(tmp_path))
    shape = (2, 32, 32, settings.get("num_channels", 3))
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected, allowed = outputs(model, images, transformers_outputs)
    with jax.default_matmul_precision("highest"):
        logits, intermediates = jax.jit(pretrained.model.apply)(
            {"params": pretrained.params}, images
        )
    ours = {"logits": logits, **intermediates}
    for name, array in expected.items():
        assert np.abs(np.asarray(ours[name]) - array).max() <= allowed[name], name
    if pretrained.config.num_classes:
        assert pretrained.labels == tuple(LABELS["id2label"].values())
