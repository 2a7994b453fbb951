"""What users do wrong, told by the commands: one message, exit code 2, nothing lost.

The commands run in this process: cli_test has some of these mistakes in a process of its own.
"""

import shlex
import shutil
import textwrap

import pytest

from tests import mistakes_paths, mistakes_table, mistakes_values
from tests.commands import ROOT, Result, call
from tests.folders import contents
from tests.mistakes_places import make_data_sets, make_files, make_runs
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


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_sets")
    make_data_sets(folder)
    yield from _unchanged(folder)


# Mistakes that are noticed when a program has been compiled.
LATE = {
    "channels of one of the two",
    "transforms of another size",
    "layer that the mesh does not divide",
}


def rows(*tables):
    """A test for each row of these tables: what is typed, and what must be said."""
    return pytest.mark.parametrize(
        ("typed", "said"),
        [
            pytest.param(typed, said, id=name, marks=[pytest.mark.medium] * (name in LATE))
            for table in tables
            for name, (typed, *said) in table.items()
        ],
    )


def words(typed, workdir, config=QUICKSTART):
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


def check(result: Result, said, workdir=None):
    """It is one message that says so, and nothing was begun."""
    assert result.code == 2, result
    assert result.err.startswith("error: "), result.err
    assert "Traceback" not in result.err + result.out and "\x1b" not in result.err + result.out
    for text in said:
        assert text in result.err, f"{text!r} is not in {result.err!r}"
    left = {path.name for path in workdir.rglob("*") if path.is_file()} if workdir else set()
    assert left <= {"lock", "config.json", "dataset.json"}, left


# --------------------------------------------------------------------------------------- train


@rows(
    mistakes_table.COMMAND_LINE, mistakes_values.MODEL, mistakes_values.NUMBERS,
    mistakes_values.LENGTHS, mistakes_values.MESH, mistakes_paths.DATA,
)  # fmt: skip
def test_train(files, tmp_path, typed, said):
    workdir = tmp_path / "work"
    check(call("train", *words(typed, workdir), cwd=files), said, workdir)


@rows(mistakes_table.CONFIG_FILE)
def test_a_file_of_ones_own(files, tmp_path, typed, said):
    workdir, config = tmp_path / "work", tmp_path / "config.py"
    config.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n    c = quickstart.get_config()\n"
        + textwrap.indent(typed, "    ") + "\n    return c\n"
    )  # fmt: skip
    check(call("train", *words(f"--config={config}", workdir), cwd=files), said, workdir)


@pytest.mark.medium
@rows(mistakes_paths.DATA_SETS)
def test_data_sets(data_sets, tmp_path, typed, said):
    workdir = tmp_path / "work"
    check(call("train", *words(typed, workdir), cwd=data_sets), said, workdir)


@pytest.mark.medium
@rows(mistakes_paths.RUNS)
def test_other_runs(runs, tmp_path, typed, said):
    workdir = tmp_path / "work"
    check(call("train", *words(typed, workdir, "small.py"), cwd=runs), said, workdir)


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
@rows(mistakes_paths.EVALUATE)
def test_evaluate(runs, typed, said):
    check(call("evaluate", *shlex.split(typed), cwd=runs), said)


@pytest.mark.medium
@rows(mistakes_paths.PREDICT)
def test_predict(runs, typed, said):
    check(call("predict", *shlex.split(typed), cwd=runs), said)


@pytest.mark.medium
@rows(mistakes_paths.PREDICT_SOME)
def test_predict_what_can_be(runs, typed, said):
    result = call("predict", *shlex.split(typed), cwd=runs)
    assert result.code == 1 and "Traceback" not in result.err, result
    for text in said:
        assert text in result.out
