"""Points of sweeps: combinations, rows, stars, nested parts, durations; and the studies' own."""

import pytest

from tests.config_cases import NAMES, load
from vit_jax.errors import ConfigError
from vit_jax.sweeps import grids
from vit_jax.sweeps.grids import chain, durations, grid, point_name, star, subset

SWEEPS = [name for name in NAMES if hasattr(load(name), "sweep")]


def test_a_grid_is_every_combination_the_last_factor_fastest():
    points = grid({":model": ("a", "b"), "seed": (0, 1)}, subset(1000, (0.1, 1)))
    assert len(points) == 8
    assert points[0] == {":model": "a", "seed": 0, "data.examples": 100}
    assert points[1] == {":model": "a", "seed": 0, "data.examples": 1000}
    assert points[2] == {":model": "a", "seed": 1, "data.examples": 100}
    assert grid() == [{}]
    with pytest.raises(ConfigError, match="seed is set by two factors"):
        grid({"seed": (0,)}, [{"seed": 1}])


def test_paired_goes_through_its_keys_together():
    assert grids.paired({"a": (1, 2), "b": "xy"}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(ConfigError, match="a 2, b 1"):
        grids.paired({"a": (1, 2), "b": (3,)})


def test_chain_removes_duplicates():
    assert chain([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 3}]) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_a_star_changes_one_key_at_a_time():
    points = star({"w": 5, "d": 2}, {"w": (3, 5, 9), "d": (1,)})
    assert points == [{"w": 5, "d": 2}, {"w": 3, "d": 2}, {"w": 9, "d": 2}, {"w": 5, "d": 1}]
    with pytest.raises(ConfigError, match="centre has no h"):
        star({"w": 5}, {"h": (1,)})


@pytest.mark.parametrize("share", [0, -0.1, 1.1, 1e-9, float("nan")])
def test_a_share_is_of_at_least_one_example(share):
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        subset(1000, (share,))


def test_durations_share_one_trunk():
    runs = durations({":model": "S/16", "seed": 1}, (100, 1000, 10), cooldown=0.2)
    trunk, middle, short = runs
    assert trunk["total_steps"] == 1000 and trunk["checkpoint.keep_steps"] == (8, 80)
    assert trunk["name"] == "model=S-16,seed=1,steps=1000" and "branch_of" not in trunk
    assert middle["branch_of"] == (trunk["name"], 80)
    assert middle["optim.schedule.cooldown_steps"] == 20
    assert short["branch_of"] == (trunk["name"], 8) and short["total_steps"] == 10
    (alone,) = durations({}, (5,), cooldown=0.2)
    assert alone["checkpoint.keep_steps"] == () and "branch_of" not in alone


def test_durations_without_a_length():
    with pytest.raises(ConfigError, match="no length for seed=3"):
        durations({"seed": 3}, (), cooldown=0.2)


def test_names_are_valid_folders_and_distinguish_points():
    point = {":model": "R50+B/16", "optim.lr": 1e-3, "model.image_size": (28, 56)}
    assert point_name(point) == "model=R50+B-16,lr=0.001,image_size=28x56"
    assert point_name({}) == "run"


@pytest.mark.parametrize("data", ["imagenet21k", "fashion_mnist"])
@pytest.mark.parametrize("name", SWEEPS)
def test_a_study_holds_together(name, data):
    module = load(name)
    points = module.sweep(f"data={data}")
    names = [point.get("name") or point_name(point) for point in points]
    assert len({*names}) == len(names) >= 8
    for i, point in enumerate(points):
        args = {key[1:]: value for key, value in point.items() if key.startswith(":")}
        arg = ",".join(f"{key}={value}" for key, value in ({"data": data} | args).items())
        config = module.get_config(arg)
        total = point.get("total_steps", config.total_steps)
        if "branch_of" in point:
            trunk = points[names.index(point["branch_of"][0])]
            assert names.index(point["branch_of"][0]) < i
            # The state is there, no cooldown of the trunk has begun, and they differ in no more.
            begin = total - point["optim.schedule.cooldown_steps"]
            end = trunk["total_steps"] - trunk["optim.schedule.cooldown_steps"]
            assert point["branch_of"][1] == begin <= end
            assert begin in trunk["checkpoint.keep_steps"]
            of_length = {"name", "branch_of", "total_steps", "checkpoint.keep_steps"}
            of_length.add("optim.schedule.cooldown_steps")
            assert {k: v for k, v in point.items() if k not in of_length} == {
                k: v for k, v in trunk.items() if k not in of_length
            }
            assert config.optim.schedule.warmup_steps <= begin
            assert config.optim.schedule.name in ("constant", "rsqrt")
