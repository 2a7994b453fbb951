"""The best width, depth and MLP width: varies one of them at a time around a centre, as in SoViT.

    vit-jax sweep --config=scaling/shape_star --workdir=...
    vit-jax sweep --config=scaling/shape_star:data=fashion_mnist \
        --workdir=runs/star --max_parallel=2
    vit-jax fit --runs=runs/star/runs.parquet --law=shape --x=width,depth,mlp_dim \
        --t=total_train_flops --y=error --out=runs/star/fit

"Getting ViT in shape" (Alabdulmohsin et al. 2023, arXiv 2305.13035): for each of the three, the law
f(x, t) = alpha x^-a + (beta x^b + xi) t^-c + eps implies the best value for a given compute, which
grows with compute to the power c / (a + b). The best value must lie within the swept ones.

Arguments: data, imagenet21k (with the paper's centre, values and durations, which it used on
JFT-3B) or fashion_mnist; width, depth and mlp_dim.

Hardware and time: not measured.
Expected: in the paper, exponents of .22 (width), .45 (depth) and .6 (MLP). Nobody has measured it
with this code.
"""

from ml_collections import ConfigDict

from vit_jax.config import parse_args
from vit_jax.sweeps import recipes
from vit_jax.sweeps.grids import Point, durations, star

# The last value of each key is the centre's.
AXES = {
    "imagenet21k": {
        ":width": (608, 768, 928, 1088, 1328, 1648, 1968),
        ":depth": (8, 10, 12, 16, 20, 24, 40),
        ":mlp_dim": (1088, 1360, 1728, 2160, 2592, 3072, 6144),
    },
    "fashion_mnist": {
        ":width": (16, 24, 32, 48, 96, 64),
        ":depth": (1, 2, 3, 6, 8, 4),
        ":mlp_dim": (32, 64, 128, 512, 256),
    },
}
STEPS = {"imagenet21k": (500_000, 1_000_000, 2_000_000), "fashion_mnist": (200, 600, 1800)}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of one shape, by default the centre's; the sweep sets the steps."""
    args = parse_args(arg, data="imagenet21k", width=0, depth=0, mlp_dim=0)
    recipes.check_data(args.data)
    steps, centre = STEPS[args.data][-1], _centre(args.data)
    width, depth, mlp_dim = (args[key[1:]] or value for key, value in centre.items())
    if args.data == "fashion_mnist":
        return recipes.fashion_vit(width, depth, mlp_dim, heads=4, steps=steps)
    c = recipes.imagenet21k("So400m/14", steps=steps)
    c.model.update({"width": width, "depth": depth, "mlp_dim": mlp_dim})
    c.model.num_heads = 16  # Divides every width.
    return c


def sweep(arg: str | None = None) -> list[Point]:
    """Returns the centre and then each arm, with three durations each."""
    args = parse_args(arg, data="imagenet21k", width=0, depth=0, mlp_dim=0)
    recipes.check_data(args.data)
    points = star(_centre(args.data), AXES[args.data])
    steps = STEPS[args.data]
    return [run for point in points for run in durations(point, steps, cooldown=recipes.COOLDOWN)]


def _centre(data: str) -> dict[str, int]:
    return {key: values[-1] for key, values in AXES[data].items()}
