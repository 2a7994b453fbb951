"""Analysis: looking at runs and at what models have learnt.

figures           training curves, a page of predictions, and how images look
confusion_matrix  confusion matrix, reliability diagram, commonest mistakes
"""

from vit_jax.analysis.confusion_matrix import confusion
from vit_jax.analysis.figures import curves, predictions

__all__ = ["confusion", "curves", "predictions"]
