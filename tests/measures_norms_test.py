"""Norms of tokens and branches, and test-time registers, against slow formulas."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.measured_models import FAMILIES, expected, family, inputs, small
from vit_jax import analysis
from vit_jax.analysis.measures.encoder import measured, with_register_neurons
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.analysis.measures.token_norms import EDGES
from vit_jax.errors import ConfigError, NonFiniteError
from vit_jax.models import Vit

pytestmark = pytest.mark.medium


def blocks_of(name):
    """The reference's block outputs [layer, image, token, width], or else our forward pass's."""
    blocks = expected(name, "block")
    if not blocks:
        with jax.default_matmul_precision("highest"):
            blocks = list(family(name)(inputs(name), capture="blocks")[1]["blocks"])
    return np.asarray(blocks, np.float64)


def prefix_of(pretrained):
    return getattr(pretrained.config, "num_prefix", 0)


def slow_norms(images):
    """The norm of each token of [image, token, width]."""
    return np.array([[sum(x * x for x in token) ** 0.5 for token in image] for image in images])


@pytest.mark.parametrize("name", [*FAMILIES, "vt_npz/mixer"])
def test_norms_equal_the_slow_formula_on_the_references_blocks(name):
    pretrained, blocks = family(name), blocks_of(name)
    prefix, (rows, columns) = prefix_of(pretrained), pretrained.config.grid
    with jax.default_matmul_precision("highest"):
        result = analysis.token_norms(pretrained, inputs(name), batch_size=1)
    assert len(blocks) == len(result.mean) and result.num_images == blocks.shape[1]
    for layer, images in enumerate(blocks):
        norms = slow_norms(images)
        patches = norms[:, prefix:]
        for quantity, want in {
            "mean": patches.mean(), "std": patches.std(), "minimum": patches.min(),
            "maximum": patches.max(),
        }.items():  # fmt: skip
            np.testing.assert_allclose(
                getattr(result, quantity)[layer], want, rtol=3e-6, atol=1e-6, err_msg=quantity
            )
        np.testing.assert_allclose(
            result.prefix_mean[layer], np.mean(norms, axis=0)[:prefix], rtol=3e-6
        )
        assert result.histogram[layer].sum() == patches.size
        # The median is that of the tokens to the width of a bin.
        sorted_norms = np.sort(patches.ravel())
        middle = sorted_norms[(patches.size - 1) // 2], sorted_norms[patches.size // 2]
        assert middle[0] / 1.05 <= result.quantiles[2, layer] <= middle[1] * 1.05
        assert result.threshold[layer] == 4 * result.quantiles[2, layer]
        outliers = patches > result.threshold[layer]
        assert result.outlier_share[layer] == outliers.mean()
        np.testing.assert_array_equal(
            result.outlier_map[layer], outliers.mean(axis=0).reshape(rows, columns)
        )


def test_a_threshold_counts_outliers():
    pretrained = small(image_size=(32, 48), registers=2, depth=2)
    images = np.random.default_rng(0).normal(size=(7, 32, 48, 3)).astype(np.float32)
    norms = np.linalg.norm(pretrained(images, capture="blocks")[1]["blocks"], axis=-1)[..., 3:]
    cut = float(np.median(norms[1]))
    result = analysis.token_norms(pretrained, images, threshold=cut, batch_size=3)
    assert result.outlier_share[1] == (norms[1] > cut).mean() == 0.5
    assert (result.outlier_interval[0] <= result.outlier_share).all()
    assert (result.outlier_share <= result.outlier_interval[1]).all()
    assert result.prefix_names == ("class", "register 1", "register 2")
    for layer in (0, 1):
        counts, _ = np.histogram(norms[layer], EDGES)
        np.testing.assert_array_equal(result.histogram[layer][1:-1], counts)


@pytest.mark.slow
def test_files_of_norms(tmp_path):
    images = np.random.default_rng(0).normal(size=(7, 32, 48, 3)).astype(np.float32)
    result = analysis.token_norms(small(image_size=(32, 48), registers=2, depth=2), images)
    assert {path.suffix for path in result.save(tmp_path)} == {".png", ".svg", ".json", ".npz"}


def test_zeros_and_huge_norms_are_in_the_outer_bins():
    pretrained = small(image_size=(32, 48), registers=2, depth=2)
    images = np.ones((7, 32, 48, 3), np.float32)
    encoder = pretrained.params["encoder"]
    for factor, place in ((0.0, 0), (1e9, -1)):
        embedding = jax.tree.map(lambda x, f=factor: x * f, pretrained.params["embedding"])
        params = pretrained.params | {
            "embedding": embedding,
            "pos_embedding": pretrained.params["pos_embedding"] * 0,
            "encoder": encoder | {"blocks": jax.tree.map(lambda x: x * 0, encoder["blocks"])},
        }
        changed = dataclasses.replace(pretrained, params=params)
        result = analysis.token_norms(changed, images)
        assert (result.histogram[:, place] == 7 * 6).all()


def test_what_has_no_norms_is_named():
    images = np.zeros((2, 32, 32, 3), np.float32)
    pretrained = small(image_size=32)
    with pytest.raises(NotApplicableError, match="is a Resnet: it has no tokens"):
        analysis.token_norms(family("bv_npz/bit_v1"), inputs("bv_npz/bit_v1"))
    with pytest.raises(ConfigError, match="threshold is 0: give a positive norm"):
        analysis.token_norms(pretrained, images, threshold=0)
    with pytest.raises(NonFiniteError, match="tokens of layer 1 are NaN or infinite"):
        params = jax.tree.map(lambda x: x * 1e38, pretrained.params)  # Finite, and overflows.
        analysis.token_norms(dataclasses.replace(pretrained, params=params), images)


# ------------------------------------------------------------------------------------ registers


def test_the_hook_moves_the_strongest_activation_to_the_register():
    """Against NumPy: the second dense layer applied to hidden units that are moved by hand."""
    pretrained = small(image_size=32, registers=2, mlp="swiglu", depth=2)
    model, images = measured(pretrained), np.random.default_rng(0).normal(size=(3, 32, 32, 3))
    images = images.astype(np.float32)
    masks = np.zeros((2, pretrained.config.mlp_dim), bool)
    units = [*range(20)]
    masks[1, units] = True
    variables = with_register_neurons(model, masks)
    with jax.default_matmul_precision("highest"):
        (_, plain), (_, moved) = (
            jax.jit(model.model.apply, static_argnames="capture")(
                v, images, capture=("hidden", "mlp_branch")
            )
            for v in (model.variables, variables)
        )
    hidden = np.array(plain["hidden"], np.float64)
    np.testing.assert_array_equal(moved["hidden"][0], plain["hidden"][0])
    for image in range(3):
        for unit in units:
            column = hidden[1, image, :, unit]
            strongest = max(column, key=abs)
            column[:] = 0
            column[2] = strongest  # Class token, register 1, register 2.
    np.testing.assert_allclose(moved["hidden"], hidden, rtol=1e-6, atol=1e-6)
    assert (hidden[1, :, 2, units] < 0).any()  # Gated units may be negative.
    fc2 = jax.tree.map(lambda x: np.asarray(x[1], np.float64),
                       pretrained.params["encoder"]["blocks"]["mlp"]["fc2"])  # fmt: skip
    want = hidden[1] @ fc2["kernel"] + fc2["bias"]
    np.testing.assert_allclose(moved["mlp_branch"][1], want, rtol=1e-5, atol=1e-5)


def with_outliers(**fields):
    """A ViT whose unit 5 of layer 2 makes an outlier at a bright patch, and of no other token."""
    pretrained = small(image_size=(32, 48), depth=3, num_classes=4, **fields)
    params = jax.tree.map(np.array, pretrained.params)
    blocks = params["encoder"]["blocks"]
    # The stream is the position, and in channel 0 the mean of the patch's pixels; the blocks add
    # little to it, but for the one unit, which is on where the normalised channel 0 is above 2.
    embedding = params["embedding"]
    embedding["kernel"][:], embedding["bias"][:] = 0, 0
    embedding["kernel"][..., 0] = 1 / (16 * 16 * 3)
    for name in ("pos_embedding", "cls", "registers"):
        if name in params:
            params[name][..., 0] = 0
    blocks["attn"]["out"] = jax.tree.map(lambda x: x * 0.01, blocks["attn"]["out"])
    fc1, fc2 = blocks["mlp"]["fc1"], jax.tree.map(lambda x: x * 0.01, blocks["mlp"]["fc2"])
    blocks["mlp"]["fc2"] = fc2
    fc1["kernel"][1, :, 5], fc1["kernel"][1, 0, 5], fc1["bias"][1, 5] = 0, 20, -40
    fc2["kernel"][1, 5] = 1
    blocks["norm2"]["scale"][1], blocks["norm2"]["bias"][1] = 1, 0
    return dataclasses.replace(pretrained, params=params)


@pytest.mark.parametrize(
    "fields", [{"registers": 1, "posemb_prefix": "all"}, {}, {"pool": "gap"}], ids=str
)
@pytest.mark.slow
def test_an_outlier_moves_to_the_register(fields, tmp_path):
    pretrained = with_outliers(**fields)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 32, 48, 3)).astype(np.float32) * 0.1
    images[:4, 16:, 16:32] += 2.0  # The patch in row 1, column 1 of four images.
    result = analysis.test_time_registers(pretrained, images, num_neurons=1, batch_size=4)
    np.testing.assert_array_equal(result.neurons, [[1, 5]])
    assert result.outlier_layer == 1
    outliers = np.zeros((2, 3))
    outliers[1, 1] = 4 / 6
    for layer in (1, 2):
        np.testing.assert_array_equal(result.before.outlier_map[layer], outliers)
    assert not result.after.outlier_share.any()
    assert result.after.maximum[1] < result.before.maximum[1] / 4
    # The register has taken the outlier's place.
    register = result.after.prefix_mean[:, -1]
    assert register[1] > result.before.threshold[1] > register[0]
    config = pretrained.config
    assert result.after.prefix_names[-1] == f"register {config.registers + 1}"
    # The changed model can be called, and is the model again if nothing is moved and seen.
    logits, rest = result(images, capture=("blocks", "embed"))
    old_logits, captured = pretrained(images, capture="embed")
    assert rest["blocks"].shape[2] == config.num_tokens + 1
    new, old = (np.asarray(values["pre_logits"]) for values in (rest, captured))
    want = (new * old).sum(axis=1) / np.linalg.norm(new, axis=1) / np.linalg.norm(old, axis=1)
    np.testing.assert_allclose(result.cosine[0], want.mean(), rtol=1e-5)
    logits, old_logits = np.asarray(logits), np.asarray(old_logits)
    same = logits.argmax(axis=1) == old_logits.argmax(axis=1)
    assert result.agreement[0] == same.mean()
    # The added token begins as zeros, and the others keep their positions.
    embed, prefix = np.asarray(rest["embed"]), config.num_prefix
    assert not embed[:, prefix].any()
    np.testing.assert_allclose(
        np.delete(embed, prefix, axis=1), captured["embed"], rtol=1e-5, atol=1e-5
    )
    assert isinstance(result.model.model, Vit)
    result.save(tmp_path)


def test_a_model_without_outliers_needs_no_register():
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    pretrained = small(image_size=32)
    with pytest.raises(NotApplicableError, match=r"no patch token of 3 images .* threshold= sets"):
        analysis.test_time_registers(pretrained, images)
    with pytest.raises(ConfigError, match="num_neurons is 0: the 1 layers that are searched"):
        analysis.test_time_registers(pretrained, images, threshold=0.1, num_neurons=0)
    with pytest.raises(NotApplicableError, match="it has no attention"):
        analysis.test_time_registers(family("vt_npz/mixer"), inputs("vt_npz/mixer"))


# --------------------------------------------------------------------------------- branch norms


def slow_ratios(block, config):
    """Norm of skip / norm of branch of each token of a block: {branch: [image, token]}."""
    stream, ratios = block["input"], {}
    for branch in ("attention", "mlp"):
        added = block[f"{branch}_branch"]
        ratios[branch] = np.array(
            [
                [sum(x * x for x in z) ** 0.5 / sum(y * y for y in f) ** 0.5
                 for z, f in zip(*image, strict=True)]
                for image in zip(stream, added, strict=True)
            ]
        )  # fmt: skip
        if not config.parallel:
            stream = stream + added
    return ratios


@pytest.mark.parametrize("name", [*FAMILIES, "parallel"])
def test_branch_norms_equal_the_slow_formula(name):
    if name == "parallel":
        pretrained = small(image_size=(32, 48), parallel=True, layer_scale=0.1, depth=2)
        images = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)
    else:
        pretrained, images = family(name), inputs(name)
    config = pretrained.config
    names = ("blocks", "attention_branch", "mlp_branch")
    with jax.default_matmul_precision("highest"):
        result = analysis.branch_norms(pretrained, images, batch_size=1)
        captured = pretrained(images, capture=("embed", *names))[1]
    captured = {key: np.asarray(value, np.float64) for key, value in captured.items()}
    for layer in range(1 if config.pre_norm else 0, config.depth):
        block = {key: captured[key][layer] for key in names}
        block["input"] = captured["blocks"][layer - 1] if layer else captured["embed"]
        # The branches are what a block adds.
        added = block["attention_branch"] + block["mlp_branch"]
        np.testing.assert_allclose(block["input"] + added, block["blocks"], rtol=1e-4, atol=1e-4)
        for branch, ratios in slow_ratios(block, config).items():
            patches = ratios[:, config.num_prefix :].mean()
            np.testing.assert_allclose(result.mean[f"{branch}_patches"][layer], patches, rtol=3e-6)
            if config.has_class_token:
                want = ratios[:, 0].mean()
                np.testing.assert_allclose(result.mean[f"{branch}_class"][layer], want, rtol=3e-6)
    assert ("mlp_class" in result.mean) == config.has_class_token


def test_a_smaller_branch_has_a_larger_ratio(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)
    pretrained = small(image_size=32)
    result = analysis.branch_norms(pretrained, images)
    mlp = pretrained.params["encoder"]["blocks"]["mlp"]
    for factor in (0.5, 0.0):
        fc2 = jax.tree.map(lambda x, f=factor: x * f, mlp["fc2"])
        encoder = pretrained.params["encoder"]
        blocks = encoder["blocks"] | {"mlp": mlp | {"fc2": fc2}}
        params = pretrained.params | {"encoder": encoder | {"blocks": blocks}}
        changed = analysis.branch_norms(dataclasses.replace(pretrained, params=params), images)
        np.testing.assert_array_equal(
            changed.mean["attention_patches"], result.mean["attention_patches"]
        )
        if factor:
            ratio = changed.mean["mlp_patches"] / result.mean["mlp_patches"]
            np.testing.assert_allclose(ratio, 2, rtol=1e-5)
        else:
            assert np.isfinite(changed.mean["mlp_patches"]).all()
    result.save(tmp_path)
    with pytest.raises(NotApplicableError, match="it has no attention"):
        analysis.branch_norms(family("vt_npz/mixer"), inputs("vt_npz/mixer"))
