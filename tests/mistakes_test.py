"""What users do wrong, through the real front doors: one message, exit code 2, nothing lost."""

import os
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests import mistakes_paths, mistakes_table, mistakes_values
from tests.mistakes import ROOT, Answer, Doors, contents
from tests.mistakes_places import SMALL, make_places

QUICKSTART = f"{ROOT}/configs/quickstart.py"


@pytest.fixture(scope="module")
def doors():
    with Doors() as doors:
        yield doors


@pytest.fixture(scope="module")
def places(doors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    make_places(folder, doors)
    return folder


@pytest.fixture
def unchanged(places):
    before = contents(places)
    yield
    assert contents(places) == before


def rows(*tables):
    """A test for each row of these tables: what is typed, and what must be said."""
    whole = [(name, row) for table in tables for name, row in table.items()]
    return pytest.mark.parametrize(
        ("typed", "said"),
        [pytest.param(typed, said, id=name) for name, (typed, *said) in whole],
    )


def words(typed, workdir):
    """The flags of train that a row means."""
    typed = typed.replace("QUICKSTART", QUICKSTART).replace("CONFIGS", f"{ROOT}/configs")
    flags = shlex.split(typed)
    if "NO_CONFIG" in flags:
        flags.remove("NO_CONFIG")
    elif not any(flag.startswith("--config=") for flag in flags):
        flags.insert(0, f"--config={QUICKSTART}")
    if "NO_WORKDIR" in flags:
        flags.remove("NO_WORKDIR")
    elif not any(flag.startswith("--workdir") for flag in flags):
        flags.append(f"--workdir={workdir}")
    return flags


def check(answer: Answer, said, workdir=None):
    """It is one message that says so, and nothing was begun."""
    assert answer.code == 2, answer
    assert answer.err.startswith("error: "), answer.err
    assert "Traceback" not in answer.err + answer.out and "\x1b" not in answer.err + answer.out
    for text in said:
        assert text in answer.err, f"{text!r} is not in {answer.err!r}"
    left = {path.name for path in workdir.rglob("*") if path.is_file()} if workdir else set()
    assert left <= {"lock", "config.json", "dataset.json"}, left


# --------------------------------------------------------------------------------------- train


@rows(
    mistakes_table.COMMAND_LINE, mistakes_values.MODEL, mistakes_values.NUMBERS,
    mistakes_values.LENGTHS, mistakes_paths.DATA, mistakes_paths.RUNS,
)  # fmt: skip
def test_train(doors, places, unchanged, tmp_path, typed, said):
    workdir = tmp_path / "work"
    check(doors.call("train", *words(typed, workdir), cwd=places), said, workdir)


@rows(mistakes_table.CONFIG_FILE)
def test_a_file_of_ones_own(doors, places, unchanged, tmp_path, typed, said):
    workdir, config = tmp_path / "work", tmp_path / "config.py"
    config.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n    c = quickstart.get_config()\n"
        + textwrap.indent(typed, "    ") + "\n    return c\n"
    )  # fmt: skip
    check(doors.call("train", *words(f"--config={config}", workdir), cwd=places), said, workdir)


@rows(mistakes_values.MESH)
def test_train_on_eight_devices(doors, places, unchanged, tmp_path, typed, said):
    workdir = tmp_path / "work"
    answer = doors.call("train", *words(typed, workdir), cwd=places, devices=8)
    check(answer, said, workdir)


@pytest.mark.slow
def test_a_batch_larger_than_the_data_is_no_mistake(doors, tmp_path):
    answer = doors.call(
        "train", f"--config={QUICKSTART}", f"--workdir={tmp_path}", "--config.batch_size=2000",
        "--config.total_steps=1", "--config.model.depth=1", "--config.log.tensorboard=False",
    )  # fmt: skip
    assert answer.code == 0 and "1.387 epochs" in answer.out, answer


def test_a_changed_run_that_cannot_begin_is_as_it_was(doors, places, tmp_path):
    shutil.copytree(places / "run", tmp_path / "run")
    answer = doors.call(
        "train", f"--config={QUICKSTART}", f"--workdir={tmp_path / 'run'}", *SMALL,
        "--allow_config_change", "--config.total_steps=5",
        "--config.data.train_transforms[0].channels=3",
    )  # fmt: skip
    check(answer, ["data.train_transforms make images of height, width, channels (8, 8, 3)"])
    assert contents(tmp_path / "run") == contents(places / "run")


# -------------------------------------------------------------------------- evaluate and predict


@rows(mistakes_paths.EVALUATE)
def test_evaluate(doors, places, unchanged, typed, said):
    check(doors.call("evaluate", *shlex.split(typed), cwd=places), said)


@rows(mistakes_paths.PREDICT)
def test_predict(doors, places, unchanged, typed, said):
    check(doors.call("predict", *shlex.split(typed), cwd=places), said)


@rows(mistakes_paths.PREDICT_SOME)
def test_predict_what_can_be(doors, places, unchanged, typed, said):
    answer = doors.call("predict", *shlex.split(typed), cwd=places)
    assert answer.code == 1 and "Traceback" not in answer.err, answer
    for text in said:
        assert text in answer.out


# --------------------------------------------------------------------------- as a real shell does


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("vit_jax.train --config=configs/quickstart.py --workdir={} --config.optim.lrr=1", 2,
         'error: --config.optim.lrr=1: there is no config key "lrr". Did you mean "lr"?'),
        ("vit_jax.evaluate --workdir={}/nowhere", 2, "error: {}/nowhere does not exist.\n"),
        ("vit_jax.predict --checkpoint={} x.png", 2, "error: {} is not the work directory of a"),
    ],
)  # fmt: skip
def test_the_same_in_a_shell(tmp_path, command, code, said):
    words = [word.replace("{}", str(tmp_path)) for word in command.split()]
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == code and done.stderr.startswith(said.replace("{}", str(tmp_path)))
    assert "Traceback" not in done.stderr and not any(tmp_path.iterdir())
