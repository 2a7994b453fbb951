# %% [markdown]
# # Fine-tune a checkpoint on other images, at a higher resolution
#
# A model that knows the digits 0 to 6 learns 7, 8 and 9 from 10 labels of each: by a linear probe, with
# low-rank adapters (LoRA), in full, and in full at twice the resolution with interpolated position embeddings;
# and, to compare, from scratch.
# It runs on a CPU without a network. For your own data set `CHECKPOINT` to any published model, such as
# "hf:google/vit-base-patch16-224", and `IMAGES` to a folder with a folder of images for each class.

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
# ## A checkpoint, and images of other classes

# %%
import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import vit_jax
from vit_jax import analysis

pretraining = {
    "total_epochs": 80.0,
    "data.classes": (0, 1, 2, 3, 4, 5, 6),
    "model.posemb": "learned",
}
exit_code = vit_jax.train(vit_jax.load_config("quickstart", pretraining), "runs/pretrained")
CHECKPOINT = "runs/pretrained"

# %%
IMAGES = pathlib.Path("images")
digits = load_digits()
counts = np.zeros(10, int)
for pixels, label in zip(digits.images, digits.target, strict=True):
    if label < 7:
        continue
    split = "train" if counts[label] < 10 else "test"  # 10 labels of each class.
    path = IMAGES / split / str(label) / f"{counts[label]}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path)
    counts[label] += 1

# %% [markdown]
# ## Fine-tune it
#
# Each call is `vit-jax train --config=finetune:root=IMAGES,... --config.init_from=CHECKPOINT`. The
# preprocessing is the checkpoint's own. Digits are not photographs: crops and flips are left out.

# %%
settings = {
    "init_from": CHECKPOINT,
    "data.train_transforms": ({"op": "inherit"},),
    "optim.lr_rules": ((".*", 1.0),),
    "evals.test.every_steps": 0,  # At the end alone.
}


def fine_tune(name, arguments, lr):
    """Fine-tunes, and returns the evaluation on the test images."""
    recipe = f"finetune:root={IMAGES},epochs=20,{arguments}"
    config = vit_jax.load_config(recipe, settings | {"optim.lr": lr})
    vit_jax.train(config, f"runs/{name}")
    return vit_jax.evaluate(f"runs/{name}")


evaluations = {
    "linear probe": fine_tune("probe", "mode=probe", lr=1e-2),
    "LoRA": fine_tune("lora", "mode=lora,rank=8", lr=2e-3),
    "full": fine_tune("full", "mode=full", lr=1e-3),
    "full, 16 pixels": fine_tune("full16", "mode=full,size=16", lr=1e-3),
}

# %% [markdown]
# And from scratch, the same model on the same images:

# %%
scratch = {
    "model.variant": "Ti/2", "model.width": 64, "model.depth": 4, "model.mlp_dim": 192,
    "model.num_heads": 4, "model.pool": "gap", "model.image_size": (8,), "model.channels": 1,
    "data.train_transforms": ({"op": "decode", "channels": 1}, {"op": "value_range"}),
    "data.eval_transforms": ({"op": "decode", "channels": 1}, {"op": "resize"}, {"op": "value_range"}),
    "optim.lr": 2e-3, "total_epochs": 20.0, "batch_size": 8, "evals.test.every_steps": 0,
}  # fmt: skip
exit_code = vit_jax.train(
    vit_jax.load_config(f"image_folder:root={IMAGES}", scratch), "runs/scratch"
)
evaluations["from scratch"] = vit_jax.evaluate("runs/scratch")

for name, evaluation in evaluations.items():
    low, high = evaluation.report.intervals()["top1"]
    print(f"{name:16}  {evaluation.top1:.1%}  (95%: {low:.1%} to {high:.1%})")

# %% [markdown]
# ## Higher resolution
#
# At 16 pixels there are four times as many patches: the position embedding was interpolated. Its similarities
# keep their structure.

# %%
model = vit_jax.load_pretrained(CHECKPOINT)
analysis.position_similarity(model, image_size=16).plot()

# %% [markdown]
# ## Compare the runs, and use the best

# %%
vit_jax.compare_runs(
    ["runs/lora", "runs/full", "runs/full16", "runs/scratch"], out="comparison.png"
)
Image.open("comparison.png")

# %%
best = vit_jax.load_pretrained("runs/full16")
best.predict(sorted(IMAGES.glob("test/*/*.png"))[::130], top_k=2)
