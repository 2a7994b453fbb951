"""Random models of timm, saved as timm does, give the same outputs here."""

import jax
import numpy as np
import pytest

from tests.conftest import campaign
from tests.references import outputs, randomise, reference
from vit_jax.pretrained.formats import timm_config
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.slow

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
SIZE = {"img_size": 32, "patch_size": 8}
# timm's name -> arguments, and hints beyond the number of heads and the image size.
CASES = {
    "vit_base_patch16_224": {},
    "vit_base_patch16_224 gap": {"global_pool": "avg"},
    "vit_base_patch16_224 gap without fc_norm": {"global_pool": "avg", "fc_norm": False},
    "vit_base_patch16_224 no class token": {"class_token": False, "global_pool": "avg"},
    "vit_base_patch16_224 no head": {"num_classes": 0},
    "vit_base_patch16_224 norms of queries and keys": {"qk_norm": True},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_base_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {},
    "vit_giant_patch14_reg4_dinov2": {},
    "vit_medium_patch16_reg4_gap_256": {},
    "vit_so150m2_patch16_reg1_gap_256": {},
    "deit_base_distilled_patch16_224": {},
    "deit3_base_patch16_224": {},
    "eva02_tiny_patch14_224": {},
    "eva02_base_patch14_224": {},
    "eva02_base_patch16_clip_224": {},
    "eva_giant_patch14_224": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {},
    "vit_huge_plus_patch16_dinov3": {},
    "vit_huge_plus_patch16_dinov3_qkvb": {},
}  # fmt: skip
# With their published sizes: the entry points accept no others.
WHOLE = {
    "vit_tiny_r_s16_p8_224": {"img_size": 64},
    "vit_small_r26_s32_224": {"img_size": 64},
    "mixer_s32_224": {"img_size": 224},
    "resnetv2_50x1_bit": {},
}


KINDS = ("safetensors", "pth")
LARGE = ("vit_small_r26_s32_224", "mixer_s32_224")


# Each case in one container, alternating; the campaign runs both, and the large models.
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (case, kind) if KINDS[i % 2] == kind and case not in LARGE else campaign(case, kind)
        for i, case in enumerate([*CASES, *WHOLE])
        for kind in KINDS
    ],
)
def test_outputs_are_those_of_timm(case, kind, tmp_path):
    timm = reference("timm")
    import safetensors.torch
    import torch

    name = case.partition(" ")[0]
    settings = WHOLE[name] if name in WHOLE else TINY | SIZE | CASES[case]
    model = randomise(timm.create_model(name, pretrained=False, **settings))
    path = tmp_path / f"model.{kind}"
    if kind == "pth":
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
    else:
        safetensors.torch.save_model(model, path)
    side = settings.get("img_size", 40)
    hints = {"image_size": side} if name in WHOLE else {"image_size": side, "num_heads": 4}
    if name not in WHOLE and name.startswith("vit") and model.global_pool == "avg":
        hints["pool"] = "gap"
    pretrained = load_pretrained(str(path), hints=hints)
    images = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    expected, allowed = outputs(model, images, lambda logits: {"logits": logits})
    with jax.default_matmul_precision("highest"):
        logits, _ = jax.jit(pretrained.model.apply)({"params": pretrained.params}, images)
    assert np.abs(np.asarray(logits) - expected["logits"]).max() <= allowed["logits"]


def test_the_heads_of_every_entry_point_are_known(monkeypatch):
    """No tensor shows them; without config.json they would be assumed."""
    timm = reference("timm")
    modules = [getattr(timm.models, name) for name in ("vision_transformer", "deit", "eva")]
    classes = (modules[0].VisionTransformer, modules[1].VisionTransformerDistilled, modules[2].Eva)
    heads = {}

    class Built(Exception):
        """Ends the construction of a model before it has parameters."""

    def init(self, num_heads=12, **_):
        heads[name] = num_heads
        raise Built

    for cls in classes:
        monkeypatch.setattr(cls, "__init__", init)
    for name in timm.list_models():
        if timm.models.model_entrypoint(name).__module__ in {m.__name__ for m in modules}:
            with pytest.raises(Built):
                timm.create_model(name)
    ours = {name: timm_config.heads(name) for name in heads if timm_config.is_listed(name)}
    assert len(ours) > 200 and ours == {name: heads[name] for name in ours}
