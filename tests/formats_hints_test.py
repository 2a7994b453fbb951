"""Facts that a file lacks are hinted, or assumed with a note; ambiguous files are refused."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.references import reference
from tests.small_run import small_config
from tests.tiny_checkpoints import tiny
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.inference.predict import predict
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.inspection import inspect
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.mapping import map_checkpoint
from vit_jax.pretrained.preprocess import from_family
from vit_jax.training.init_from import inherit_model

pytestmark = pytest.mark.medium

SIZES = {"num_heads": 4, "image_size": 32}


class Files:
    """Bare files in timm's names; each model is created once."""

    def __init__(self, folder):
        self.folder, self.made = folder, {}

    def __call__(self, change=lambda tensors: tensors, **config):
        """Returns the path of a model's file with changed tensors."""
        key = str(sorted(config.items()))
        if key not in self.made:
            folder = self.folder / f"model{len(self.made)}"
            model = tiny(family="timm", **{"posemb_resize": "bicubic_antialias"} | config)
            export(model, folder, to="timm")
            self.made[key] = load_file(folder / "model.safetensors")
        path = self.folder / f"file{len(list(self.folder.iterdir()))}.safetensors"
        save_file(change(dict(self.made[key])), path)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


def described(path, **hints):
    """Returns the config that would be loaded; reads no tensor."""
    return map_checkpoint(path, hints=SIZES | hints).description


def renamed(*pairs):
    """Returns a function that renames tensors by patterns; None removes a tensor."""

    def change(tensors):
        for pattern, new in pairs:
            left = {
                n: t for n, t in tensors.items() if new is not None or not re.search(pattern, n)
            }
            tensors = {re.sub(pattern, new or "", n): t for n, t in left.items()}
        return tensors

    return change


def split_gate(tensors):
    """Splits a packed gate into two tensors, as in timm's SwiGLU."""
    parts = {}
    for name, array in tensors.items():
        if re.match(r"blocks\.\d+\.mlp\.fc1\.", name):
            for part, rows in zip(("fc1_g", "fc1_x"), np.split(array, 2), strict=True):
                parts[name.replace("fc1", part)] = rows.copy()
        else:
            parts[name] = array
    return parts


def as_eva(tensors):
    """Separates the biases of queries and values and removes those of keys, as in EVA."""
    parts = {}
    for name, array in split_gate(tensors).items():
        if name.endswith("qkv.bias"):
            query, _, value = np.split(array, 3)
            parts |= {name.replace("qkv.bias", f"{x}_bias"): t.copy() for x, t in
                      (("q", query), ("v", value))}  # fmt: skip
        else:
            parts[name] = array
    return parts


def without_biases(tensors):
    return renamed((r"qkv\.bias", None))(split_gate(tensors))


# ------------------------------------------------------------------------- hints and their effect


def test_hints_without_an_effect_are_refused(files):
    for name in ("class_token", "qkv_bias", "hidden_act"):  # The file states these.
        with pytest.raises(ConfigError, match=f'There is no hint "{name}"'):
            described(files(), **{name: 1})


@pytest.mark.parametrize(
    ("config", "hints"),
    [
        ({"mlp": "silu"}, {"mlp": "silu", "gelu": "tanh"}),
        ({}, {"rope": "none", "rope_grid": 4}),
        ({"num_classes": 0}, {"loss": "sigmoid_xent"}),
    ],
)
def test_hints_for_parts_that_the_model_lacks_are_refused(files, config, hints):
    with pytest.raises(ConfigError, match="has no effect on a checkpoint of timm") as refused:
        described(files(**config), **hints)
    accepted = str(refused.value).partition("Hints with an effect: ")[2].rstrip(".").split(", ")
    assert {"num_heads", "ln_eps", "mlp", "preprocessing", "rope"} <= set(accepted)
    assert not {"gelu", "loss", "rope_grid"} & hints.keys() & set(accepted)


@pytest.mark.parametrize("hints", [{"ln_eps": float("inf")}, {"loss": ""}, {"loss": "softmax"}])
def test_invalid_values_are_refused(files, hints):
    with pytest.raises(ConfigError, match=f"The hint {next(iter(hints))}="):
        described(files(), **hints)


