"""Exports: every golden in every format that can express it, read here and by the real libraries.

What is read again has the same bits: the parameters are equal, or, where a format has another table
of positions, the outputs are.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHARED, campaign
from tests.references import outputs as reference_outputs
from tests.references import reference
from tests.tiny_checkpoints import LABELS, outputs, random_images, tiny
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError
from vit_jax.pretrained.exports import export, huggingface
from vit_jax.pretrained.exports import timm as timm_export
from vit_jax.pretrained.exports.huggingface import write_shards
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.mapping import map_checkpoint
from vit_jax.pretrained.preprocess import from_hf
from vit_jax.pretrained.verification import fixtures, load_fixture

pytestmark = pytest.mark.slow  # Takes minutes.

GOLDENS = SHARED / "goldens"
FIXTURES = {f["id"]: f for f in fixtures(GOLDENS)} if GOLDENS.is_dir() else {}
FORMATS = ("hf", "timm", "google", "big_vision", "orbax")
# Goldens that these formats cannot express; all others are written.
REFUSED = {
    "hf": {
        "bv_npz/bit_paper_tfnames", "bv_npz/bit_v1", "bv_npz/map_learn", "bv_npz/tok_learn_rep",
        "deit3_native/layerscale", "timm_eva/rope_axial", "timm_vit/gap_fcnorm_pth",
        "timm_vit/map_siglip", "timm_vit/noembedclass_ls", "timm_vit/reg_ls_qknorm_swiglu",
        "vt_npz/hybrid_token", "vt_npz/mixer", "vt_npz/token_prelogits",
    },
    "timm": {
        "bv_npz/bit_paper_tfnames", "bv_npz/bit_v1", "bv_npz/tok_learn_rep", "hf_dinov2/cls_mlp",
        "hf_vit/model_with_pooler", "vt_npz/hybrid_token", "vt_npz/mixer",
        "vt_npz/token_prelogits",
    },
}  # fmt: skip


@functools.cache
def golden(name):
    """Returns a golden's model and its inputs."""
    fixture = FIXTURES[name]
    with np.load(fixture["folder"] / fixture["inputs"]) as file:
        return load_fixture(fixture), file["image"]


def written(pretrained, path, to, **options):
    """Returns whether the format can express the model, with --change_numerics if needed."""
    try:
        export(pretrained, path, to=to, **options)
    except CheckpointError as error:
        if "--change_numerics" not in str(error):
            assert f"format {to}" in str(error).lower() and not list(
                path.parent.glob(f"{path.name}*")
            )
            return False
        export(pretrained, path, to=to, change_numerics=True, **options)
    return True


def again(pretrained, path, to):
    """Loads an export, with hints that a bare file needs."""
    bare = to in ("google", "big_vision") and hasattr(pretrained.config, "grid")
    hints = {"image_size": pretrained.config.image_size} if bare else {}
    return load_pretrained(path, hints=hints)


def same(a, b):
    """Returns whether two trees have the same bits."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def one_of_each(pairs, kind):
    """Keeps the first pair of each `kind(*pair)`; the others run in the campaign."""
    kinds = [kind(*pair) for pair in pairs]
    return [pair if kinds.index(kinds[i]) == i else campaign(*pair) for i, pair in enumerate(pairs)]


def family_and_format(to, name):
    """Returns the kind of a pair of a format and a golden; `name` is family/model of the golden."""
    return name.partition("/")[0], to, name in REFUSED.get(to, ())


@pytest.mark.parametrize(
    ("to", "name"),
    one_of_each([(to, name) for name in FIXTURES for to in FORMATS], family_and_format),
)
def test_round_trips_have_the_same_bits(name, to, tmp_path):
    pretrained, images = golden(name)
    path = tmp_path / "exported"
    done = written(pretrained, path, to)
    assert done == (name not in REFUSED[to]) if to in REFUSED else to != "orbax" or done
    if not done:
        return
    loaded = again(pretrained, path, to)
    if not same(loaded.params, pretrained.params):
        fields = ("ln_eps", "gelu")
        assert [getattr(loaded.config, f) for f in fields] == [
            getattr(pretrained.config, f) for f in fields
        ]
        assert same(outputs(loaded, images)["tokens"], outputs(pretrained, images)["tokens"])
        assert same(outputs(loaded, images)["logits"], outputs(pretrained, images)["logits"])


# --------------------------------------------------------------------------- in other libraries


def from_transformers(folder):
    """Loads a model of transformers; returns its outputs and the weights that it initialised."""
    transformers = reference("transformers")
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    # A ViTModel has a pooler even if its checkpoint has none.
    made_up = set(info.pop("missing_keys"))
    assert made_up <= {"pooler.dense.weight", "pooler.dense.bias"} and not any(info.values())
    names = {"logits": "logits", "last_hidden_state": "tokens"}
    if not made_up:
        names["pooler_output"] = "pre_logits"

    def read(output):
        loaded = {ours: getattr(output, theirs, None) for theirs, ours in names.items()}
        return {name: tensor for name, tensor in loaded.items() if tensor is not None}

    return model.eval(), read


def from_timm(folder):
    """Loads a model of timm, and returns its outputs."""
    model = reference("timm").create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval(), lambda logits: {"logits": logits}


LIBRARIES = {"hf": from_transformers, "timm": from_timm}


def check_library(folder, to, loaded, images):
    """Checks that the library's outputs equal those of the model here, within its noise floor."""
    model, read = LIBRARIES[to](folder)
    expected, allowed = reference_outputs(model, images, read)
    ours = outputs(loaded, images)
    assert expected
    for name, array in expected.items():
        difference = np.abs(ours[name] - array).max()
        print(f"{folder.name} {to} {name}: {difference:.1e}, allowed {allowed[name]:.1e}")
        assert difference <= allowed[name], name


