"""Evaluations: exact measurements of a trained model.

classification  top-1, top-5, loss, calibration, per-class accuracy, confusion matrix
evaluator       a model, its config and its mesh: batches, metrics, probabilities
build           builds the evaluations of a config
"""

from vit_jax.evals.classification import (
    Classification,
    ClassificationReport,
    calibration,
    probabilities,
)

__all__ = ["Classification", "ClassificationReport", "calibration", "probabilities"]
