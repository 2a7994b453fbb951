"""Accuracy of a linear probe on each layer: where in the depth the classes can be read off."""

import dataclasses
import functools
import numbers
from typing import ClassVar

import jax
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.analysis import figures
from vit_jax.analysis.measures.encoder import Captured, Measured, measure_blocks, measured
from vit_jax.analysis.measures.images import BATCH_SIZE, Images, ImageStream, open_images
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.analysis.measures.token_norms import num_prefix
from vit_jax.config.model import VitConfig
from vit_jax.errors import ConfigError
from vit_jax.evals.intervals import wilson
from vit_jax.evals.probe import fit_probe
from vit_jax.pretrained.model import Pretrained

NUM_IMAGES = 2000
_FEW_TESTED = 20  # Test images of a class.


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LayerProbes(Result):
    """The result of `layer_probes`.

    Attributes:
      accuracy: {"patches": [layer]}, and "class" of a model with a class token: on the test images,
        of probes on the mean of the patch tokens and on the class token. Layer 0 is the embedding,
        layer i the output of block i.
      interval: {the same names: [2, layer]}, ends of the 95% interval.
      final_accuracy: of a probe on `pre_logits`, the input of the model's head, and the ends of its
        interval.
      num_train: number of training images.
      num_test: number of test images.
      chance: share of the most frequent class among the test images.
    """

    accuracy: dict[str, Float[np.ndarray, " layer"]]
    interval: dict[str, Float[np.ndarray, "2 layer"]]
    final_accuracy: Float[np.ndarray, "3"]
    num_train: int
    num_test: int
    chance: float

    name: ClassVar[str] = "layer_probes"
    title: ClassVar[str] = "Linear probes of the layers"
    shows: ClassVar[str] = (
        "In which layer the classes can be read off: accuracy of a linear probe on each layer."
    )
    definition: ClassVar[str] = (
        "Accuracy of multinomial logistic regression on features that are standardised; its "
        "penalty is chosen on a fifth of the training images. The images given are divided at "
        "random, the same way each time, into training and test images with equal shares of each "
        "class. Features: the mean of the patch tokens, and the class token, of the first block's "
        "input (layer 0; the class token there is constant) and of each block's output (layer i of "
        "block i) before the final norm; and pre_logits. Other prefix tokens are left out. "
        "Intervals: Wilson score, 95%, over test images: they do not contain the choice of the "
        "training images. probe_max_over_layers is the largest accuracy of the probes on patches: "
        "the layer is chosen on the test images, so it is biased upwards."
    )
    source: ClassVar[str] = "Alain and Bengio 2016, arXiv 1610.01644; probe: vit_jax.evals.probe"
    summary_units: ClassVar[dict[str, str]] = {
        "probe_max_over_layers": "accuracy",
        "probe_final": "accuracy",
    }

    def arrays(self) -> dict[str, NamedArray]:
        """Returns the accuracies with the ends of their intervals: [layer]."""
        arrays = {}
        for name, values in self.accuracy.items():
            tokens = "the class token" if name == "class" else "the mean of the patch tokens"
            meaning = f"accuracy of a probe on {tokens}; layer 0: the embedding"
            arrays[f"accuracy_{name}"] = NamedArray(values, ("layer",), "", meaning)
            for end, bounds in zip(("low", "high"), self.interval[name], strict=True):
                text = f"{end} end of the 95% interval: {meaning}"
                arrays[f"accuracy_{name}_{end}"] = NamedArray(bounds, ("layer",), "", text)
        arrays["accuracy_final"] = NamedArray(
            self.final_accuracy, ("mean_low_high",), "", "of a probe on pre_logits, its interval"
        )
        return arrays

    def coordinates(self) -> dict[str, tuple[str | int, ...]]:
        """Returns the numbers of the layers, 0 for the embedding."""
        return super().coordinates() | {
            "layer": tuple(range(len(self.accuracy["patches"]))),
            "mean_low_high": ("mean", "low", "high"),
        }

    def summary(self) -> dict[str, float]:
        """Returns the largest accuracy on patches of a layer, and that on the final features."""
        return {
            "probe_max_over_layers": float(self.accuracy["patches"].max()),
            "probe_final": float(self.final_accuracy[0]),
        }

    def plot(self) -> Figure:
        """Draws the accuracy over the layers, with that of the final features and of chance."""
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.InlineFigure(figsize=(5.6, 3.6), layout="constrained")
            axes = figure.subplots()
            labels = {"patches": "mean of the patches", "class": "class token"}
            for (name, values), colour in zip(
                self.accuracy.items(), (figures.BLUE, figures.VERMILLION), strict=False
            ):
                layers, (low, high) = np.arange(len(values)), self.interval[name]
                axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(layers, values, ".-", color=colour, label=labels[name])
            depth = len(self.accuracy["patches"])
            value, low, high = self.final_accuracy
            axes.errorbar(
                [depth], [value], [[value - low], [high - value]], fmt="s", markersize=4,
                color=figures.COLOURS[2], label="probe on pre_logits",
            )  # fmt: skip
            axes.axhline(self.chance, color=figures.GREY, linestyle="--", label="largest class")
            axes.set(xlabel="layer (0: embedding)", ylabel="accuracy", ylim=(0, 1.02))
            every = -(-depth // 14)  # As many labels as there is room for.
            shown = [*range(0, depth - every // 2, every), depth]
            axes.set_xticks(shown, [*map(str, shown[:-1]), "final\nfeatures"])
            axes.set_xlim(-0.5, depth + 0.5)
            axes.set_title(f"{self.num_train:,} training and {self.num_test:,} test images")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            figure.legend(loc="outside lower left", fontsize=8, ncols=2)
        return figure


def layer_probes(
    pretrained: Pretrained,
    data: Images,
    *,
    train_fraction: float = 0.5,
    num_images: int = NUM_IMAGES,
    batch_size: int = BATCH_SIZE,
) -> LayerProbes:
    """Fits a linear probe to the features of each layer, and tests it on other images.

    Unlike in other measures memory grows with the number of images: their features are kept in
    float32, [2 depth + 3, images, width] with a class token: 0.4 GB for 2,000 images and a ViT-L.
    There are as many probes; one of 1,000 training images, 768 features and 10 classes took 6
    seconds on 2 cores of an Intel Xeon, so those of a ViT-B (27) would take three minutes there.

    Args:
      pretrained: a ViT, hybrid or Mixer.
      data: labelled images: a data set, such as "digits:test", or a folder with a folder for each
        class; see `vit_jax.analysis.measures.images.open_images`.
      train_fraction: share of the images to fit to; the others are the test images.
      num_images: a random choice of this many, or all if there are fewer.
      batch_size: images at a time.

    Raises:
      ConfigError: the images have no labels, or the fraction is not between 0 and 1.
      NotApplicableError: the model has no tokens (a ResNet), or there are too few images of two
        classes.

    Example:
      >>> model = create("mu/16", image_size=32)
      >>> result = analysis.layer_probes(model, "digits:test", num_images=60)
      >>> result.accuracy["patches"].shape, result.num_train + result.num_test
      ((2,), 60)
    """
    model = measured(pretrained)
    model.blocks  # noqa: B018  # Raises NotApplicableError of a ResNet.
    if not isinstance(train_fraction, numbers.Real) or not 0 < train_fraction < 1:
        raise ConfigError(f"train_fraction is {train_fraction}: give a number between 0 and 1.")
    stream = open_images(pretrained, data, num_images=num_images)
    if not stream.has_labels:
        raise ConfigError(
            "Probes need labels, and these images have none, or several each: give a data set, "
            'such as "digits:test", or a folder with a folder of images for each class.'
        )
    features, final, labels = _features(model, stream, batch_size)
    is_train = split(labels, train_fraction)
    _check_split(labels, is_train)
    classes, labels = np.unique(labels, return_inverse=True)

    def tested(x: Float[np.ndarray, "n d"]) -> tuple[float, float, float]:
        probe = fit_probe(x[is_train], labels[is_train], num_classes=len(classes))
        hits = int((probe.logits(x[~is_train]).argmax(axis=1) == labels[~is_train]).sum())
        count = int((~is_train).sum())
        return hits / count, *wilson(hits, count)

    results = {
        name: np.array([tested(x) for x in features[name]]).T
        for name in ("patches", "class")
        if name in features
    }
    return LayerProbes(
        checkpoint=model.name,
        num_images=len(labels),
        notes=_notes(labels[~is_train]),
        accuracy={name: values[0] for name, values in results.items()},
        interval={name: values[1:] for name, values in results.items()},
        final_accuracy=np.array(tested(final)),
        num_train=int(is_train.sum()),
        num_test=int((~is_train).sum()),
        chance=float(np.bincount(labels[~is_train]).max() / (~is_train).sum()),
    )


def split(labels: Int[np.ndarray, " n"], train_fraction: float) -> np.ndarray:
    """Returns which images are for training: the same share of each class, rounded, at random."""
    rng = np.random.default_rng(0)
    is_train = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        is_train[positions[: round(len(positions) * train_fraction)]] = True
    return is_train


def _check_split(labels: Int[np.ndarray, " n"], is_train: np.ndarray) -> None:
    """Raises NotApplicableError unless a probe can be fitted and tested."""
    _, counts = np.unique(labels[is_train], return_counts=True)
    if len(counts) > 1 and counts.max() > 1 and not is_train.all():
        return
    raise NotApplicableError(
        f"{len(labels):,} images of {len(np.unique(labels)):,} classes are too few: the training "
        "images must be of two classes, two of one of them, and some must be left for the test. "
        "Give more images (num_images), or another train_fraction."
    )


def _notes(tested: Int[np.ndarray, " n"]) -> tuple[str, ...]:
    """Returns a note if a class has too few test images, given the classes that are tested."""
    fewest = int(np.unique(tested, return_counts=True)[1].min())
    if fewest >= _FEW_TESTED:
        return ()
    return (
        f"A class has only {fewest} of the {len(tested):,} test images (below {_FEW_TESTED}): the "
        "accuracies are rough. Give more images (num_images).",
    )


def _features(
    model: Measured, stream: ImageStream, batch_size: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Returns features {tokens: [layer, n, width]}, the final ones [n, d], and labels [n]."""
    config = model.config
    has_class_token = isinstance(config, VitConfig) and config.has_class_token
    measure = _measure_of(num_prefix(config), has_class_token)
    parts: dict[str, list[np.ndarray]] = {}
    finals, labels = [], []
    for batch in stream.batches(batch_size):
        values = measure_blocks(model.model, model.variables, batch.images, measure, ("blocks",))
        for name, (inputs, outputs) in jax.device_get(values).items():
            layers = np.concatenate([inputs[:1], outputs])
            parts.setdefault(name, []).append(layers[:, batch.good])
        finals.append(np.asarray(_final(model.model, model.variables, batch.images))[batch.good])
        labels.append(batch.labels[batch.good])
    features = {name: np.concatenate(arrays, axis=1) for name, arrays in parts.items()}
    return features, np.concatenate(finals), np.concatenate(labels)


@functools.cache  # The program is compiled for the function that this returns.
def _measure_of(prefix: int, has_class_token: bool):
    def features(tokens: Float[Array, "b n width"]) -> dict[str, Float[Array, "b width"]]:
        means = {"patches": tokens[:, prefix:].mean(axis=1)}
        return means | ({"class": tokens[:, 0]} if has_class_token else {})

    def measure(captured: Captured) -> dict[str, tuple[Array, Array]]:
        inputs, outputs = features(captured["input"]), features(captured["blocks"])
        return {name: (inputs[name], outputs[name]) for name in outputs}

    return measure


@functools.partial(jax.jit, static_argnames="model")
def _final(model, variables, images: Array) -> Float[Array, "b d"]:
    return model.apply(variables, images)[1]["pre_logits"]
