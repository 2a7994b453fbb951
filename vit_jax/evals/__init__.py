"""Evaluations: exact measurements of a trained model.

classification  top-1, top-5, loss, calibration, per-class accuracy, confusion matrix
intervals       confidence intervals of accuracies
evaluator       a model, its config and its mesh: batches, metrics, logits and features
neighbours      k nearest neighbours on features
fewshot         ridge regression on a few labels of each class
probe           logistic regression on features
"""

from vit_jax.evals.classification import (
    Classification,
    ClassificationReport,
    calibration,
)

__all__ = ["Classification", "ClassificationReport", "calibration"]