def test_a_gate_is_a_fact_of_the_tensors(files):
    with pytest.raises(CheckpointError, match="has no gate: gelu or silu"):
        described(files(), mlp="swiglu")
    with pytest.raises(CheckpointError, match="has a gate: swiglu or geglu"):
        described(files(split_gate, mlp="swiglu"), mlp="gelu")


def test_arguments_of_timm_that_tensors_do_not_show_are_noted(files):
    packed = described(files(mlp="swiglu"), rope="axial_xy").assumed
    assert (packed["gate"], packed["rope_grid_offset"], packed["rope_rotate_half"]) == (
        "first half", 0.0, False,
    )  # fmt: skip
    assert (
        not {"gate", "rope_grid_offset"} & described(files(split_gate, mlp="swiglu")).assumed.keys()
    )


@pytest.mark.parametrize(
    ("hints", "fields"),
    [
        ({"posemb_resize": "bicubic"}, {"posemb_resize": "bicubic"}),
        ({"gelu": "tanh", "ln_eps": 1e-5}, {"gelu": "tanh", "ln_eps": 1e-5}),
        ({"rope": "axial_ij"}, {"rope": "axial_ij", "rope_theta": 1e4, "rope_grid": (0, 0)}),
        ({"rope": "axial_xy", "rope_theta": 50, "rope_grid": (3, 4)},
         {"rope": "axial_xy", "rope_theta": 50.0, "rope_grid": (3, 4)}),
    ],
)  # fmt: skip
def test_conventions_can_be_hinted(files, hints, fields):
    description = described(files(), **hints)
    assert {name: getattr(description.config, name) for name in fields} == fields
    assert not description.assumed.keys() & hints.keys()
    assert {"blocks", "preprocessing"} <= description.assumed.keys()


def test_the_preprocessing_can_be_hinted(files):
    description = described(files(), preprocessing="mae")
    assert description.transforms == from_family("mae", image_size=(32, 32))
    with pytest.raises(CheckpointError, match=r'No family "maee"\. Did you mean "mae"\?'):
        described(files(), preprocessing="maee")


def test_the_gate_can_be_hinted(files):
    path = files(split_gate, mlp="swiglu")
    assert described(path).config.mlp == "swiglu" and described(path).assumed["mlp"] == "swiglu"
    assert described(path, mlp="geglu", gelu="tanh").config.mlp == "geglu"


def test_assumptions_are_noted(files):
    path = files()
    assumptions = ("ln_eps=1e-06", "gelu=erf", "pool=token", "rope=none", "preprocessing=timm")
    inspected = inspect(str(path), hints=SIZES)
    (note,) = [n for n in load_pretrained(path, hints=SIZES).notes if n.startswith("assumed")]
    for assumption in assumptions:
        assert assumption in note and assumption in inspected
    assert "num_heads" not in note and "image_size" not in note
    assert "image_size=32x32" in inspect(str(path), hints={"num_heads": 4})


def test_a_described_folder_assumes_nothing(tmp_path):
    export(tiny(), tmp_path / "hf", to="hf")
    assert map_checkpoint(tmp_path / "hf").description.assumption == ""
    export(tiny(family="timm", posemb_resize="bicubic_antialias"), tmp_path / "timm", to="timm")
    assumed = map_checkpoint(tmp_path / "timm").description.assumed
    assert assumed.keys() <= {"posemb_resize"}


# ------------------------------------------------------------------------- kinds of models


