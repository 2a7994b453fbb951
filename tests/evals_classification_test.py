"""Classification metrics against scikit-learn and plain NumPy in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.conftest import slow
from vit_jax.errors import ConfigError, DataError
from vit_jax.evals import Classification, calibration
from vit_jax.evals.classification import _summarise
from vit_jax.optim.losses import probabilities

pytestmark = pytest.mark.medium

CLASSES, EXAMPLES = 7, 103


@pytest.fixture
def data():
    """Features and labels of a task that is neither easy nor hopeless, and a linear model."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES - 1, EXAMPLES)  # No example of the last class.
    centres = rng.normal(size=(CLASSES, 4, 4, 3))
    images = (centres[labels] + 2.5 * rng.normal(size=(EXAMPLES, 4, 4, 3))).astype(np.float32)
    kernel = (centres.reshape(CLASSES, -1).T * 0.2).astype(np.float32)
    return images, labels.astype(np.int32), {"kernel": kernel}


def apply_fn(params, images):
    return images.reshape(len(images), -1) @ params["kernel"]


def float64_logits(params, images):
    return images.reshape(len(images), -1).astype(np.float64) @ params["kernel"].astype(np.float64)


def batches(images, labels, *, batch_size, sharding=None):
    """Padded batches; the padding is made as harmful as it can be."""
    for start in range(0, len(images), batch_size):
        part = {"image": images[start:][:batch_size], "label": labels[start:][:batch_size]}
        count = len(part["image"])
        padded = {
            "image": np.full((batch_size, *images.shape[1:]), np.nan, np.float32),
            "label": np.full((batch_size, *labels.shape[1:]), -1, labels.dtype),
            "weight": np.zeros(batch_size, np.float32),
        }
        for name, value in part.items():
            padded[name][:count] = value
        padded["weight"][:count] = 1
        yield jax.device_put(padded, sharding)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def expected_calibration_error(confidence, correct, *, bins=15):
    """Guo et al. 2017, equation 3, as it is printed."""
    error = 0.0
    for m in range(1, bins + 1):
        inside = ((m - 1) / bins < confidence) & (confidence <= m / bins)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("batch_size", [8, 128, slow(1)])
def test_against_scikit_learn(data, batch_size):
    images, labels, params = data
    metric = Classification(apply_fn, num_classes=CLASSES, loss_name="softmax_xent")
    report = metric.report(params, batches(images, labels, batch_size=batch_size))
    logits = float64_logits(params, images)
    truth = softmax(logits)
    predicted = truth.argmax(axis=-1)
    every = list(range(CLASSES))

    assert report.count == EXAMPLES
    assert report.top1 == sklearn.metrics.accuracy_score(labels, predicted)
    assert report.top5 == sklearn.metrics.top_k_accuracy_score(labels, truth, k=5, labels=every)
    assert report.loss == pytest.approx(
        sklearn.metrics.log_loss(labels, truth, labels=every), rel=1e-6
    )
    assert report.ece == pytest.approx(
        expected_calibration_error(truth.max(axis=-1), predicted == labels), rel=1e-5
    )
    confusion = sklearn.metrics.confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(report.confusion, confusion)
    assert report.confusion.dtype.kind == "i"
    recall = sklearn.metrics.recall_score(
        labels, predicted, labels=every, average=None, zero_division=np.nan
    )
    np.testing.assert_allclose(report.class_accuracy, recall, rtol=1e-15)
    assert np.isnan(report.class_accuracy[-1])
    np.testing.assert_array_equal(report.class_count, np.bincount(labels, minlength=CLASSES))
    scalars = metric.evaluate(params, batches(images, labels, batch_size=batch_size))
    assert scalars == report.scalars()
    assert list(scalars) == ["top1", "top5", "loss", "ece", "count"]


@pytest.mark.parametrize(
    ("devices", "axes"), [(8, (2, 4)), slow(8, (8, 1)), slow(4, (4, 1)), slow(1, (1, 1))]
)
def test_any_mesh_under_a_transfer_guard_gives_the_same(data, devices, axes):
    images, labels, params = data
    metric = Classification(apply_fn, num_classes=CLASSES, loss_name="softmax_xent")
    alone = metric.evaluate(params, batches(images, labels, batch_size=16))
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(axes), ("data", "fsdp"))
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    placed = list(batches(images, labels, batch_size=16, sharding=split))
    with jax.transfer_guard("disallow"), jax.set_mesh(mesh):
        sharded = metric.evaluate(everywhere, placed)
        step = metric.step_for(placed[0])
        outputs = step(everywhere, placed[0])
    for name in ("top1", "top5", "count"):
        assert sharded[name] == alone[name]
    for name in ("loss", "ece"):
        assert sharded[name] == pytest.approx(alone[name], rel=1e-6)
    # Whole on every device: each process can read them, though it holds a part of the batch.
    assert all(value.sharding.is_fully_replicated for value in jax.tree.leaves(outputs))
    assert step._cache_size() == 1  # Compiled once for all batches.


def test_sums_do_not_depend_on_order_to_the_bit():
    rng = np.random.default_rng(1)
    examples = {
        "loss": (10.0 ** rng.uniform(-6, 2, 5000)).astype(np.float32),
        "confidence": rng.uniform(0, 1, 5000).astype(np.float32),
        "top1": rng.random(5000) < 0.5,
        "top5": rng.random(5000) < 0.9,
    }
    shuffled = rng.permutation(5000)
    again = _summarise({name: values[shuffled] for name, values in examples.items()})
    assert again == _summarise(examples)
    assert np.mean(examples["loss"][shuffled]) != np.mean(examples["loss"])  # As a mean would.


