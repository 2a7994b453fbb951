# %% [markdown]
# # What has my model learned?
#
# Every measure of `vit_jax.analysis` on one model: its filters, positions, attention, maps of an image and how
# faithful they are, token norms, similarity of layers, features, and a walkthrough with its own numbers. Set
# `CHECKPOINT` to your own: a work directory, a file, or a name such as "hf:facebook/dinov2-base"; and `IMAGES`
# to a folder. As it stands it trains a small ViT on scanned digits first.

# %% [markdown]
# ## Install

# %%
# In Colab this installs vit_jax, and keeps the installed jax and numpy. Elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("vit_jax") is None:
    address = "git+https://example.org/vit_jax"
    # !pip freeze | grep -iE "^(jax|numpy|nvidia)" > keep.txt
    # !pip install -q -c keep.txt "vit-jax[notebook] @ {address}"

# %%
import os

import vit_jax
from vit_jax import analysis

CHECKPOINT = "runs/quickstart"
IMAGES = "digits:test"

if not os.path.exists(CHECKPOINT):
    config = vit_jax.load_config("quickstart", {"total_epochs": 40.0})
    vit_jax.train(config, CHECKPOINT)
model = vit_jax.load_pretrained(CHECKPOINT)
model

# %% [markdown]
# A result has `.plot()`, `.to_dataframe()`, `.arrays()` with named axes, `.save(folder)`, and says how it is
# defined:

# %%
filters = analysis.embedding_filters(model)
print(filters.definition)
filters.plot()

# %% [markdown]
# ## Positions
#
# This model has fixed sine-cosine embeddings; a learned one of a large ViT shows the same structure.

# %%
analysis.position_similarity(model).plot()

# %% [markdown]
# ## Attention
#
# From local to global attention over the depth: figure 7 of the ViT paper. In a ViT-L some heads of the
# first layers look only at neighbours; a small model that is trained on small images need not show that.

# %%
distance = analysis.attention_distance(model, IMAGES, num_images=200)
distance.plot()

# %%
distance.to_dataframe().head()

# %% [markdown]
# ## One image
#
# What does each head look at, and what did the prediction depend on? A map is only worth as much as its
# deletion and insertion curves, beside those of a random map.

# %%
from sklearn.datasets import load_digits

image = (load_digits().images[-1] * 15.9).astype("uint8")
analysis.attention_maps(model, image).plot()

# %%
analysis.explanations(model, image).plot()

# %%
analysis.faithfulness(model, IMAGES, num_images=64).plot()

# %% [markdown]
# ## The residual stream
#
# Norms of the tokens before the final norm, where outliers show; what each branch adds; how similar the layers
# are (unbiased CKA); what a linear probe reads from each.

# %%
analysis.token_norms(model, IMAGES, num_images=200).plot()

# %%
analysis.branch_norms(model, IMAGES, num_images=200).plot()

# %%
analysis.layer_similarity(model, IMAGES, num_images=256).plot()

# %%
analysis.layer_probes(model, IMAGES).plot()

# %% [markdown]
# ## Features

# %%
analysis.feature_pca(model, IMAGES, num_images=100).plot()

# %%
analysis.patch_similarity(model, image).plot()

# %%
analysis.nearest_images(model, IMAGES).plot()

# %% [markdown]
# ## Step by step
#
# One image through the model with all numbers: a page that opens without a network.

# %%
walkthrough = analysis.walkthrough(model, image, label="8")
walkthrough.save("walkthrough.html")

# %% [markdown]
# Everything at once, with a page: `vit-jax analyze --checkpoint=CHECKPOINT --images=IMAGES --out=DIR`, or
# `analysis.analyze`.
