"""Evaluations: what a trained model can do, measured exactly.

classification  top-1, top-5, loss, calibration, per-class accuracy, confusion matrix
evaluator       a model, its config and its mesh: batches, metrics, probabilities
build           from a run's config to its evaluations
"""

from vit_jax.evals.classification import (
    Classification,
    ClassificationReport,
    calibration,
    probabilities,
)

__all__ = ["Classification", "ClassificationReport", "calibration", "probabilities"]
