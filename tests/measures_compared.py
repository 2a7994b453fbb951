"""Every measure beside its slow formula in float64, on a reference checkpoint.

The slow formulas are those of the tests of each measure. They are applied to two kinds of arrays:
to those that our forward pass has captured in float32, so that a difference is the measure's; and,
if a checkpoint has them, to those of the reference implementation, so that a difference is also
that of the forward passes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from tests.measured_models import expected, family, fixture, inputs
from tests.measures_attention_distance_test import slow_formula
from tests.measures_faithfulness_test import slow_curves
from tests.measures_features_test import (
    features_of,
    slow_components,
    slow_cosines,
    slow_neighbours,
)
from tests.measures_maps_test import (
    gradient_program,
    maps_of,
    on_grid,
    row_of,
    slow_cam,
    slow_relevance,
    slow_rollout,
)
from tests.measures_norms_test import slow_norms, slow_ratios
from tests.measures_similarity_test import slow_cka
from tests.measures_static_test import reference_filters, slow_similarity
from tests.walkthrough_reference import reference
from vit_jax import analysis
from vit_jax.analysis.measures import deletion
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.images import open_images
from vit_jax.analysis.measures.layer_probes import _features as probe_features
from vit_jax.config.model import ResnetConfig, VitConfig

OURS, THEIRS = "our arrays", "the reference's arrays"
# Checkpoints whose deletion curves are computed pixel by pixel.
DELETION = ("vt_npz/gap_norep", "hf_deit/distilled", "timm_vit/map_siglip", "timm_eva/rope_axial")


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint, its images, and the intermediates of both forward passes.

    Attributes:
      name: of the checkpoint.
    """

    name: str

    @functools.cached_property
    def pretrained(self):
        """The loaded model."""
        return family(self.name)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """Two prepared images."""
        return inputs(self.name)

    @property
    def config(self):
        """Architecture."""
        return self.pretrained.config

    @property
    def is_vit(self) -> bool:
        """Whether it has attention."""
        return isinstance(self.config, VitConfig)

    @property
    def prefix(self) -> int:
        """Number of prefix tokens."""
        return getattr(self.config, "num_prefix", 0)

    def capture(self, *names: str, images: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns intermediates of our forward pass."""
        images = self.images if images is None else images
        return jax.device_get(self.pretrained(images, capture=names)[1])

    @functools.cached_property
    def captured(self) -> dict[str, np.ndarray]:
        """The intermediates that several measures need."""
        if isinstance(self.config, ResnetConfig):
            return self.capture("feature_map")
        names = ("embed", "blocks")
        if self.is_vit:
            names += ("attention", "attention_branch", "mlp_branch")
            names += ("pool_attention",) if self.config.pool.startswith("map") else ()
        return self.capture(*names)

    @functools.cached_property
    def theirs(self) -> dict[str, np.ndarray]:
        """All arrays of the reference."""
        entry = fixture(self.name)
        with np.load(entry["folder"] / entry["expected"]) as arrays:
            return {key: arrays[key] for key in arrays if "/" not in key}

    def sources(self, ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        """Yields both versions of an intermediate of all layers, float64 [layer, image, ...]."""
        yield OURS, np.asarray(self.captured[ours], np.float64)
        if arrays := expected(self.name, theirs):
            yield THEIRS, np.asarray(arrays, np.float64)


# Source (the arrays of which forward pass), quantity, ours, by the slow formula.
Compared = Iterator[tuple[str, str, np.ndarray, np.ndarray]]
ROWS: dict[str, tuple[str, Callable[[Case], Compared]]] = {}


def row(measure: str, formula: str):
    """Registers a function that compares a measure with its slow formula; formula: its source."""

    def register(function: Callable[[Case], Compared]) -> Callable[[Case], Compared]:
        ROWS[measure] = (formula, function)
        return function

    return register


@row("embedding_filters", "eigenvectors of the covariance; Dosovitskiy et al. 2020")
def _filters(case: Case) -> Compared:
    result = analysis.embedding_filters(case.pretrained, num_components=5)
    filters = reference_filters(case.pretrained)
    yield OURS, "filters", result.filters.reshape(filters.shape), filters
    centred = filters - filters.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)[: len(result.explained)] ** 2
    yield OURS, "explained", result.explained, values / (centred**2).sum()


@row("position_similarity", "cosine of each pair; Dosovitskiy et al. 2020")
def _positions(case: Case) -> Compared:
    if not case.is_vit:
        return
    for part, structure in analysis.position_similarity(case.pretrained).parts.items():
        want = slow_similarity(case.pretrained, part)
        yield OURS, part, structure.similarity.reshape(want.shape), want


@row("attention_distance", "sums over queries and keys; Dosovitskiy et al. 2020")
def _distance(case: Case) -> Compared:
    if not case.is_vit:
        return
    result = analysis.attention_distance(case.pretrained, case.images)
    for source, layers in case.sources("attention", "attn"):
        slow = [[slow_formula(image, case.config) for image in layer] for layer in layers]
        for quantity, ours in result.mean.items():
            want = np.array([np.mean([i[quantity] for i in layer], axis=0) for layer in slow])
            yield source, quantity, ours, want


@row("attention_maps", "rows of the attention; Caron et al. 2021")
def _maps(case: Case) -> Compared:
    if not case.is_vit:
        return
    result = analysis.attention_maps(case.pretrained, case.images)
    for source, layers in case.sources("attention", "attn"):
        rows = np.array([[row_of(head, case.config) for head in layer[0]] for layer in layers])
        shape = (*rows.shape[:2], *case.config.grid)
        yield source, "attention", result.attention, rows[..., case.prefix :].reshape(shape)


def _probe(case: Case, source: str) -> np.ndarray:
    """Returns the weights of attention pooling, float64 [image, heads, n]."""
    weights = case.captured["pool_attention"]
    if source == THEIRS and "attnpool" in case.theirs:
        weights = case.theirs["attnpool"].reshape(weights.shape)
    return np.asarray(weights[:, :, 0], np.float64)


@row("explanations: attention, rollout", "product over layers; Abnar and Zuidema 2020")
def _rollout(case: Case) -> Compared:
    if not case.is_vit:
        return
    maps = maps_of(case.pretrained, case.images, ("attention", "rollout"))
    for source, layers in case.sources("attention", "attn"):
        for image in range(len(case.images)):
            product = slow_rollout(layers[:, image], case.config)
            rows = row_of(layers[-1, image].mean(axis=0), case.config), row_of(product, case.config)
            if case.config.pool.startswith("map"):
                probe = _probe(case, source)[image].mean(axis=0)
                rows = probe, probe @ product
            for method, want in zip(("attention", "rollout"), rows, strict=True):
                yield source, method, maps[method][image], on_grid(want, case.config)


def _gradients(case: Case):
    """Returns the gradients at all blocks, and the intermediates, of the targets (3, 1)."""
    program, zeros = gradient_program(case.name)
    return jax.device_get(program(zeros, (3, 1)))


@row("explanations: relevance", "I + mean of max(0, gradient x attention); Chefer et al. 2021")
def _relevance(case: Case) -> Compared:
    if not case.is_vit or not case.config.num_classes:
        return
    maps = maps_of(case.pretrained, case.images, ("relevance",), (3, 1))["relevance"]
    gradients, values = _gradients(case)
    at_attention = gradients["encoder"]["blocks"]["attn"]["attention"]
    for image in range(len(case.images)):
        attention, gradient = values["attention"][:, image], at_attention[:, image]
        relevance = slow_relevance(attention, gradient, case.config)
        want = row_of(relevance, case.config)
        if case.config.pool == "map":
            probe = gradients["map_head"]["attn"]["attention"][image, :, 0].astype(np.float64)
            probe = np.maximum(probe * values["pool_attention"][image, :, 0], 0)
            want = probe.mean(axis=0) @ relevance
        yield OURS, "relevance", maps[image], on_grid(want, case.config)


@row("explanations: grad_cam", "channels by mean gradients; Selvaraju et al. 2017")
def _grad_cam(case: Case) -> Compared:
    if not case.config.num_classes:
        return
    maps = maps_of(case.pretrained, case.images, ("grad_cam",), (3, 1))["grad_cam"]
    if isinstance(case.config, ResnetConfig):  # Its head is linear in the mean of the feature map.
        kernel = np.asarray(case.pretrained.params["head"]["kernel"], np.float64)
        features = {OURS: case.captured["feature_map"], THEIRS: case.theirs["feature_map"]}
        for source, array in features.items():
            for image, target in enumerate((3, 1)):
                cam = array[image].astype(np.float64) @ kernel[:, target]
                yield source, "grad_cam", maps[image], np.maximum(cam, 0) / cam.size
        return
    gradients, values = _gradients(case)
    at_blocks = gradients["encoder"]["blocks"]["blocks"]
    for image in range(len(case.images)):
        arrays = (x[-2, image, case.prefix :] for x in (values["blocks"], at_blocks))
        want = np.maximum(slow_cam(*arrays), 0).reshape(case.config.grid)
        if want.any():
            yield OURS, "grad_cam", maps[image], want


@row("faithfulness", "patch by patch, pixel by pixel; Petsiuk et al. 2018")
def _deletion(case: Case) -> Compared:
    if case.name not in DELETION:
        return
    image, methods = case.images[:1], ("rollout",)
    result = analysis.faithfulness(case.pretrained, image, methods=methods)
    explained = analysis.explanations(case.pretrained, image, methods=methods)
    ranks = deletion.removal_ranks(explained.maps.reshape(1, -1), 0)[0]
    curves = slow_curves(
        case.pretrained, image[0], np.argsort(ranks), explained.target, case.config.stride[0]
    )
    steps = deletion.removed_counts(len(ranks))
    for name, want in zip(deletion.CURVES, curves, strict=True):
        yield OURS, name, result.mean[name][0], want[steps]


@row("token_norms", "square root of sums of squares; Darcet et al. 2023")
def _norms(case: Case) -> Compared:
    if isinstance(case.config, ResnetConfig):
        return
    result = analysis.token_norms(case.pretrained, case.images)
    for source, layers in case.sources("blocks", "block"):
        norms = np.array([slow_norms(images) for images in layers])
        patches = norms[..., case.prefix :].reshape(len(norms), -1)
        yield source, "mean", result.mean, patches.mean(axis=1)
        yield source, "std", result.std, patches.std(axis=1)
        yield source, "minimum", result.minimum, patches.min(axis=1)
        yield source, "maximum", result.maximum, patches.max(axis=1)
        if case.prefix:
            want = norms[..., : case.prefix].mean(axis=1)
            yield source, "prefix tokens", result.prefix_mean, want


@row("test_time_registers", "the strongest activation, token by token; Jiang et al. 2025")
def _registers(case: Case) -> Compared:
    if not case.is_vit:
        return
    # Every patch is an outlier: its norm is above the threshold.
    result = analysis.test_time_registers(
        case.pretrained, case.images, num_neurons=8, threshold=1e-6
    )
    model, prefix = result.model, case.prefix
    params_alone = {"params": model.variables["params"]}
    plain, moved = (
        np.array(model.model.apply(variables, case.images, capture=("hidden",))[1]["hidden"])
        for variables in (params_alone, model.variables)
    )
    hidden = case.capture("hidden")["hidden"]
    scores = [
        np.mean([abs(float(x)) for x in hidden[layer, :, prefix:, unit].ravel()])
        for layer, unit in result.neurons
    ]
    yield OURS, "score", result.score, np.array(scores)
    first = int(result.neurons[:, 0].min())  # Later layers have other inputs.
    want = plain[first].astype(np.float64)
    for unit in result.neurons[result.neurons[:, 0] == first, 1]:
        for image in want:
            strongest = max(image[:, unit], key=abs)
            image[:, unit] = 0
            image[prefix, unit] = strongest  # The added register follows the prefix tokens.
    yield OURS, "hidden units", moved[first], want


@row("layer_probes", "means of patch tokens, which a probe reads; Alain and Bengio 2016")
def _probes(case: Case) -> Compared:
    if isinstance(case.config, ResnetConfig):
        return
    stream = open_images(case.pretrained, case.images)
    features, final, _ = probe_features(measured(case.pretrained), stream, batch_size=2)
    tokens = np.array([case.captured["embed"], *case.captured["blocks"]], np.float64)
    first = 1 if getattr(case.config, "pre_norm", False) else 0
    yield OURS, "patches", features["patches"][first:], tokens[first:, :, case.prefix :].mean(2)
    if "class" in features:
        yield OURS, "class", features["class"][first:], tokens[first:, :, 0]
    yield OURS, "pre_logits", final, np.asarray(case.pretrained(case.images)[1]["pre_logits"])


@row("branch_norms", "quotients of norms; Raghu et al. 2021")
def _branches(case: Case) -> Compared:
    if not case.is_vit:
        return
    result = analysis.branch_norms(case.pretrained, case.images)
    arrays = {key: np.asarray(value, np.float64) for key, value in case.captured.items()}
    first = 1 if case.config.pre_norm else 0  # The embedding is captured before that norm.
    ours: dict[str, list] = {}
    slow: dict[str, list] = {}
    for layer in range(first, case.config.depth):
        block = {key: arrays[key][layer] for key in ("attention_branch", "mlp_branch")}
        block["input"] = arrays["blocks"][layer - 1] if layer else arrays["embed"]
        for branch, ratios in slow_ratios(block, case.config).items():
            tokens = {"patches": ratios[:, case.prefix :].mean()}
            tokens |= {"class": ratios[:, 0].mean()} if case.config.has_class_token else {}
            for name, want in tokens.items():
                quantity = f"{branch}_{name}"
                slow.setdefault(quantity, []).append(want)
                ours.setdefault(quantity, []).append(result.mean[quantity][layer])
    for name, want in slow.items():
        yield OURS, name, np.array(ours[name]), np.array(want)


@row("layer_similarity", "HSIC_1 entry by entry; Song et al. 2012, Nguyen et al. 2020")
def _cka(case: Case) -> Compared:
    if isinstance(case.config, ResnetConfig):  # Its units are compared in a test.
        return
    x = case.images  # Two, and the estimate needs four: so also mirrored and negated.
    images = np.concatenate([x, x[:, ::-1], x[:, :, ::-1], -x])
    result = analysis.layer_similarity(case.pretrained, images, batch_size=4)
    captured = case.capture("embed", "blocks", images=images)
    layers = np.array([captured["embed"], *captured["blocks"]], np.float64)
    theirs = layers.copy()
    for layer, blocks in enumerate(expected(case.name, "block")):
        theirs[layer + 1, :2] = blocks
    first = 1 if getattr(case.config, "pre_norm", False) else 0
    for source, tokens in ((OURS, layers), (THEIRS, theirs)):
        flat = [layer[:, case.prefix :].reshape(len(images), -1) for layer in tokens[first:]]
        want = np.array([[slow_cka(a, b, 4) for b in flat] for a in flat])
        yield source, "cka", result.cka[first:, first:], want


def _features(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the features of patches, float64 [image, row, column, width]."""
    ours = features_of(case.pretrained, case.images)
    yield OURS, ours
    for key in ("tokens", "feature_map"):
        if key in case.theirs:
            tokens = case.theirs[key].reshape(len(ours), -1, ours.shape[-1])[:, case.prefix :]
            yield THEIRS, tokens.astype(np.float64).reshape(ours.shape)


@row("feature_pca", "singular values; Oquab et al. 2023")
def _pca(case: Case) -> Compared:
    result = analysis.feature_pca(case.pretrained, case.images, foreground=False)
    for source, features in _features(case):
        center, vectors, explained = slow_components(features.reshape(-1, features.shape[-1]))
        yield source, "explained", result.explained, explained
        yield source, "scores", result.scores, (features - center) @ vectors.T


@row("patch_similarity", "cosine of each pair; Simeoni et al. 2025")
def _cosines(case: Case) -> Compared:
    result = analysis.patch_similarity(case.pretrained, case.images, patch=(0, 0))
    for source, features in _features(case):
        yield source, "cosine", result.similarity[0], slow_cosines(features, (0, 0))


@row("nearest_images", "cosine of each pair; Wu et al. 2018")
def _neighbours(case: Case) -> Compared:
    x = case.images
    images = np.concatenate([x, x[:, ::-1], x[:, :, ::-1], -x])
    result = analysis.nearest_images(case.pretrained, images, k=3)
    features = np.asarray(case.capture(images=images)["pre_logits"], np.float64)
    for query, similarity in zip(result.queries, result.similarity, strict=True):
        yield OURS, "cosine", similarity, slow_neighbours(features, query, 3)[1]


@row("walkthrough", "the whole forward pass in float64")
def _walkthrough(case: Case) -> Compared:
    if not case.is_vit:
        return
    trace = analysis.walkthrough(case.pretrained, case.images).trace
    arrays = reference(
        case.config, case.pretrained.params, case.images[0], trace,
        feature_map=trace.arrays.get("feature_map"),
    )  # fmt: skip
    for name in set(arrays) & set(trace.arrays):
        yield THEIRS, name, trace.arrays[name], np.asarray(arrays[name])


@row("forward pass: attention", "noise of the reference itself: {noise:.0e}")
def _attention(case: Case) -> Compared:
    if case.is_vit and (theirs := expected(case.name, "attn")):
        yield THEIRS, "attention", case.captured["attention"], np.asarray(theirs)


@row("forward pass: blocks, features", "noise of the reference itself: {noise:.0e}")
def _blocks(case: Case) -> Compared:
    for layer, theirs in enumerate(expected(case.name, "block")):
        yield THEIRS, f"block {layer}", case.captured["blocks"][layer], theirs
    (_, ours), *theirs = _features(case)
    for source, features in theirs:
        yield source, "features", ours, features
