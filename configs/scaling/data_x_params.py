"""Error over parameters, data size and updates: ViTs and ResNets, every combination.

    vit-jax sweep --config=scaling/data_x_params --workdir=...
    vit-jax sweep --config=scaling/data_x_params:data=fashion_mnist \
        --workdir=runs/study --max_parallel=2

The main study of this code base. Every model is trained on nested random parts of the training
split (`data.examples`), with the same hyperparameters, except that on Fashion-MNIST the learning
rate falls with the width. The learning rate is constant (on ImageNet-21k 1/sqrt) until the
cooldown, so shorter runs are branches that cool down from saved states of one long run
(`vit_jax.sweeps.grids.durations`).

Arguments: data, imagenet21k (see `configs/vit_i21k.py`) or fashion_mnist; seeds, the number of
seeds of fashion_mnist's smaller models (sweep only); model, one of `MODELS`.

Hardware and time: fashion_mnist, 210 runs, 7.0 device-hours, two runs at a time on 2 cores of an
AMD EPYC; its table is `docs/study/runs.csv`. imagenet21k: not measured.
Expected: fashion_mnist, 12.5% (ViTs) and 9.1% error (ResNets) with all the data; see the README.
"""

from ml_collections import ConfigDict

from vit_jax.config import parse_args
from vit_jax.sweeps import recipes
from vit_jax.sweeps.grids import Point, durations, grid, subset

MODELS = {
    "imagenet21k": ("Ti/16", "S/16", "M/16", "B/16", "L/16", "BiT-R50x1", "BiT-R101x1"),
    "fashion_mnist": (*recipes.LAPTOP_VITS, *recipes.LAPTOP_RESNETS),
}
SHARES = (0.01, 0.03, 0.1, 0.3, 1)  # Shares of ImageNet-21k.
EXAMPLES = (300, 1000, 3000, 10_000, 30_000, 60_000)  # Numbers of examples of Fashion-MNIST.
STEPS = {"imagenet21k": (20_000, 60_000, 200_000), "fashion_mnist": (200, 800, 3200)}
# The models of Fashion-MNIST that are trained with several seeds.
SMALLER = ("vit-8k", "vit-40k", "resnet-20k")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of one model; the sweep sets the amount of data and the steps."""
    args = parse_args(arg, data="imagenet21k", model="", seeds=3)
    recipes.check_data(args.data)
    make = recipes.fashion_mnist if args.data == "fashion_mnist" else recipes.imagenet21k
    return make(args.model or MODELS[args.data][0], steps=STEPS[args.data][-1])


def sweep(arg: str | None = None) -> list[Point]:
    """Returns the points, first all of seed 0: these are a complete study by themselves."""
    args = parse_args(arg, data="imagenet21k", model="", seeds=3)
    recipes.check_data(args.data)
    parts = subset(recipes.EXAMPLES["imagenet21k"], SHARES)
    if args.data == "fashion_mnist":
        parts = grid({"data.examples": EXAMPLES})
    models = (args.model,) if args.model else MODELS[args.data]
    points = grid({":model": models}, parts, {"seed": (0,)})
    if args.data == "fashion_mnist":
        smaller = [model for model in models if model in SMALLER]
        points += grid({"seed": range(1, args.seeds)}, {":model": smaller}, parts)
    return [
        run
        for point in points
        for run in durations(
            point, _steps(args.data, point["data.examples"]), cooldown=recipes.COOLDOWN
        )
    ]


def _steps(data: str, examples: int) -> tuple[int, ...]:
    """Omits the longest run on small parts: it would be 137 epochs on 3,000 images."""
    return STEPS[data][:2] if data == "fashion_mnist" and examples <= 3000 else STEPS[data]
