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
    changes = {"total_epochs": 40.0, "checkpoint.keep_steps": (100,)}
    vit_jax.train(vit_jax.load_config("quickstart", changes), CHECKPOINT)
model = vit_jax.load_pretrained(CHECKPOINT)
model

# %% [markdown]
# A result has `.plot()`, `.to_dataframe()`, `.arrays()` with named axes, `.save(folder)`, and says how it is
# defined. The filters of the patch embedding are shown by their principal components; the curve says how many
# of these have most of the variance. A ViT that is trained on photographs has smooth waves and colours here.

# %%
filters = analysis.embedding_filters(model)
print(filters.definition)
filters.plot()

# %% [markdown]
# ## Positions
#
# A panel is a patch, and its colours are the similarity of its position with each other one. This model has
# fixed sine-cosine embeddings; in learned ones the same rows and columns appear in training.

# %%
analysis.position_similarity(model).plot()

# %% [markdown]
# ## Attention
#
# From local to global attention over the depth: figure 7 of the ViT paper. A point is a head, and the dashed
# line is attention on all patches alike: heads far below it look at neighbours. In a ViT-L some heads of the
# first layers do; a small model that is trained on small images need not show that.

# %%
distance = analysis.attention_distance(model, IMAGES, num_images=200)
distance.plot()

# %%
distance.to_dataframe().head()

# %% [markdown]
# ## One image
#
# What does each head look at, and what did the prediction depend on? A map is only worth as much as its
# deletion and insertion curves: the probability must fall faster than in a random order when the patches
# that it names are removed, and rise faster when they are inserted. If the curves lie within those of random
# orders, the map does not show what the model uses.

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
# Norms of the tokens before the final norm, where outliers show: a few patches of large models have norms many
# times those of the others, of small models seldom. Then what each branch adds: above 1 the skip connection
# has the larger part.

# %%
analysis.token_norms(model, IMAGES, num_images=200).plot()

# %%
analysis.branch_norms(model, IMAGES, num_images=200).plot()

# %% [markdown]
# ## Layers
#
# How similar the layers are (unbiased CKA: bright squares are layers that represent images alike), and what a
# linear probe reads from each. Where the accuracy of the probe stops to grow, the later layers add nothing to
# this task.

# %%
analysis.layer_similarity(model, IMAGES, num_images=256).plot()

# %%
analysis.layer_probes(model, IMAGES).plot()

# %% [markdown]
# ## Two models
#
# An earlier step of the run beside its end: the layers that are dark on the diagonal changed most. Any two
# checkpoints can be compared, of any architectures.

# %%
steps = os.listdir(f"{CHECKPOINT}/checkpoints") if os.path.isdir(CHECKPOINT) else []
other = model
if steps:
    other = vit_jax.load_pretrained(f"{CHECKPOINT}/checkpoints/{min(steps, key=int)}")
analysis.layer_similarity(other, IMAGES, model, num_images=256).plot()

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
# ## All of it, saved
#
# Every measure of one or several checkpoints, with figures, numbers and one page, `report.html`. Here are two
# measures of the two models; without `only` all are computed. In a shell: `vit-jax analyze
# --checkpoint=CHECKPOINT --images=IMAGES --out=DIR`, with `--compare=OTHER`.

# %%
found = analysis.analyze(
    [other, model],
    IMAGES,
    out="report",
    only=["attention_distance", "branch_norms"],
    num_images=200,
)
print(found.overview_text())
