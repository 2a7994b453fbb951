"""What a dry run says of invalid points, and of the time that runs take."""

import json
import re

import jax
import pytest

from tests.commands import call
from tests.small_run import small_config
from tests.sweep_runs import REAL, plan
from vit_jax import cli
from vit_jax.errors import ConfigError
from vit_jax.planning.topology import parse
from vit_jax.rundir import workdir as workdirs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.costs import cost, step_config
from vit_jax.sweeps.dry_run import dry_run
from vit_jax.sweeps.durations import estimate, logged_speeds, timed_speeds
from vit_jax.sweeps.plan import PlannedRun, plan_runs
from vit_jax.sweeps.pod import on_pod

POINTS = [
    {"name": "good", "seed": 1},
    {"name": "key", "optim.lrr": 0.1},
    {"name": "same", "optim.lrr": 0.2},
    {"name": "branch", "branch_of": ("key", 4)},
    {"name": "heads", "model.num_heads": 3},
    {"name": "examples", "data.examples": 5000},
    {"name": "warmup", "optim.schedule.warmup_steps": 12},
    {"name": "transforms", "data.eval_transforms": ({"op": "decode"},)},
    {"name": "split", "data.classes": (0, 11)},
]


def test_all_invalid_points_are_named_with_their_reasons(tmp_path, capsys):
    file = tmp_path / "tiny.py"
    file.write_text(REAL)
    with pytest.raises(ConfigError, match=r"sweep\(\), key: .*lrr"):
        plan(POINTS, tmp_path, file)
    invalid: dict[str, str] = {}
    runs = plan_runs(
        POINTS, file=str(file), argument="", overrides={}, folder=tmp_path,
        configure=cli.config_of, invalid=invalid,
    )  # fmt: skip
    with pytest.raises(ConfigError) as error:
        dry_run(runs, invalid=invalid)
    reasons = dict(line.strip().split(": ", 1) for line in str(error.value).splitlines()[1:])
    assert str(error.value).startswith("8 of 9 runs cannot start:\n")
    assert "lrr" in reasons["key"] and reasons["branch"] == "its trunk key is invalid."
    assert "num_heads" in reasons["heads"] and "data.examples is 5,000" in reasons["examples"]
    assert "do not fit into a run of 12" in reasons["warmup"]
    assert "eval_transforms" in reasons["transforms"] and "11" in reasons["split"]
    assert "Accepted: accum_steps, " in reasons["key"]
    assert reasons["same"].endswith('there is no config key "lrr". Did you mean "lr"?')
    out = capsys.readouterr().out
    assert out.startswith(
        "8 of 9 runs cannot start: the reasons are below. The plan of the others:"
    )
    assert "\ngood (waiting)\n  vit-jax train --config=" in out


def planned(folder, name, **changes):
    return PlannedRun(name, {}, (), small_config(**changes), folder / name)


