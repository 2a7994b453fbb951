"""Points of a sweep become runs; invalid points are refused."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.sweep_runs import NAMES, REAL, plan
from vit_jax import cli
from vit_jax.config import freeze, thaw
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.rundir import workdir as workdirs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.plan import check_unchanged, plan_runs


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(REAL)
    return path


def test_a_point_is_a_command_and_the_config_that_the_command_gives(tmp_path, file):
    point = {
        ":depth": 2,
        "optim.lr": np.float32(0.25),
        "data.examples": np.int64(100),
        "checkpoint.keep_steps": (3, 5),
        "log.tensorboard": True,
        "model.variant": "s/4",
        "total_examples": None,
    }
    (run,) = plan([point], tmp_path / "S", file, **{"optim.b1": 0.5})
    assert run.flags == (
        f"--config={file}:depth=2",
        "--config.optim.b1=0.5",
        "--config.optim.lr=0.25",
        "--config.data.examples=100",
        "--config.checkpoint.keep_steps=(3, 5)",
        "--config.log.tensorboard=true",
        "--config.model.variant=s/4",
        "--config.total_examples=None",
    )
    assert run.command[1:] == ["-m", "vit_jax.train", *run.flags, f"--workdir={run.workdir}"]
    c = run.config
    assert (c.model.depth, c.optim.lr, c.optim.b1, c.data.examples) == (2, 0.25, 0.5, 100)
    assert c.checkpoint.keep_steps == (3, 5) and c.log.tensorboard is True
    assert run.workdir == tmp_path / "S" / run.name
    json.dumps(dict(run.values))


def test_a_point_overrides_the_argument_of_the_sweep(tmp_path, file):
    def flags(argument, point):
        (run,) = plan_runs(
            [point], file=str(file), argument=argument, overrides={}, folder=tmp_path,
            configure=cli.config_of,
        )  # fmt: skip
        return run.flags[0]

    assert flags("depth=3", {"seed": 1}) == f"--config={file}:depth=3"
    assert flags("depth=3", {":depth": 1}) == f"--config={file}:depth=1"
    assert flags("", {"seed": 1}) == f"--config={file}"


def test_a_branch_has_one_state_to_resume(tmp_path, file):
    points = [{"name": "trunk"}, {"name": "branch", "branch_of": ("trunk", 5)}]
    with pytest.raises(
        ConfigError, match="branch: it is a branch, and the command line sets --con"
    ):
        plan(points, tmp_path, file, resume="runs/other")


def test_a_duration_in_another_unit_overrides_the_files(tmp_path, file):
    (run,) = plan([{"total_epochs": 2.0}], tmp_path, file)
    assert (run.config.total_epochs, run.config.total_steps) == (2.0, None)


def test_a_branch_comes_after_its_trunk_and_begins_with_its_state(tmp_path, file):
    branch = {"name": "branch", "branch_of": ("trunk", 5), "total_steps": 8}
    trunk = {"name": "trunk", "checkpoint.keep_steps": (5,)}
    runs = plan([branch, trunk], tmp_path, file)
    assert [run.name for run in runs] == ["trunk", "branch"]
    assert runs[1].config.resume == str(tmp_path / "trunk" / "checkpoints" / "5")
    assert runs[1].branch_of == ("trunk", 5)


def test_a_branch_that_has_begun_keeps_its_path(tmp_path, file):
    """The sweep's folder was moved meanwhile: the run's config is not another one for that."""
    points = [
        {"name": "trunk", "checkpoint.keep_steps": (5,)},
        {"name": "branch", "branch_of": ("trunk", 5)},
    ]
    begin(plan(points, tmp_path / "old", file)[1])
    (tmp_path / "old").rename(tmp_path / "new")
    branch = plan(points, tmp_path / "new", file)[1]
    assert branch.config.resume == str(tmp_path / "old" / "trunk" / "checkpoints" / "5")
    check_unchanged(branch)

    # The same of one that has finished, and of which only the files of a few bytes were kept.
    shutil.rmtree(branch.workdir / workdirs.CHECKPOINTS)
    records.change(branch.workdir, status="finished")
    (tmp_path / "new").rename(tmp_path / "newer")
    check_unchanged(plan(points, tmp_path / "newer", file)[1])


def test_explicit_names(tmp_path, file):
    module = {}
    exec(REAL, module)
    runs = plan(module["sweep"](), tmp_path, file)
    assert tuple(run.name for run in runs) == NAMES


BAD = {
    "no points": ([], "returned no point"),
    "no dict": ([("seed", 1)], "point 0 is ('seed', 1)"),
    "same names": ([{"seed": 1}, {"seed": 1}], "two points have the name seed=1"),
    "a path": (
        [{"name": "../up", "seed": 1}],
        "'../up' cannot be the name of a run and its folder",
    ),
    "wrong key": ([{"name": "a", "optim.lrr": 1}], 'sweep(), a: .*Did you mean "lr"'),
    "wrong value": ([{"name": "a", "optim.lr": "fast"}], "sweep(), a: .*write a number"),
    "a section": ([{"name": "a", "optim": {"lr": 1}}], "cannot be the value of a key"),
    "a comma": (
        [{"name": "a", ":depth": "1,2"}],
        ":depth is '1,2': an argument cannot contain a comma",
    ),
    "resume": ([{"name": "a", "resume": "x"}], 'write "branch_of"'),
    "no pair": ([{"name": "a", "branch_of": "b"}], "branch_of is 'b'"),
    "no trunk": ([{"name": "abc"}, {"name": "x", "branch_of": ("abd", 3)}], 'mean "abc"'),
    "a circle": (
        [{"name": "a", "branch_of": ("b", 1)}, {"name": "b", "branch_of": ("a", 1)}],
        "branch_of forms a cycle: a -> b -> a",
    ),
    "beyond the end": (
        [{"name": "a", "checkpoint.keep_every_steps": 4}, {"name": "b", "branch_of": ("a", 16)}],
        "step 16 of a, which has 12: choose",
    ),
    "nothing left to do": (
        [
            {"name": "a", "checkpoint.keep_steps": (5,)},
            {"name": "b", "branch_of": ("a", 5), "total_steps": 5},
        ],
        "starts from step 5 of a, but has only 5 steps",
    ),
    "not kept": ([{"name": "a"}, {"name": "b", "branch_of": ("a", 5)}], "does not keep the state"),
}


@pytest.mark.parametrize("points, message", BAD.values(), ids=BAD.keys())
def test_invalid_points_are_refused(tmp_path, file, points, message):
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(ConfigError, match=pattern.replace("sweep(), a: .*", r"sweep\(\), a: .*")):
        plan(points, tmp_path, file)


@pytest.mark.parametrize("key, taken", [("optim.lr", "optim.lr"), ("total_steps", "total_epochs")])
def test_a_key_that_the_command_line_sets_for_all(tmp_path, file, key, taken):
    with pytest.raises(ConfigError, match=f"sets {key}, and the command line .*{taken}"):
        plan([{key: 1}], tmp_path, file, **{taken: 2.0})


def begin(run, config=None):
    """What a run leaves behind when it has saved for the first time."""
    (run.workdir / "checkpoints" / "4").mkdir(parents=True)
    workdirs.claim(run.workdir, config or run.config, {})


def test_a_run_that_has_begun_keeps_its_config(tmp_path, file):
    (run,) = plan([{"name": "a", "optim.lr": 0.1}], tmp_path, file)
    begin(run)
    check_unchanged(run)
    (skipping,) = plan([{"name": "a", "optim.lr": 0.1, "data.on_bad": "skip"}], tmp_path, file)
    check_unchanged(skipping)  # Until now, it had no bad example.
    (other,) = plan([{"name": "a", "optim.lr": 0.2}], tmp_path, file)
    with pytest.raises(
        ConfigError, match=r"another config than a has now:\n  optim.lr: 0.1 -> 0.2"
    ):
        check_unchanged(other)
    # One that had finished, too, though its checkpoints were deleted.
    (run.workdir / "checkpoints" / "4").rmdir()
    check_unchanged(other)
    records.change(run.workdir, status="finished")
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        check_unchanged(other)


def test_settings_from_the_checkpoint_are_no_change(tmp_path, file):
    """A run that starts from a published model writes down what that is."""
    (run,) = plan([{"name": "a", "init_from": "x", "model.variant": ""}], tmp_path, file)
    filled = thaw(run.config)
    with filled.unlocked():
        filled.model.variant, filled.model.width = "S/16", 384
    begin(run, freeze(filled))
    check_unchanged(run)


@pytest.mark.parametrize(
    "content",
    ['{"status": "perhaps"}', '{"branch_of": 3}', '{"status": "fin'],
)
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / records.RECORD).write_text(content)
    with pytest.raises(CheckpointError, match=f"(?s){records.RECORD} cannot be read.*delete it"):
        records.read(tmp_path)


def test_a_record_of_another_release(tmp_path):
    """A key that this one does not know is passed by."""
    plain = {"name": "a", "status": "failed", "attempts": 2, "branch_of": ["b", 3], "new": 1}
    (tmp_path / records.RECORD).write_text(json.dumps(plain))
    record = records.read(tmp_path)
    assert (record.status, record.attempts, record.branch_of) == ("failed", 2, ("b", 3))
