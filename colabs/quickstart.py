# %% [markdown]
# # Quickstart: train a Vision Transformer and look at it
#
# A small ViT on scikit-learn's 1,797 scanned digits: it trains in a minute on a CPU, without a network.
# The same calls train on a folder of images, on TFDS, Hugging Face's `datasets` or WebDataset, and on GPUs
# and TPUs.

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
# ## Train
#
# A run is a function of its config. `vit-jax config` lists the recipes; the second argument overrides keys,
# as `--config.KEY=VALUE` does. The config of the recipe has 120 epochs and reaches 97.9%; 30 are enough here.

# %%
import vit_jax
from vit_jax import analysis

config = vit_jax.load_config("quickstart", {"total_epochs": 30.0})
exit_code = vit_jax.train(config, "runs/quickstart")

# %% [markdown]
# The work directory has the config, the metrics, checkpoints and figures. The same call would continue a run
# that was interrupted, to the same bits.

# %%
analysis.curves("runs/quickstart/metrics.jsonl", "curves.png")

# %% [markdown]
# ## Evaluate
#
# Every test image counts once. The intervals are 95%.

# %%
evaluation = vit_jax.evaluate("runs/quickstart")
evaluation

# %%
result = evaluation.results["classifier"]
analysis.confusion(result.report, result.class_names, "confusion.png")

# %% [markdown]
# ## Predict
#
# A trained model is loaded like a published one. It takes paths, Pillow images or pixels.

# %%
from sklearn.datasets import load_digits

model = vit_jax.load_pretrained("runs/quickstart")
digits = (load_digits().images * 15.9).astype("uint8")
model.predict(list(digits[-3:]), top_k=3)

# %% [markdown]
# ## Look inside
#
# How far each head looks, in pixels; the notebook `analysis` has the other measures.

# %%
analysis.attention_distance(model, "digits:test", num_images=100).plot()

# %% [markdown]
# Next: `finetune` adapts a model to other classes and a higher resolution, `checkpoints` loads and converts
# published models, `scaling_laws` fits laws to sweeps.
