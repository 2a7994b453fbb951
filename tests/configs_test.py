"""Every config: it builds, is documented, refuses bad arguments, and equals its golden file.

The golden files list every key of each recipe, so a change shows in review. To accept a change,
review it and rewrite them:

    python -m tests.configs_test --update
"""

import difflib
import json
import sys

import pytest

from tests.config_cases import ARGUMENTS, NAMES, ROOT, each_case, each_config, get_config, load
from vit_jax.config import freeze
from vit_jax.data.recipes import AUGREG_LEVELS
from vit_jax.errors import ConfigError
from vit_jax.rundir import workdir as workdirs

GOLDENS = ROOT / "tests" / "goldens" / "configs"
UPDATE = "python -m tests.configs_test --update"

# ----------------------------------------------------------------------------------- properties


@each_case
def test_it_is_locked_and_freezes(name, arg):
    config = get_config(name, arg)
    for section in (config, config.model, config.optim.schedule, config.data):
        with pytest.raises(AttributeError, match="locked"):
            section.no_such_key = 1
    frozen = freeze(config)
    with pytest.raises(AttributeError):
        frozen.seed = 1
    with pytest.raises(TypeError):
        frozen.data.train_transforms[0]["op"] = "resize"


@each_case
def test_it_survives_json(name, arg):
    frozen = freeze(get_config(name, arg))
    text = json.dumps(workdirs.config_to_json(frozen))
    again = freeze(workdirs.config_from_json(json.loads(text)))
    assert again == frozen
    assert json.dumps(workdirs.config_to_json(again)) == text  # 1 and 1.0 are equal, but differ.


@each_config
def test_calls_share_no_mutable_state(name):
    one, before = get_config(name), workdirs.config_to_json(freeze(get_config(name)))
    for entry in (*one.data.train_transforms, *one.data.eval_transforms):
        entry["changed"] = True
    assert workdirs.config_to_json(freeze(get_config(name))) == before


@each_config
def test_docstring_has_the_command(name):
    doc = load(name).__doc__
    verb = "sweep" if hasattr(load(name), "sweep") else "train"
    assert f"vit-jax {verb} --config={name}" in doc
    assert "--workdir" in doc
    assert f"{name} " in load("__init__").__doc__, "the table of contents, configs/__init__.py"


def test_arguments_reach_the_config():
    c = get_config("vit_i1k", "variant=L/16,aug=strong2,reg=true")
    assert (c.model.variant, c.mix.mixup_alpha) == ("L/16", 0.8)
    assert c.model.dropout == c.model.stochastic_depth == 0.1
    assert {"op": "randaugment", "num_layers": 2, "magnitude": 20} in c.data.train_transforms
    assert get_config("vit_s16_i1k", "epochs=150").total_epochs == 150.0
    assert get_config("vit_g_scaling", "steps=60000").optim.schedule.cooldown_steps == 10_000
    assert get_config("vit_g_scaling", "steps=60001").optim.schedule.cooldown_steps == 50_000
    c = get_config("finetune", "model=H/14,dataset=oxford_iiit_pet")
    assert c.model.image_size == (378,)  # 27 patches; 384 is no multiple of 14.
    assert (c.data.split, c.total_steps, c.optim.lr) == ("train[:90%]", 500, 0.003)
    assert get_config("image_folder", "root=~/my=images").data.data_dir == "~/my=images"


def test_every_model_has_the_same_data_subsets():
    points = load("scaling/vit_vs_cnn").sweep()
    of_model = {}
    for point in points:
        of_model.setdefault(point[":model"], []).append(point["data.examples"])
    assert {tuple(parts) for parts in of_model.values()} == {
        (141_459, 424_378, 1_414_592, 4_243_777, 14_145_922)
    }
    configs = [get_config("scaling/vit_vs_cnn", f"model={model}") for model in of_model]
    assert {(c.data.split, c.total_steps) for c in configs} == {("full[51200:]", 310_823)}
    # No run trains on the held-out examples.
    held_out = {(c.evals.val.split, c.evals.test.split) for c in configs}
    assert held_out == {("full[25600:51200]", "full[:25600]")}


@pytest.mark.parametrize(
    ("name", "arg", "hint"),
    [
        ("vit_i1k", "aug=medum1", 'Did you mean "medium1"?'),
        ("vit_i1k", "reg=yes", 'reg="yes" is not a bool'),
        ("vit_i1k", "L/16", "write key=value"),
        ("vit_s16_i1k", "epochs=long", 'epochs="long" is not a float'),
        ("finetune", "dataset=cifar11", 'Did you mean "cifar10"?'),
        ("finetune", "model=So400/14", 'Did you mean "So400m"?'),
        ("image_folder", "rot=/data", 'Did you mean "root"?'),
        ("scaling/vit_vs_cnn", "data=fashion_mnist,model=resnets", 'Did you mean "resnet"?'),
    ],
)
def test_bad_arguments_name_the_nearest(name, arg, hint):
    with pytest.raises(ConfigError) as error:
        get_config(name, arg)
    assert hint in str(error.value)


def test_every_augreg_level_is_an_argument():
    for level in AUGREG_LEVELS:
        assert get_config("vit_i1k", f"aug={level}").mix.mixup_alpha == AUGREG_LEVELS[level][2]


# ------------------------------------------------------------------------------------------ goldens


def golden_text(name: str) -> str:
    """Returns every key of a config; for each other argument, the keys that differ."""
    flat = {
        arg: workdirs.flatten(
            json.loads(json.dumps(workdirs.config_to_json(get_config(name, arg))))
        )
        for arg in ("", *ARGUMENTS.get(name, ()))
    }
    changed = {
        arg: {key: value for key, value in keys.items() if not arg or value != flat[""].get(key)}
        for arg, keys in flat.items()
    }

    def section(keys):  # One line per key makes diffs readable.
        return ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(keys.items()))

    return (
        "{\n"
        + ",\n".join(f"  {json.dumps(arg)}: {{\n{section(k)}\n  }}" for arg, k in changed.items())
        + "\n}\n"
    )


@each_config
def test_it_equals_its_golden_file(name):
    path = GOLDENS / f"{name}.json"
    golden, current = path.read_text() if path.exists() else "", golden_text(name)
    diff = list(
        difflib.unified_diff(
            golden.splitlines(), current.splitlines(), "golden", "config", n=0, lineterm=""
        )
    )
    if diff:
        pytest.fail(
            f"configs/{name}.py differs from {path.relative_to(ROOT)}:\n"
            + "\n".join(diff)
            + f"\nIf that is intended: {UPDATE}",
            pytrace=False,
        )


def test_there_is_no_golden_without_a_config():
    goldens = (path.relative_to(GOLDENS).with_suffix("") for path in GOLDENS.rglob("*.json"))
    assert sorted(path.as_posix() for path in goldens) == NAMES, UPDATE


def update_goldens() -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for path in GOLDENS.rglob("*.json"):
        path.unlink()
    for name in NAMES:
        (GOLDENS / name).parent.mkdir(exist_ok=True)
        (GOLDENS / f"{name}.json").write_text(golden_text(name))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(f"Usage: {UPDATE}")
    update_goldens()
    print(f"Wrote {len(NAMES)} files to {GOLDENS.relative_to(ROOT)}: look at git diff.")
