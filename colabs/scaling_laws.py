# %% [markdown]
# # Scaling laws
#
# How much does a Vision Transformer gain from more parameters, data and compute, and how certain is
# that? This notebook starts from published numbers; its second half reads the table of a sweep, ours or
# yours (`vit-jax sweep` writes `runs.parquet`). It needs no accelerator.

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
import numpy as np
from IPython.display import Image, display

from vit_jax.analysis.figures import rendered
from vit_jax.scaling.question import Question
from vit_jax.scaling.study import study


def ask(table, runs="a table", **question):
    """Prints and draws the result of `vit-jax fit`."""
    answered = study(table, Question(**question), runs=runs)
    print(answered)
    for name, figure in answered.figures().items():
        if name != "residuals":
            display(Image(rendered(figure, "png")))
    return answered.result


# %% [markdown]
# ## A published frontier
#
# The best ImageNet 10-shot error for its compute (TPUv3 core-days) of the 262 runs of *Scaling Vision
# Transformers* (Zhai et al. 2021, arXiv 2106.04560): errors from its tables, core-days digitised from
# its figure. The paper fits $E = a (C + d)^{-b} + c$: the error neither starts at infinity nor ends at
# zero.

# %%
# fmt: off
core_days = [
    0.267, 0.4004, 0.6133, 0.8009, 0.92, 1.585, 1.609, 1.84, 2.378, 2.413, 3.68,
    4.092, 4.756, 4.827, 9.511, 9.653, 12.28, 22.5, 32.18, 38.17, 76.34, 81.84,
    235.4, 248.1, 254.5, 763.4, 1084, 2545, 3253, 5422, 10840, 17110, 27500,
]
error = [
    0.809, 0.766, 0.73, 0.716, 0.674, 0.635, 0.621, 0.601, 0.567, 0.554, 0.551,
    0.543, 0.487, 0.469, 0.436, 0.415, 0.39, 0.34, 0.334, 0.331, 0.285, 0.276,
    0.232, 0.231, 0.23, 0.203, 0.187, 0.185, 0.167, 0.161, 0.157, 0.155, 0.151,
]
# fmt: on
zhai = {"core_days": np.array(core_days, float), "error": np.array(error)}
frontier = ask(zhai, law="frontier", columns={"x": "core_days"})

# %% [markdown]
# Do the small runs predict the large ones? Hold back everything above 300 core-days and predict it.
# A plain power law, which has no floor, is far off.

# %%
held_back = ask(zhai, law="frontier", columns={"x": "core_days"}, hold_back=("core_days>=300",))

# %%
power = ask(zhai, law="power", columns={"x": "core_days"}, hold_back=("core_days>=300",))

# %% [markdown]
# Runs below 30 core-days do not determine the answer: the interval is too wide, and no number is
# reported.

# %%
too_little = ask(
    zhai,
    law="frontier",
    columns={"x": "core_days"},
    hold_back=("core_days>=30",),
    predict=(30_000.0,),
)

# %% [markdown]
# ## The best model for a budget
#
# Hoffmann et al. (2022) write the loss as $E + A/N^\alpha + B/D^\beta$. With the parameters of the
# replication by Besiroglu et al. (arXiv 2404.10102), and $C = 6ND$ for text:

# %%
from vit_jax.scaling.isoflop import bias
from vit_jax.scaling.optima import optimal_point

replication = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
n, d = optimal_point(replication, 5.88e23)
print(f"At 5.88e23 FLOPs: {n:.3g} parameters and {d:.3g} tokens.")

# %% [markdown]
# IsoFLOP parabolas estimate that point without a law of both, but with a bias: the valley is not a
# parabola, and the wider the sweep, the larger the error of its minimum, even without noise.

# %%
for spread in (2, 4, 8, 16):
    off = bias(spread, alpha=0.34, beta=0.28, points=15)
    print(f"sizes up to {spread:2} times off the best: the best D is misplaced by {off:+.2%}")

# %% [markdown]
# ## The table of a sweep
#
# `configs/scaling/data_x_params.py` on Fashion-MNIST, run on two CPU cores: five ViTs and three ResNets,
# six data sizes, two or three durations, three seeds of the smaller models. Set RUNS to the `runs.parquet`
# of your own sweep, or to any table with the columns that your questions need.

# %%
from vit_jax.scaling.table import read_runs, study_runs

RUNS = study_runs()
runs = read_runs(RUNS)
print(f"{len(set(runs['run'].tolist()))} runs, {len(runs['run'])} rows: {', '.join(runs)}")

# %% [markdown]
# How much data does each family need? For each number of images, the model and duration with the least
# error on `val`, half of the test images, is chosen; its error on the other half is shown. The larger
# models have only seed 0.

# %%
data = ask(
    runs,
    RUNS,
    law="power_floor",
    columns={"x": "examples"},
    group=("family",),
    where=("seed=0",),
    chosen_by="val",
)

# %% [markdown]
# A ViT and a ResNet of a similar size, with three seeds each:

# %%
small = ask(
    runs,
    RUNS,
    law="power_floor",
    columns={"x": "examples"},
    group=("model",),
    where=("model~*-?0k",),
    chosen_by="val",
)

# %% [markdown]
# The Pareto frontier of error over compute, and its law.

# %%
compute = ask(runs, RUNS, law="frontier", columns={"x": "total_train_flops"}, group=("family",))

# %% [markdown]
# Parameters and examples together, for ViTs that saw no image more than seven times; the largest model
# is held back as the test set.

# %%
both = ask(
    runs,
    RUNS,
    law="chinchilla",
    where=("family=vit", "epochs<=7"),
    hold_back=("params>=50%",),
)

# %% [markdown]
# The value of repeated images: the same law with a term for repetitions.

# %%
repeated = ask(runs, RUNS, law="chinchilla_repeat", group=("family",))
