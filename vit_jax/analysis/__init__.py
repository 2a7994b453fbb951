"""Figures and tables of runs, and of a model's predictions.

figures           training curves, predictions, and the style of all figures
pixels            checks images that are to be drawn
runs              reads runs from their work directories
overlay           training curves of several runs over each other
comparison        several runs side by side: cost, evaluations, differing keys of their configs
cell_texts        values of a key of several configs as text
confusion_matrix  confusion matrix, reliability diagram, most common mistakes
class_accuracy    accuracy of each class, with intervals
"""

from vit_jax.analysis.class_accuracy import class_accuracy
from vit_jax.analysis.confusion_matrix import confusion
from vit_jax.analysis.figures import curves, predictions

__all__ = ["class_accuracy", "confusion", "curves", "predictions"]


def __dir__() -> list[str]:
    return list(__all__)
