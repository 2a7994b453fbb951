"""The commands as a user types them: one message for a mistake, no traceback, exit code 2.

Programs are compiled as for a user: on one device, and optimised.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.images import make

QUICKSTART = "--config=configs/quickstart.py"

pytestmark = pytest.mark.medium


@pytest.fixture
def call(commands):
    """A function of a verb and flags: runs the command; gives exit code, output and error."""

    def run(verb, *flags):
        result = commands.run(verb, *flags, optimize=True)
        return result.code, result.out, result.err

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([QUICKSTART, "--config.loss.name=softmax"], 'Did you mean "softmax_xent"?'),
        ([QUICKSTART, "--wrkdir=x"], 'There is no flag --wrkdir. Did you mean "--workdir"?'),
        ([], "--config=... is missing"),
    ],
)
def test_a_mistake_is_one_clear_message(call, tmp_path, flags, message):
    code, out, err = call("train", *flags, f"--workdir={tmp_path / 'run'}")
    assert code == 2 and message in err, err
    assert err.startswith("error: ") and "Traceback" not in err + out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_help_shows_the_real_flags(call, verb):
    code, out, _ = call(verb, "--help")
    assert code == 0
    flags = {"train": ("--config=", "--workdir="), "evaluate": ("--workdir=", "--split="),
             "predict": ("--checkpoint=", "--top_k=", "--output=")}[verb]  # fmt: skip
    assert all(flag in out for flag in flags), out


@pytest.mark.parametrize(("verb", "flag"), [("evaluate", "--workdir"), ("predict", "--checkpoint")])
def test_a_missing_checkpoint_is_named(call, tmp_path, verb, flag):
    for path, message in (("nowhere", "does not exist"), ("", "is not the work directory")):
        code, _, err = call(verb, f"{flag}={tmp_path / path}", *(["x.png"] * (verb == "predict")))
        assert code == 2 and message in err and "Traceback" not in err, err


@pytest.mark.parametrize("arguments", [
    ("evaluate", "--workdir=FT"), ("convert", "--inspect=FT"), ("compare", "FT", "FT/a"),
])  # fmt: skip
def test_of_a_folder_of_runs_the_runs_are_named(call, tmp_path, arguments):
    for name in ("a", "b"):
        (tmp_path / "ft" / name).mkdir(parents=True)
        (tmp_path / "ft" / name / "dataset.json").touch()
    (tmp_path / "ft" / "notes").mkdir()
    folder = str(tmp_path / "ft")
    code, _, err = call(*(text.replace("FT", folder) for text in arguments))
    message = f"{folder} holds runs: {folder}/a, {folder}/b. Name one of them."
    assert code == 2 and message in err, err


# ------------------------------------------------------------------------- in a real interpreter


def test_the_same_in_a_shell(tmp_path):
    command = [sys.executable, "-m", "vit_jax.train", QUICKSTART, "--config.optim.lrr=1"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and not any(tmp_path.iterdir())
    assert done.stderr.startswith('error: --config.optim.lrr=1: there is no config key "lrr". Did')


def command_of(main, *, env=None, **streams):
    """Runs a command of which this is all; gives exit code, standard output, standard error."""
    code = f"from vit_jax import cli; cli.run(cli.Command('', lambda values: 0, lambda *_: {main}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, env={**os.environ, **(env or {})},
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode()


def test_a_closed_pipe_ends_a_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    code, _, err = command_of("print('x')", env={"PYTHONUNBUFFERED": ""}, stdout=writer)
    os.close(writer)
    assert (code, err) == (141, "")


def test_a_run_continues_without_output_when_its_pipe_is_closed(tmp_path):
    program = (
        "import pathlib, sys\n"
        "from vit_jax import cli\n"
        "def main(*_):\n"
        "    cli.continue_without_output()\n"
        "    for stream in (sys.stderr, sys.stdout, sys.stderr, sys.stdout):\n"
        "        print('x', file=stream, flush=True)\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "cli.run(cli.Command('', lambda values: 0, main), [])\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    end = tmp_path / "end"
    command = [sys.executable, "-c", program, end]
    done = subprocess.run(command, cwd=ROOT, timeout=60, stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 0 and end.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_standard_output_is_an_error():
    with open("/dev/full", "w") as full:
        code, _, err = command_of("print('x')", env={"PYTHONUNBUFFERED": ""}, stdout=full)
    assert code == 2
    assert err == "error: Standard output cannot be written: No space left on device.\n"


# ------------------------------------------------------------------ in a process of the server


def test_characters_that_a_terminal_lacks_are_escaped(commands):
    result = commands.run(
        "import sys; from vit_jax import cli; sys.stdout.reconfigure(encoding='ascii'); "
        "cli.run(cli.Command('', lambda values: 0, lambda *_: print('\u732b')))"
    )
    assert (result.code, result.out) == (0, "\\u732b\n"), result


def test_warnings_are_printed_without_control_characters(commands):
    result = commands.run(
        "from absl import logging; from vit_jax import cli; "
        r"warn = lambda *_: logging.warning('%s is left out', 'a\x1b[31m\udcff.txt'); "
        "cli.run(cli.Command('', lambda values: 0, warn))"
    )
    assert result.code == 0 and "a\ufffd[31m\ufffd.txt is left out" in result.err, result
    assert "\x1b" not in result.err, result


@pytest.mark.slow
def test_train_evaluate_predict_in_the_shell(call, tmp_path):
    workdir = tmp_path / "run"
    code, out, err = call(
        "train", QUICKSTART, f"--workdir={workdir}", "--config.total_steps=3",
        "--config.model.depth=1", "--config.log.tensorboard=False",
    )  # fmt: skip
    assert code == 0 and "Done:   3 steps" in out and "img/s" in out, err
    code, out, err = call("evaluate", f"--workdir={workdir}", "--split=test[:64]")
    assert code == 0 and "64 examples" in out, err
    assert re.search(r"least accurate classes \(.+\): \d: \d+% of \d+, \d: ", out), out
    folder = workdir / "evaluation-test_64"
    assert json.loads((folder / "evaluation.json").read_text())["count"] == 64
    left = {path.name for path in folder.iterdir()}
    assert left == {
        "evaluation.json", "throughput.json", "confusion.png", "classes.png",
        "predictions.png", "samples",
    }  # fmt: skip
    output, features = tmp_path / "out.csv", tmp_path / "out.npz"
    code, out, err = call(
        "predict", f"--checkpoint={workdir}", f"--output={output}", f"--features={features}",
        folder / "samples",
    )  # fmt: skip
    assert code == 0 and len(output.read_text().splitlines()) == 11, err
    written = f"10 predictions, features of 10 images and 0 errors in {output} and {features}"
    assert written in out and features.is_file()


@pytest.mark.slow
def test_a_folder_of_images_is_learnt(call, tmp_path):
    make(tmp_path / "images", each=80)
    workdir = tmp_path / "run"
    code, _, err = call(
        "train", f"--config=configs/image_folder.py:root={tmp_path / 'images'},size=32,epochs=15",
        f"--workdir={workdir}",
    )  # fmt: skip
    assert code == 0, err
    code, _, err = call("evaluate", f"--workdir={workdir}")
    report = json.loads((workdir / "evaluation.json").read_text())
    assert code == 0 and report["class_names"] == ["flower", "portrait", "temple"], err
    assert report["top1"] > 0.7
    (tmp_path / "images" / "broken.jpg").write_text("not an image")
    output = tmp_path / "out.jsonl"
    code, _, err = call(
        "predict", f"--checkpoint={workdir}", f"--output={output}", tmp_path / "images"
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    right = [row["classes"][0] == row["path"].split("/")[-2] for row in rows if not row["error"]]
    assert code == 1 and len(rows) == 241, err
    assert len(right) == 240 and sum(right) > 0.75 * 240
