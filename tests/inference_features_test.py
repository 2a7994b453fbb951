"""kNN, few-shot regression and the linear probe against scikit-learn, on the same features."""

import numpy as np
import pytest
import scipy.stats
import sklearn.linear_model
import sklearn.neighbors
import sklearn.preprocessing

from vit_jax.errors import DataError
from vit_jax.evals.fewshot import PENALTY, choose_shots, ridge_scores
from vit_jax.evals.intervals import wilson
from vit_jax.evals.neighbours import neighbour_votes
from vit_jax.evals.probe import fit_probe

CLASSES = 4


@pytest.fixture(scope="module")
def data():
    """Features of overlapping classes of different sizes, with columns of different scales."""
    rng = np.random.default_rng(0)
    labels = rng.choice(CLASSES, 260, p=(0.1, 0.2, 0.3, 0.4)).astype(np.int32)
    centres = rng.normal(size=(CLASSES, 12))
    features = centres[labels] + 1.5 * rng.normal(size=(260, 12))
    features = (features * np.geomspace(0.1, 10, 12) + 3).astype(np.float32)
    return features[:200], labels[:200], features[200:], labels[200:]


@pytest.mark.medium
@pytest.mark.parametrize("k", [20, 1000])
def test_knn_is_that_of_scikit_learn(data, k):
    train, labels, test, _ = data
    votes = neighbour_votes(train, labels, test, num_classes=CLASSES, k=k)
    model = sklearn.neighbors.KNeighborsClassifier(
        min(k, len(train)), metric="cosine", algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / 0.07),
    )  # fmt: skip
    unit = [sklearn.preprocessing.normalize(x.astype(np.float64)) for x in (train, test)]
    expected = model.fit(unit[0], labels).predict_proba(unit[1])
    np.testing.assert_allclose(votes, expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(votes.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("count", [200, 9])  # More and fewer examples than features.
def test_few_shot_regression_is_ridge_regression(data, count):
    train, labels, test, _ = data
    train, labels = train[:count], labels[:count]
    scores = ridge_scores(train, labels, test, num_classes=CLASSES)
    mean, std = train.astype(np.float64).mean(axis=0), train.astype(np.float64).std(axis=0) + 1e-5

    def design(x):
        return np.hstack([(x - mean) / std, np.full((len(x), 1), 100.0)])

    ridge = sklearn.linear_model.Ridge(alpha=PENALTY, fit_intercept=False, solver="cholesky")
    ridge.fit(design(train), 2 * np.eye(CLASSES)[labels] - 1)
    np.testing.assert_allclose(scores, ridge.predict(design(test)), rtol=1e-8, atol=1e-10)


def test_shots_are_nested_and_each_class_has_as_many():
    labels = np.repeat(np.arange(3, dtype=np.int32), 7)
    one, five = (choose_shots(labels, n, num_classes=3, seed=1) for n in (1, 5))
    assert set(one) <= set(five)
    np.testing.assert_array_equal(np.bincount(labels[five]), [5, 5, 5])
    assert set(five) != set(choose_shots(labels, 5, num_classes=3, seed=2))
    with pytest.raises(DataError, match="class 0 has 7 training examples, fewer than 8 shots"):
        choose_shots(labels, 8, num_classes=3, seed=1)


@pytest.mark.medium
@pytest.mark.parametrize("present", [(0, 1, 2, 3), (1, 3)])  # Of four classes.
def test_the_probe_is_scikit_learns_regression_with_the_best_penalty(data, present):
    train, labels, test, _ = data
    chosen = np.isin(labels, present)
    probe = fit_probe(train[chosen], labels[chosen], num_classes=CLASSES)
    x = train[chosen].astype(np.float64)
    scale = sklearn.preprocessing.StandardScaler().fit(x)
    model = sklearn.linear_model.LogisticRegression(C=probe.inverse_penalty, max_iter=1000)
    model.fit(scale.transform(x), labels[chosen])
    logits = probe.logits(test)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = np.zeros_like(shares)
    expected[:, model.classes_] = model.predict_proba(scale.transform(test.astype(np.float64)))
    np.testing.assert_allclose(shares, expected, atol=1e-3)
    np.testing.assert_array_equal(shares.argmax(axis=1), expected.argmax(axis=1))
    assert probe.has_converged and 0.5 < probe.held_out_accuracy <= 1


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (7, 10), (763, 1000), (1, 1)])
def test_wilsons_interval_is_scipys(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1


def test_nothing_is_known_without_examples():
    assert wilson(0, 0) == (0, 1)
