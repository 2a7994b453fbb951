"""Evaluations: what a trained model can do, measured exactly.

classification  top-1, top-5, loss, calibration, per-class accuracy, confusion matrix
"""

from vit_jax.evals.classification import (
    Classification,
    ClassificationReport,
    calibration,
    probabilities,
)

__all__ = ["Classification", "ClassificationReport", "calibration", "probabilities"]