@pytest.mark.parametrize(
    ("change", "kind", "rope"),
    [
        (split_gate, "names of timm", "none"),  # Biases of all three: timm's VisionTransformer.
        (as_eva, "names of timm's EVA", "axial_ij"),
    ],
)
def test_a_name_that_only_one_kind_has_decides(files, change, kind, rope):
    description = described(files(change, mlp="swiglu"))
    assert description.kind == kind and description.config.rope == rope
    assert description.assumed["rope"] == rope
    if rope != "none":
        assert (description.config.rope_theta, description.config.rope_grid) == (1e4, (16, 16))


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (without_biases, {"mlp": "swiglu"}),  # timm's VisionTransformer without biases, or EVA-02.
        (renamed(("pos_embed", None)), {}),  # Its VisionTransformer without positions, or EVA.
        # EVA with layer scale, of which no model was published.
        (lambda t: as_eva(renamed((r"ls(\d)\.gamma", r"gamma_\1"))(t)),
         {"mlp": "swiglu", "layer_scale": 0.1}),
    ],
)  # fmt: skip
def test_an_ambiguous_file_is_refused_with_the_hint_to_pass(files, change, config):
    path = files(change, **config)
    with pytest.raises(CheckpointError, match=r"--hints=rope=axial_xy; if it has none, rope=none"):
        described(path)
    assert described(path, rope="none").config.rope == "none"
    assert described(path, rope="axial_ij").config.rope == "axial_ij"


def test_rows_that_fit_two_grids_are_refused(files):
    path = files(registers=8, posemb_prefix="all")  # 16 patches and 9 tokens are 25 rows.
    with pytest.raises(CheckpointError, match=r"25 rows, of 40x40 or 32x32\. Give its image size"):
        map_checkpoint(path, hints={"num_heads": 4})
    assert described(path).config.posemb_prefix == "all"


# ------------------------------------------------------------------------- wrappers and heads


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod."])
def test_wrappers_are_removed(files, prefix):
    path = files(renamed(("^", prefix)))
    assert described(path).tensors.keys() == described(files()).tensors.keys()


def test_two_models_under_two_prefixes_are_refused(files):
    path = files(lambda t: t | {f"module.{name}": array for name, array in t.items()})
    with pytest.raises(CheckpointError, match=r"holds several models: .* are both the"):
        described(path)


def test_heads_of_training_are_left_out(files):
    heads = {
        f"{name}.weight": np.ones((2, 2), np.float32)
        for name in ("dino_head.mlp.0", "ibot_head.last_layer", "head.mlp.2", "head.last_layer")
    }
    plan = map_checkpoint(files(lambda t: t | heads), hints=SIZES)
    assert set(plan.left_out) == set(heads)
    assert "heads of its training left out" in plan.description.notes


@pytest.mark.parametrize(("hint", "pool"), [(None, "map_patches"), ("map", "map_patches"),
                                            ("map_all", "map")])  # fmt: skip
def test_attention_pools_the_patches_only(files, hint, pool):
    path = files(pool="map_patches", registers=2, class_token=True, posemb_prefix="all")
    hints = {} if hint is None else {"pool": hint}
    assert described(path, **hints).config.pool == pool


# ------------------------------------------------------------------------- other files


def test_a_work_directory_takes_no_hints(plain_run):
    origin = {"init_from": str(plain_run), "init_hints": (("num_headss", 4),)}
    config = small_config(model__variant="", **origin)
    for use in (
        lambda hints: load_pretrained(plain_run, hints=hints),
        lambda hints: inspect(str(plain_run), hints=hints),
        lambda hints: next(predict(plain_run, [__file__], hints=hints)),
        lambda hints: inherit_model(config, plain_run / "new"),
    ):
        with pytest.raises(ConfigError, match="is a work directory, whose config describes"):
            use({"num_headss": 4})


@pytest.mark.parametrize(
    ("given", "size"), [({}, (224, 224)), ({"input_size": [3, 448, 448]}, (448, 448))]
)
def test_a_resnet_of_timm_has_the_size_of_its_config_json(given, size, tmp_path):
    resnetv2 = reference("timm").models.resnetv2
    layers = {"conv_layer": resnetv2.StdConv2d, "stem_type": "fixed"}
    theirs = resnetv2.ResNetV2((1, 1), (128, 256), num_classes=3, stem_chs=32, **layers)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"architecture": "resnetv2_50x1_bit", "pretrained_cfg": {"crop_pct": 1.0} | given}
    (tmp_path / "config.json").write_text(json.dumps(config))
    description = map_checkpoint(tmp_path).description
    assert description.config.image_size == size and "image_size" not in description.assumed
    with pytest.raises(CheckpointError, match=r"image_size=.32, 32. contradicts"):
        map_checkpoint(tmp_path, hints={"image_size": 32})
