"""Mistakes of users: the commands print one message, exit with code 2 and change nothing.

The commands run in this process; cli_test runs some in a process of their own.
"""

import shlex
import shutil
import textwrap

import pytest

from tests import mistakes_table as table
from tests.commands import ROOT, Result, call
from tests.folders import contents
from tests.mistakes_folder import make_files, make_runs
from tests.small_run import run

QUICKSTART = f"{ROOT}/configs/quickstart.py"

# Orbax leaves tasks of a read that failed to an event loop that is closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leaves_nothing"),
]


def _unchanged(folder):
    """Yields a folder that the tests of a module do not change."""
    before = contents(folder)
    yield folder
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    yield from _unchanged(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, finished_run):
    folder = tmp_path_factory.mktemp("runs")
    make_files(folder)
    make_runs(folder, finished_run)
    yield from _unchanged(folder)


# Mistakes that are only found once a program has been compiled.
LATE = {
    "channels of one of the two",
    "transforms of another size",
    "layer that the mesh does not divide",
}


def rows(*tables):
    """Parametrises a test with what is typed and the texts of the message, for each row."""
    return pytest.mark.parametrize(
        ("typed", "texts"),
        [
            pytest.param(typed, texts, id=name, marks=[pytest.mark.medium] * (name in LATE))
            for rows_of_table in tables
            for name, (typed, *texts) in rows_of_table.items()
        ],
    )


def flags_of(typed, workdir, config=QUICKSTART):
    """The flags of train that a row means."""
    typed = typed.replace("QUICKSTART", QUICKSTART).replace("CONFIGS", f"{ROOT}/configs")
    flags = shlex.split(typed)
    if "NO_CONFIG" in flags:
        flags.remove("NO_CONFIG")
    elif not any(flag.startswith("--config=") for flag in flags):
        flags.insert(0, f"--config={config}")
    if "NO_WORKDIR" in flags:
        flags.remove("NO_WORKDIR")
    elif not any(flag.startswith("--workdir") for flag in flags):
        flags.append(f"--workdir={workdir}")
    return flags


def check(result: Result, texts, workdir=None):
    """The result is one message with these texts, and no run was started."""
    assert result.code == 2, result
    assert result.err.startswith("error: "), result.err
    assert "Traceback" not in result.err + result.out and "\x1b" not in result.err + result.out
    for text in texts:
        assert text in result.err, f"{text!r} is not in {result.err!r}"
    left = {path.name for path in workdir.rglob("*") if path.is_file()} if workdir else set()
    assert left <= {"lock", "config.json", "dataset.json"}, left


# --------------------------------------------------------------------------------------- train


@rows(
    table.COMMAND_LINE, table.MODEL, table.NUMBERS,
    table.LENGTHS, table.MESH, table.DATA,
)  # fmt: skip
def test_train(files, tmp_path, typed, texts):
    workdir = tmp_path / "work"
    check(call("train", *flags_of(typed, workdir), cwd=files), texts, workdir)


@rows(table.CONFIG_FILE)
def test_a_config_file_of_the_user(files, tmp_path, typed, texts):
    workdir, config = tmp_path / "work", tmp_path / "config.py"
    config.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n    c = quickstart.get_config()\n"
        + textwrap.indent(typed, "    ") + "\n    return c\n"
    )  # fmt: skip
    check(call("train", *flags_of(f"--config={config}", workdir), cwd=files), texts, workdir)


@pytest.mark.medium
@rows(table.RUNS)
def test_other_runs(runs, tmp_path, typed, texts):
    workdir = tmp_path / "work"
    check(call("train", *flags_of(typed, workdir, "small.py"), cwd=runs), texts, workdir)


@pytest.mark.medium
def test_a_changed_run_that_cannot_begin_is_as_it_was(runs, tmp_path):
    shutil.copytree(runs / "run", tmp_path / "run")
    result = call(
        "train", "--config=small.py", f"--workdir={tmp_path / 'run'}", "--allow_config_change",
        "--config.total_steps=15", "--config.data.train_transforms[0].channels=3", cwd=runs,
    )  # fmt: skip
    check(result, ["data.train_transforms make images of height, width, channels (8, 8, 3)"])
    assert contents(tmp_path / "run") == contents(runs / "run")


@pytest.mark.slow
def test_a_batch_larger_than_the_data_is_no_mistake(tmp_path, capsys):
    run(tmp_path, batch_size=2000, total_steps=1, optim__schedule__warmup_steps=None, evals={})
    assert "1.387 epochs" in capsys.readouterr().out


# -------------------------------------------------------------------------- evaluate and predict


@pytest.mark.medium
@rows(table.EVALUATE)
def test_evaluate(runs, typed, texts):
    check(call("evaluate", *shlex.split(typed), cwd=runs), texts)


@pytest.mark.medium
@rows(table.PREDICT)
def test_predict(runs, typed, texts):
    check(call("predict", *shlex.split(typed), cwd=runs), texts)


@pytest.mark.medium
@rows(table.PREDICT_SOME)
def test_predict_reports_each_image(runs, typed, texts):
    result = call("predict", *shlex.split(typed), cwd=runs)
    assert result.code == 1 and "Traceback" not in result.err, result
    for text in texts:
        assert text in result.out
