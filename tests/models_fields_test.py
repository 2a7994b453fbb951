"""A field of a model's config is declared in one place; everything else is derived from it."""

import dataclasses
import types

import pytest

from vit_jax.config import base, base_config, freeze, model
from vit_jax.config.fields import Bounds, Role, check_value, declarations, has_effect
from vit_jax.errors import ConfigError
from vit_jax.models import VitConfig, section
from vit_jax.pretrained.exports.base import compare
from vit_jax.pretrained.formats.hints import HINTS
from vit_jax.pretrained.inspection import describe_fields
from vit_jax.training import init_from

SIZES = {
    "image_size": (32, 32), "patch_size": (16, 16), "num_classes": 3, "width": 32, "depth": 2,
    "mlp_dim": 64, "num_heads": 4,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandwich(VitConfig):
    """A Vision Transformer with one more field: this declaration is all that is added."""

    sandwich: str = model.architecture(
        "A norm after each branch.", default="off", choices=("off", "on")
    )


@pytest.fixture
def extended(monkeypatch):
    """A config of Sandwich, which replaces VitConfig in the library."""
    monkeypatch.setattr(model, "MODEL_CONFIGS", (Sandwich, *model.MODEL_CONFIGS[1:]))
    monkeypatch.setattr(section, "VitConfig", Sandwich)
    monkeypatch.setitem(section._KINDS, Sandwich, "a Vision Transformer")
    base._cached_base_config.cache_clear()
    yield Sandwich(**SIZES, sandwich="on")
    base._cached_base_config.cache_clear()


def test_a_new_field_is_a_key_of_the_config(extended):
    config = base_config()
    assert config.model.sandwich is None
    assert config.model.get_type("sandwich") is str
    config.model.update({"image_size": (32,), "sandwich": "on"})
    assert section.read_section(config.model, num_classes=3).sandwich == "on"
    config.model.variant = "Mixer-S/16"
    with pytest.raises(ConfigError, match="sandwich is 'on', but an MLP-Mixer does not use it"):
        section.read_section(config.model, num_classes=3)


def test_a_new_field_is_checked(extended):
    with pytest.raises(ConfigError, match=r'model.sandwich is "of". Did you mean "off"'):
        dataclasses.replace(extended, sandwich="of")


DECODE, RANGE = {"op": "decode"}, {"op": "value_range"}


def test_a_new_field_is_inherited_from_a_checkpoint(extended, monkeypatch, tmp_path):
    published = types.SimpleNamespace(config=extended, transforms=(DECODE, RANGE))
    mapping = types.SimpleNamespace(description=published)
    monkeypatch.setattr(init_from, "map_checkpoint", lambda path, hints: mapping)
    monkeypatch.setattr(init_from, "is_run", lambda path: False)
    monkeypatch.setattr(init_from, "compare_pixels", lambda config, transforms: None)
    config = base_config()
    config.init_from = "published.npz"
    config.model.update({"variant": "", "image_size": (32,)})
    inherited = init_from.inherit_model(freeze(config), tmp_path).model
    assert section.read_section(inherited, num_classes=3) == extended


def test_a_new_field_is_shown(extended):
    assert "sandwich on" in describe_fields(extended)


@pytest.mark.parametrize("value", ["off", "on"])
def test_a_new_field_is_refused_by_formats_that_do_not_have_it(extended, value):
    reasons = compare(dataclasses.replace(extended, sandwich=value), {}, to="hf")
    refused = [reason for reason in reasons.impossible if "sandwich" in reason]
    sandwich = "model.sandwich is 'on'; transformers has only 'off'"
    assert refused == ([sandwich] if value == "on" else [])


def test_every_field_is_documented():
    for kind in model.MODEL_CONFIGS:
        for field, declaration in declarations(kind):
            assert declaration.doc.endswith("."), field.name
            assert declaration.used_if.keys() <= {f.name for f in dataclasses.fields(kind)}
            if declaration.hint:
                assert field.name in HINTS
            if declaration.role is not Role.SIZE:
                assert field.default is not dataclasses.MISSING, field.name


def test_a_field_without_effect():
    assert not has_effect(VitConfig(**SIZES), "rope_theta")
    assert has_effect(VitConfig(**SIZES, rope="axial_xy"), "rope_theta")


@pytest.mark.parametrize(
    ("bounds", "accepted", "refused", "text"),
    [
        (Bounds(0, 1, high_open=True), (0, 0.5), (1, -0.1), "at least 0 and below 1"),
        (Bounds(0, low_open=True), (1e-9, 5), (0, -1, float("nan")), "above 0"),
        (Bounds(1), (1, 10**9), (0,), "at least 1"),
        (Bounds(1, 2**20), (1, 2**20), (0, 2**20 + 1), "from 1 to 1,048,576"),
        (Bounds(0, 64, low_open=True), (0.5, 64), (0, 65), "above 0 and at most 64"),
    ],
)
def test_bounds(bounds, accepted, refused, text):
    for value in accepted:
        check_value("key", value, bounds=bounds)
    for value in refused:
        with pytest.raises(ConfigError) as error:
            check_value("key", value, bounds=bounds)
        assert str(error.value) == f"key is {value}: it must be {text}."