def test_times_are_those_of_logged_runs_and_scaled_by_flops(tmp_path):
    """A finished run: 12 steps of 16 images at a median of 32 images/s, and 4 s besides."""
    runs = [
        planned(tmp_path, "done"),
        planned(tmp_path, "longer", total_steps=120, optim__lr=1.0, seed=3),
        planned(tmp_path, "deeper", model__depth=4),
    ]
    costs = {run.name: cost(run) for run in runs}
    workdirs.make(runs[0].workdir)
    (runs[0].workdir / "run.json").write_text('{"num_devices": 1, "device": "cpu"}')
    lines = [
        {"step": step, "speed/img_per_s": rate, "time/wall_s": wall}
        for step, rate, wall in ((4, 8.0, 6.0), (8, 32.0, 8.0), (12, 40.0, 10.0))
    ]
    (runs[0].workdir / "timing.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    speeds = logged_speeds(runs, costs)
    [speed] = speeds.values()
    assert (speed.images_per_second, speed.extra_seconds, speed.device) == (32.0, 4.0, "1 x cpu")
    longer, deeper = (estimate(run, costs[run.name], speeds) for run in runs[1:])
    assert (longer.seconds, longer.is_scaled) == (120 * 16 / 32 + 4, False)
    factor = costs["deeper"].update_flops_per_image / costs["done"].update_flops_per_image
    assert (deeper.seconds, deeper.is_scaled) == (pytest.approx(6 * factor + 4), True)
    assert estimate(runs[1], costs["longer"], {}) is None


@pytest.mark.medium
@pytest.mark.usefixtures("plain_run")
def test_equal_updates_are_timed_once(tmp_path):
    runs = [planned(tmp_path, "a"), planned(tmp_path, "b", seed=1, optim__lr=1e-4)]
    speeds = timed_speeds(
        runs, {run.name: cost(run) for run in runs}, updates=2, devices=jax.devices()[:1]
    )
    [speed] = speeds.values()
    assert speed.images_per_second > 0 and speed.extra_seconds > 0 and speed.device == "1 x cpu"


@pytest.mark.slow
def test_hours_on_a_pod(tmp_path, capsys, monkeypatch):
    runs = [
        planned(tmp_path, "fits"),
        planned(tmp_path, "longer", total_steps=120),
        planned(tmp_path, "large", batch_size=2**17, model__image_size=(64,)),
        planned(tmp_path, "odd", batch_size=15),
    ]
    with pytest.raises(ConfigError) as error:
        dry_run(runs, topology=parse("v5e:2x2"))
    assert str(error.value).startswith(
        "2 of 4 runs cannot run on 4 TPU v5e chips (2x2): those of mu/4."
    )
    out = capsys.readouterr().out
    hours = [
        [float(end) for end in re.search(r", ([\d.]+) to ([\d.]+) chip-hours", line).groups()]
        for line in out.splitlines()
        if " GiB of a device, " in line
    ]
    assert len(hours) == 2
    assert "does not fit: " in out and "does not split into" in out
    large = re.search(r"([\d.]+) of 15.75 GiB of a device; .*accum_steps=(\d+) .* is enough", out)
    assert 15.75 < float(large[1]) <= 15.75 * int(large[2])
    resnet = {"model__variant": "BiT-R26x1", "model__pool": None, "model__depth": None}
    resnet = planned(tmp_path, "resnet", batch_size=2**20, **resnet)
    assert "is enough" in on_pod(cost(resnet), parse("v5e:2x2")).problem
    assert "without 2 runs that cannot run there" in out
    # Only the pod's memory is named.
    assert "per device" not in out and "memory on one device" not in out and "Time:" not in out
    table = out[out.index("\nmodel ") :].splitlines()[1:]
    names, large_row = table[0].split(), table[2].split()
    assert names[0] == "model" and names[-1] == "fits"
    assert [row.split()[2] for row in table[1:]] == ["3", "1"] and table[1].split()[-1] == "2"
    assert large_row[3:6] == [large[1], "of", "15.75"] and large_row[-3:] == ["-", "-", "no"]
    monkeypatch.setattr(records, "is_finished", lambda workdir, record: workdir.name == "odd")
    with pytest.raises(ConfigError, match="1 of 3 runs cannot run"):
        dry_run(runs, topology=parse("v5e:2x2"))
    assert "without 1 run that cannot run there" in capsys.readouterr().out
    ends = [on_pod(cost(run), parse("v5e:2x2")).chip_hours for run in runs[:2]]
    assert ends[1][0] == pytest.approx(10 * ends[0][0])
    probe = on_pod(cost(planned(tmp_path, "probe", cache_features=True)), parse("v5e:2x2"))
    assert probe.fits and "no plan" in probe.describe()


def test_runs_of_different_length_and_data_share_a_step():
    one = small_config()
    step, code = step_config(one), hash(one)
    changes = {"seed": 3, "total_steps": 7, "optim__lr": 0.5, "data__examples": 20}
    changes |= {"optim__schedule__warmup_steps": 2, "checkpoint__keep_steps": (4,)}
    assert step_config(small_config(**changes)) == step and hash(one) == code
    assert step_config(small_config(batch_size=32)) != step
    assert step_config(small_config(optim__ema_decay=0.9)) != step
    assert step_config(small_config(model__depth=3)) != step


@pytest.mark.slow
def test_a_pod_of_several_slices(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(REAL)
    flags = [f"--config={file}", f"--workdir={tmp_path / 'sweep'}", "--dry_run", "--only=depth*"]
    flags.append("--slices=2")
    done = call("sweep", *flags)
    assert done.code == 2 and "--slices needs --topology" in done.err, done
    done = call("sweep", *flags, "--topology=v5e:2x2", "--price=nan")
    assert done.code == 2 and "--price=nan: give a number" in done.err, done
    done = call("sweep", *flags, "--topology=v5e:2x2", "--price=1e9")
    assert done.code == 0 and "on 8 TPU v5e chips (2 slices of 2x2)" in done.out, done
    line = next(line for line in done.out.splitlines() if line.startswith("Pod:"))
    numbers = [float(each.replace(",", "")) for each in re.findall(r"[\d,]*\d\.?\d*", line)]
    assert "at a cost of" in line and numbers[2] == pytest.approx(numbers[0] * 1e9, abs=5e7), line