@pytest.mark.parametrize(
    ("to", "name"),
    one_of_each(
        [(to, name) for to in LIBRARIES for name in FIXTURES if name not in REFUSED[to]],
        family_and_format,
    ),
)
def test_libraries_give_the_same_outputs(to, name, tmp_path):
    pretrained, images = golden(name)
    path = tmp_path / name.replace("/", "_")
    assert written(pretrained, path, to)
    check_library(path, to, again(pretrained, path, to), images)


SHAPES = {
    "plain": {},
    "no square": {"image_size": (16, 64), "patch_size": (8, 8)},  # A grid of 2x8, as 4x4.
    "patches that are no square": {"image_size": (32, 48), "patch_size": (8, 16)},
    "gray": {"channels": 1},
    "one block": {"depth": 1},
    "twelve blocks": {"depth": 12},
    "no head": {"num_classes": 0},
    "one class": {"num_classes": 1},
    "one by one": {"scan": False},
}


# Each shape runs in one format, each format with one or two shapes; "no square" runs in all.
@pytest.mark.parametrize(
    ("to", "shape"),
    [
        (to, shape) if (i + k) % len(FORMATS) == 0 or shape == "no square" else campaign(to, shape)
        for i, shape in enumerate(SHAPES)
        for k, to in enumerate(FORMATS)
    ],
)
def test_any_shape(shape, to, tmp_path):
    pretrained = tiny(gelu="tanh", **SHAPES[shape])
    path, images = tmp_path / "exported", random_images(pretrained)
    if to == "orbax" and shape == "patches that are no square":
        with pytest.raises(ConfigError, match="config cannot express patch_size="):
            export(pretrained, path, to=to)
        return
    assert written(pretrained, path, to)
    loaded = again(pretrained, path, to)
    assert loaded.config.image_size == pretrained.config.image_size
    if shape == "one by one":  # It is loaded as stacked blocks.
        ours, theirs = outputs(loaded, images)["logits"], outputs(pretrained, images)["logits"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        assert same(loaded.params, pretrained.params)
    if to in LIBRARIES:
        check_library(path, to, loaded, images)


def test_timm_gets_the_entry_point_of_exactly_that_size(tmp_path):
    timm, torch = reference("timm"), reference("torch")
    for size, names in timm_export._SIZES.items():
        for name in names:
            with torch.device("meta"):
                model = timm.create_model(name)
            block = model.blocks[0]
            shown = len(model.blocks), block.mlp.fc1.out_features, block.attn.num_heads
            assert (model.embed_dim, *shown) == size, name
            patch, side = map(int, name.partition("patch")[2].split("_"))
            assert model.patch_embed.patch_size == (patch, patch)
            assert model.patch_embed.img_size == (side, side)
    sizes = dict(zip(("width", "depth", "mlp_dim", "num_heads"), (192, 12, 768, 3), strict=True))
    pretrained = tiny(patch_size=(16, 16), posemb_resize="bicubic_antialias", gelu="erf", **sizes)
    assert written(pretrained, tmp_path / "ti", "timm")
    content = json.loads((tmp_path / "ti" / "config.json").read_text())
    assert content["architecture"] == "vit_tiny_patch16_224"
    loaded = load_pretrained(tmp_path / "ti")
    check_library(tmp_path / "ti", "timm", loaded, random_images(pretrained))
    content["architecture"] = "deit_tiny_patch16_224"  # Facebook's own files resize differently.
    (tmp_path / "ti" / "config.json").write_text(json.dumps(content))
    description = map_checkpoint(tmp_path / "ti").description
    assert description.config.posemb_resize == "bicubic_antialias" and not description.assumed


# ------------------------------------------------------------------------------ dtypes and metadata


@pytest.mark.parametrize("to", ["hf", "timm", "google", "big_vision"])
def test_bfloat16(to, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert written(tiny(gelu="tanh"), first, to, dtype="bfloat16")
    half = again(tiny(gelu="tanh"), first, to)
    exact = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), tiny().params)
    assert same(half.params, exact)
    assert written(half, second, to, dtype="bfloat16")
    assert same(again(half, second, to).params, exact)
    if to in LIBRARIES:
        model, _ = LIBRARIES[to](second)
        assert model.num_classes == 5 if to == "timm" else model.num_labels == 5


