# %% [markdown]
# # Checkpoints: load any, inspect, resize, convert
#
# Google's `.npz`, Hugging Face, timm, DeiT, MAE, DINOv2, DINOv3, EVA, SigLIP, torchvision, BiT and Mixer: one
# call loads them with their own numerics and preprocessing. It runs without a network on a small checkpoint
# that it writes itself; set `CHECKPOINT` to a published one, such as "hf:facebook/dinov2-base",
# "timm:vit_base_patch16_224.augreg_in21k" or a file.

# %% [markdown]
# ## Install

# %%
# In Colab this installs vit_jax, and keeps the installed jax and numpy. Elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("vit_jax") is None:
    address = "git+https://example.org/vit_jax"
    # !pip freeze | grep -iE "^(jax|numpy|nvidia)" > keep.txt
    # !pip install -q -c keep.txt "vit-jax[notebook] @ {address}"

# %% [markdown]
# ## A checkpoint
#
# Here: a small ViT with random weights in the format of transformers.

# %%
import dataclasses

import numpy as np
from sklearn.datasets import load_sample_images

import vit_jax

CHECKPOINT = "tiny-vit"
tiny = vit_jax.create("mu/16", image_size=64, num_classes=10, pool="token")
head = {"kernel": np.random.default_rng(0).normal(size=(32, 10)), "bias": np.zeros(10)}
tiny = dataclasses.replace(tiny, params={**tiny.params, "head": head})  # It was zeros.
vit_jax.export(tiny, CHECKPOINT, to="hf", change_numerics=True)
photos = load_sample_images().images  # Two photographs, uint8.

# %% [markdown]
# What is in it? Nothing is read but names and shapes, and nothing in the file is executed.

# %%
print(vit_jax.inspect(CHECKPOINT))

# %% [markdown]
# ## Load and use

# %%
model = vit_jax.load_pretrained(CHECKPOINT)
model

# %%
model.predict(photos, top_k=3)

# %%
features = model.features(photos)
attention = model.attention(photos[0])
print(f"{features.shape=} {attention.shape=}")

# %% [markdown]
# In a train step of your own the model is a Flax module, and the parameters are a tree of arrays:

# %%
import jax

images = model.preprocess(photos)
loss = lambda params: (model.model.apply({"params": params}, images, train=True)[0] ** 2).mean()
gradients = jax.grad(loss)(model.params)
print(jax.tree.map(np.shape, gradients["embedding"]))

# %% [markdown]
# ## Another resolution, another patch size, another head
#
# Position embeddings are resized with the kernel of the checkpoint's publisher, patch embeddings as in
# FlexiViT (arXiv 2212.08013). The notes say what was changed.

# %%
wide = vit_jax.load_pretrained(CHECKPOINT, image_size=(64, 128), num_classes=3)
flexi = vit_jax.load_pretrained(CHECKPOINT, patch_size=8)
print(wide, flexi, sep="\n\n")

# %% [markdown]
# ## Convert
#
# For transformers, timm, Google's code, big_vision, ONNX or StableHLO. What a format cannot express is refused
# with the reason; small differences need `change_numerics=True`, and are listed.

# %%
for to in ("hf", "timm", "big_vision"):
    notes = vit_jax.export(model, f"as-{to}", to=to, change_numerics=True)
    print(f"{to}:", *notes, sep="\n  ")

# %% [markdown]
# Back again: the same logits.

# %%
again = vit_jax.load_pretrained("as-timm")
difference = np.abs(np.asarray(model(images)[0]) - np.asarray(again(images)[0])).max()
print(f"largest difference of a logit: {difference:.1e}")