def test_multi_hot_labels_and_sigmoid_loss(data):
    images, labels, params = data
    rng = np.random.default_rng(2)
    several = (rng.random((EXAMPLES, CLASSES)) < 0.3).astype(np.float32)
    several[np.arange(EXAMPLES), labels] = 1
    metric = Classification(apply_fn, num_classes=CLASSES, loss_name="sigmoid_xent")
    report = metric.report(params, batches(images, several, batch_size=16))
    logits = float64_logits(params, images)
    order = np.argsort(-logits, axis=-1)
    hits = np.take_along_axis(several, order, axis=-1) > 0
    assert report.top1 == hits[:, 0].mean()
    assert report.top5 == hits[:, :5].any(axis=-1).mean()
    present = 1 / (1 + np.exp(-logits))
    loss = -(several * np.log(present) + (1 - several) * np.log(1 - present)).sum(axis=-1)
    assert report.loss == pytest.approx(loss.mean(), rel=1e-6)
    assert report.ece == pytest.approx(
        expected_calibration_error(present.max(axis=-1), hits[:, 0]), rel=1e-5
    )
    assert report.confusion is None
    np.testing.assert_array_equal(report.class_count, several.sum(axis=0))
    expected = [hits[several[:, c] > 0, 0].mean() for c in range(CLASSES)]
    np.testing.assert_allclose(report.class_accuracy, expected, rtol=1e-15)


def test_one_hot_labels_are_the_same_as_class_numbers(data):
    images, labels, params = data
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    metric = Classification(apply_fn, num_classes=CLASSES, loss_name="softmax_xent")
    single = metric.report(params, batches(images, labels, batch_size=32))
    multi = metric.report(params, batches(images, one_hot, batch_size=32))
    assert single.scalars() == multi.scalars()
    np.testing.assert_array_equal(single.class_accuracy, multi.class_accuracy)


def test_two_classes_and_ties():
    """Of equal logits the lower class wins; top-5 of two classes is all of them."""
    images, labels = np.zeros((4, 1, 2, 1), np.float32), np.array([0, 0, 0, 1], np.int32)
    metric = Classification(lambda _, x: x[:, 0, :, 0], num_classes=2, loss_name="softmax_xent")
    report = metric.report(None, batches(images, labels, batch_size=3))
    assert (report.top1, report.top5) == (0.75, 1.0)
    np.testing.assert_array_equal(report.confusion, [[3, 0], [1, 0]])
    assert report.loss == pytest.approx(np.log(2), rel=1e-7)
    assert report.ece == pytest.approx(0.25)


def test_bins_of_the_calibration_error_end_at_their_upper_edge():
    confidence = np.array([0.25, 0.5, 0.5000001, 1.0], np.float32)
    correct = np.array([False, True, False, True])
    error, bins = calibration(confidence, correct, num_bins=4)
    np.testing.assert_array_equal(bins["bin_count"], [1, 1, 1, 1])
    assert error == pytest.approx((0.25 + 0.5 + 0.5 + 0.0) / 4)
    _, bins = calibration(np.array([0.9]), np.array([True]), num_bins=2)
    assert np.isnan(bins["bin_accuracy"][0])
    assert bins["bin_confidence"][1] == 0.9


def test_report_as_json(data):
    images, labels, params = data
    metric = Classification(apply_fn, num_classes=CLASSES, loss_name="softmax_xent")
    report = metric.report(params, batches(images, labels, batch_size=32))
    names = [f"class {c}" for c in range(CLASSES)]
    fields = json.loads(report.to_json(class_names=names), parse_constant=pytest.fail)
    assert fields["class_names"] == names
    assert fields["top1"] == report.top1
    assert fields["class_accuracy"][-1] is None  # No examples of it.
    np.testing.assert_array_equal(fields["confusion"], report.confusion)


def test_probabilities_are_those_of_the_loss():
    logits = jnp.array([[1.0, 2.0, -1.0]])
    assert float(probabilities(logits, loss_name="softmax_xent").sum()) == pytest.approx(1)
    np.testing.assert_allclose(
        probabilities(logits, loss_name="sigmoid_xent"), 1 / (1 + np.exp(-logits)), rtol=1e-6
    )


def test_errors(data):
    images, labels, params = data
    with pytest.raises(ConfigError, match="softmax_xent"):
        Classification(apply_fn, num_classes=CLASSES, loss_name="softmax")
    metric = Classification(apply_fn, num_classes=CLASSES, loss_name="softmax_xent")
    with pytest.raises(DataError, match="no examples"):
        metric.evaluate(params, [])
    with pytest.raises(DataError, match="0 to 7"):
        wrong = np.where(np.arange(EXAMPLES) == 5, 7, np.minimum(labels, 1)).astype(np.int32)
        wrong[0] = 0
        metric.evaluate(params, batches(images, wrong, batch_size=32))
    with pytest.raises(DataError, match="Weights"):
        (batch,) = batches(images, labels, batch_size=EXAMPLES)
        metric.evaluate(params, [{**batch, "weight": 0.5 * batch["weight"]}])
    with pytest.raises(ConfigError, match=r"set model\.num_classes to 9"):
        wider = Classification(apply_fn, num_classes=9, loss_name="softmax_xent")
        wider.evaluate(params, batches(images, labels, batch_size=32))
