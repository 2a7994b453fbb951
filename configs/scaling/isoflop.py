"""The best model for a compute budget: at each budget, larger models make fewer updates.

    vit-jax sweep --config=scaling/isoflop --workdir=...
    vit-jax sweep --config=scaling/isoflop:data=fashion_mnist \
        --workdir=runs/isoflop --max_parallel=2
    vit-jax fit --runs=runs/isoflop/runs.parquet --law=isoflop --out=runs/isoflop/fit

The second approach of Hoffmann et al. 2022 (arXiv 2203.15556): at each budget the error has a
minimum over the number of parameters, and the minima follow a power law. The runs of a model at all
budgets are branches of one long run, as in `data_x_params.py`.

Arguments: data, imagenet21k or fashion_mnist; model, a variant, or for fashion_mnist a width and a
depth such as 24x2.

Hardware and time: not measured.
Expected: nobody has measured it.
"""

from ml_collections import ConfigDict

from vit_jax.config import parse_args
from vit_jax.errors import ConfigError
from vit_jax.models import read_section, train_flops_per_image
from vit_jax.sweeps import recipes
from vit_jax.sweeps.grids import Point, durations

# On Fashion-MNIST from 2,000 to 200,000 parameters, small enough for the small budgets.
MODELS = {
    "imagenet21k": ("Ti/16", "S/16", "M/16", "B/16", "L/16"),
    "fashion_mnist": ("8x2", "12x2", "16x2", "24x2", "32x3", "48x3", "64x4"),
}
CLASSES = {"imagenet21k": 21_843, "fashion_mnist": 10}
# Training FLOPs of a whole run, forward and backward.
BUDGETS = {
    "imagenet21k": (1e19, 3e19, 1e20, 3e20),
    "fashion_mnist": (5e10, 1.5e11, 4.5e11, 1.35e12),
}
# Limits of updates: shorter runs would be mostly warm-up, longer ones take too long.
FEWEST = {"imagenet21k": 20_000, "fashion_mnist": 150}
MOST = {"imagenet21k": 500_000, "fashion_mnist": 12_000}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of one model; the sweep sets the steps."""
    args = parse_args(arg, data="imagenet21k", model="")
    recipes.check_data(args.data)
    model, steps = args.model or MODELS[args.data][0], MOST[args.data]
    if args.data == "imagenet21k":
        return recipes.imagenet21k(model, steps=steps)
    try:
        width, depth = map(int, model.split("x"))
    except ValueError:
        raise ConfigError(f'Config argument model="{model}": write WIDTHxDEPTH, as 24x2.') from None
    return recipes.fashion_vit(width, depth, 4 * width, heads=2, steps=steps)


def sweep(arg: str | None = None) -> list[Point]:
    """Returns, for each model, the budgets with a number of updates from FEWEST to MOST."""
    args = parse_args(arg, data="imagenet21k", model="")
    recipes.check_data(args.data)
    points = []
    for model in (args.model,) if args.model else MODELS[args.data]:
        c = get_config(f"data={args.data},model={model}")
        model_config = read_section(c.model, num_classes=CLASSES[args.data])
        update = train_flops_per_image(model_config) * c.batch_size
        steps = [round(budget / update) for budget in BUDGETS[args.data]]
        steps = [n for n in steps if FEWEST[args.data] <= n <= MOST[args.data]]
        points += durations({":model": model}, steps, cooldown=recipes.COOLDOWN)
    return points
