"""Figures and tables of runs and predictions, and measures of what a model has learned.

measures          what a model has learned: attention, features, ... of any checkpoint
all_measures      all measures of one or several checkpoints, with a report
image_progress    how many images a measure has taken
outcomes          their results, and why there is none
report            their page
pages             frame and style of HTML pages
walkthrough_page  one image through a model, step by step, as an HTML page
figures           training curves, predictions, and the style of all figures
pixels            checks images that are to be drawn
runs              reads runs from their work directories
overlay           training curves of several runs over each other
comparison        several runs side by side: cost, evaluations, differing keys of their configs
cell_texts        values of a key of several configs as text
confusion_matrix  confusion matrix, reliability diagram, most common mistakes
accuracy_by_class accuracy of each class, with intervals
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.analysis.accuracy_by_class import class_accuracy
    from vit_jax.analysis.all_measures import analyze
    from vit_jax.analysis.confusion_matrix import confusion
    from vit_jax.analysis.figures import curves, predictions
    from vit_jax.analysis.measures.attention_distance import attention_distance
    from vit_jax.analysis.measures.attention_maps import attention_maps
    from vit_jax.analysis.measures.branch_norms import branch_norms
    from vit_jax.analysis.measures.embedding_filters import embedding_filters
    from vit_jax.analysis.measures.explanations import explanations
    from vit_jax.analysis.measures.faithfulness import faithfulness
    from vit_jax.analysis.measures.feature_pca import feature_pca
    from vit_jax.analysis.measures.layer_probes import layer_probes
    from vit_jax.analysis.measures.layer_similarity import layer_similarity
    from vit_jax.analysis.measures.nearest_images import nearest_images
    from vit_jax.analysis.measures.patch_similarity import patch_similarity
    from vit_jax.analysis.measures.position_similarity import position_similarity
    from vit_jax.analysis.measures.registers import test_time_registers
    from vit_jax.analysis.measures.token_norms import token_norms
    from vit_jax.analysis.walkthrough_page.walkthrough import walkthrough

# Public name -> its module, imported when the name is first used: the style of the figures is used
# without JAX.
_MODULES = {
    "analyze": "all_measures",
    "attention_distance": "measures.attention_distance",
    "attention_maps": "measures.attention_maps",
    "branch_norms": "measures.branch_norms",
    "class_accuracy": "accuracy_by_class",
    "confusion": "confusion_matrix",
    "curves": "figures",
    "embedding_filters": "measures.embedding_filters",
    "explanations": "measures.explanations",
    "faithfulness": "measures.faithfulness",
    "feature_pca": "measures.feature_pca",
    "layer_probes": "measures.layer_probes",
    "layer_similarity": "measures.layer_similarity",
    "nearest_images": "measures.nearest_images",
    "patch_similarity": "measures.patch_similarity",
    "position_similarity": "measures.position_similarity",
    "predictions": "figures",
    "test_time_registers": "measures.registers",
    "token_norms": "measures.token_norms",
    "walkthrough": "walkthrough_page.walkthrough",
}

__all__ = [
    "analyze",
    "attention_distance",
    "attention_maps",
    "branch_norms",
    "class_accuracy",
    "confusion",
    "curves",
    "embedding_filters",
    "explanations",
    "faithfulness",
    "feature_pca",
    "layer_probes",
    "layer_similarity",
    "nearest_images",
    "patch_similarity",
    "position_similarity",
    "predictions",
    "test_time_registers",
    "token_norms",
    "walkthrough",
]


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