@pytest.mark.parametrize(
    ("to", "registers"),
    [
        *[("hf", 0), ("timm", 3), ("google", 0), ("big_vision", 3), ("orbax", 3)],
        *map(campaign, ("hf", "timm", "google", "big_vision", "orbax"), (3, 0, 3, 0, 0)),
    ],
)
def test_another_image_size(to, registers, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = {"registers": registers, "posemb_prefix": "class", "final_norm": "tokens"}
    pretrained = tiny(gelu="erf", posemb_resize="bicubic_antialias", **options)
    source = "timm" if registers else "hf"
    assert written(pretrained, first, source)
    larger = load_pretrained(first, image_size=(40, 56))
    assert larger.config.grid == (5, 7)
    if not written(larger, second, to):
        assert registers and to in ("hf", "google", "big_vision")
        return
    loaded = again(larger, second, to)
    assert loaded.config.image_size == (40, 56)
    if to == source or to == "orbax":
        assert same(loaded.params, larger.params)
    if to in LIBRARIES:
        check_library(second, to, loaded, random_images(larger))


def test_shards_are_read_by_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "write_shards", functools.partial(write_shards, largest=9000))
    pretrained = tiny(labels=LABELS)
    export(pretrained, tmp_path / "vit", to="hf")
    assert len(list((tmp_path / "vit").glob("model-0000?-of-0000?.safetensors"))) > 2
    loaded = load_pretrained(tmp_path / "vit")
    assert same(loaded.params, pretrained.params) and loaded.labels == LABELS
    check_library(tmp_path / "vit", "hf", loaded, random_images(pretrained))


def photograph(height=60, width=80):
    """Returns a smooth image with some noise, like a photograph."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 20
    waves = np.stack([np.sin(y + x), np.cos(x), np.sin(2 * y)], axis=-1)
    return (127 + 90 * waves + rng.normal(0, 10, waves.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("to", "family"),
    [
        *[("timm", "timm"), ("hf", "timm_imagenet"), ("hf", "deit"), ("timm", "mae")],
        *[("timm", "dinov2"), ("hf", "hf's own")],
        *map(campaign, ("hf", "timm", "timm", "hf"), ("timm", "timm_imagenet", "deit", "mae")),
        *map(campaign, ("hf", "timm"), ("dinov2", "hf's own")),
    ],
)
def test_images_are_prepared_the_same(family, to, tmp_path):
    # For these sides both libraries round the corner of the crop to the same pixel.
    size = {"image_size": (40, 40)}
    pretrained = tiny(family="timm" if family == "hf's own" else family, **size)
    if family == "hf's own":
        own = from_hf({"image_processor_type": "ViTImageProcessor"}, **size)
        preprocess = dataclasses.replace(pretrained.preprocess, transforms=own)
        pretrained = dataclasses.replace(pretrained, preprocess=preprocess)
    assert written(pretrained, tmp_path / "vit", to)
    image = Image.fromarray(photograph())
    if to == "hf":
        transformers = reference("transformers")
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "vit", backend="pil")
        theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    else:
        timm = reference("timm")
        model = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        theirs = transform(image).numpy().transpose(1, 2, 0)
    ours = pretrained.preprocess([image])[0]
    level = 1 / 255 / 0.224  # One of 256 levels, divided by the smallest standard deviation.
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1.01 * level
    again = load_pretrained(tmp_path / "vit").preprocess([image])[0]
    assert np.abs(again - theirs).max() <= 1.01 * level


@pytest.mark.parametrize("to", ["hf", "timm", "orbax"])
def test_class_names_are_exported(to, tmp_path):
    names = ("tench, Tinca tinca", 'a "quoted" one', "Zürich", "雪", "")
    given = ("tench, Tinca tinca\n", *names[1:]) if to in ("hf", "timm") else names
    assert written(tiny(labels=given), tmp_path / "vit", to)
    assert load_pretrained(tmp_path / "vit").labels == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "pt"}, "there is no such format. Accepted: hf, timm"),
        ({"to": "onnx", "dtype": "bfloat16"}, "The format onnx has float32 only"),
    ],
)
def test_invalid_targets_are_refused(options, message, tmp_path):
    with pytest.raises(VitJaxError, match=message):
        export(tiny(), tmp_path / "x", **options)
    with pytest.raises(VitJaxError, match="gs://bucket/x: the format hf writes local files only"):
        export(tiny(), "gs://bucket/x", to="hf")
    assert not any(tmp_path.iterdir())


def test_files_of_a_killed_export_are_not_in_the_next(tmp_path):
    (tmp_path / "vit.unfinished").mkdir()
    (tmp_path / "vit.unfinished/model-00009-of-00009.safetensors").touch()
    export(tiny(), tmp_path / "vit", to="hf")
    files = {path.name for path in (tmp_path / "vit").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
