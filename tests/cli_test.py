"""The commands as a user types them: one message for a mistake, no traceback, exit code 2.

Programs are compiled as for a user: on one device, and optimised. (A run in hostile_test is
trained, evaluated and predicted from by the commands, too, without the compiler's optimisation.)
"""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, slow
from tests.images import make
from tests.many_processes import ends, processes
from vit_jax.telemetry.jsonlines import read_jsonl

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
        ([QUICKSTART, "--config.optim.lrr=1"], 'no config key "lrr". Did you mean "lr"?'),
        ([QUICKSTART, "--config.optim.lr=abc"], "--config.optim.lr=abc: write a number"),
        ([QUICKSTART, "--config.data.train_transforms[9].size=1"], "there is no [9]"),
        ([QUICKSTART, "--config.loss.name=softmax"], 'Did you mean "softmax_xent"?'),
        ([QUICKSTART, "--wrkdir=x"], "Did you mean: workdir"),
        ([QUICKSTART, "extra"], "What is 'extra'?"),
        (["--config=configs/quickstar.py"], 'Did you mean "configs/quickstart.py"?'),
        (["--config=configs/fashion_mnist.py:epoch=3"], 'Did you mean "epochs"?'),
        (["--config=configs/fashion_mnist.py:epochs=x"], 'epochs="x" is not a float'),
        (["--config=setup_missing/none.py"], "there is no such file"),
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
    _, out, _ = call(verb, "--help")
    flags = {"train": ("--config:", "--workdir:"), "evaluate": ("--workdir:", "--split:"),
             "predict": ("--checkpoint:", "--top_k:", "--output:")}[verb]  # fmt: skip
    assert all(flag in out for flag in flags), out


@pytest.mark.parametrize(("verb", "flag"), [("evaluate", "--workdir"), ("predict", "--checkpoint")])
def test_no_checkpoint_is_said(call, tmp_path, verb, flag):
    for path, message in (("nowhere", "does not exist"), ("", "is not the work directory")):
        code, _, err = call(verb, f"{flag}={tmp_path / path}", *(["x.png"] * (verb == "predict")))
        assert code == 2 and message in err and "Traceback" not in err, err


# ------------------------------------------------------------------------- in a real interpreter


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("vit_jax.train --config=configs/quickstart.py --workdir={} --config.optim.lrr=1", 2,
         'error: --config.optim.lrr=1: there is no config key "lrr". Did you mean "lr"?'),
        slow("vit_jax.evaluate --workdir={}/nowhere", 2, "error: {}/nowhere does not exist.\n"),
        slow("vit_jax.predict --checkpoint={} x.png", 2,
             "error: {} is not the work directory of a"),
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


def command_of(main, *, env=None, **streams):
    """Runs a command of which this is all; gives exit code, standard output, standard error."""
    code = f"from vit_jax import cli; cli.run(lambda argv: {main})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, env={**os.environ, **(env or {})},
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("unbuffered", ["", slow("1")])
def test_a_reader_that_leaves_ends_it_quietly(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    code, _, err = command_of("print('x')", env={"PYTHONUNBUFFERED": unbuffered}, stdout=writer)
    os.close(writer)
    assert (code, err) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_output_that_is_full_is_said():
    with open("/dev/full", "w") as full:
        code, _, err = command_of("print('x')", env={"PYTHONUNBUFFERED": ""}, stdout=full)
    assert code == 2
    assert err == "error: Standard output cannot be written: No space left on device.\n"


# ------------------------------------------------------------------ in a process of the server


def test_a_terminal_without_the_letters_gets_their_numbers(commands):
    result = commands.run(
        "import sys; from vit_jax import cli; sys.stdout.reconfigure(encoding='ascii'); "
        "cli.run(lambda argv: print('\u732b'))"
    )
    assert (result.code, result.out) == (0, "\\u732b\n"), result


def test_warnings_are_shown_and_not_obeyed(commands):
    result = commands.run(
        "from absl import logging; from vit_jax import cli; "
        r"cli.run(lambda argv: logging.warning('%s is left out', 'a\x1b[31m\udcff.txt'))"
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
    assert code == 0 and "Done: 3 steps" in out and "img/s" in out, err
    code, out, err = call("evaluate", f"--workdir={workdir}", "--split=test[:64]")
    assert code == 0 and "64 examples" in out, err
    folder = workdir / "evaluation-test_64"
    assert json.loads((folder / "evaluation.json").read_text())["count"] == 64
    left = {path.name for path in folder.iterdir()}
    assert left == {"evaluation.json", "confusion.png", "predictions.png", "samples"}
    output = tmp_path / "out.csv"
    code, _, err = call(
        "predict", f"--checkpoint={workdir}", f"--output={output}", folder / "samples"
    )
    assert code == 0 and len(output.read_text().splitlines()) == 11, err


@pytest.mark.slow
def test_a_folder_of_pictures_is_learnt(call, tmp_path):
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


@pytest.mark.slow
def test_a_run_is_killed_for_real_and_goes_on_to_the_same_bits(call, commands, tmp_path):
    flags = [
        QUICKSTART, "--config.total_steps=30", "--config.checkpoint.every_steps=5",
        "--config.log.every_steps=1", "--config.log.tensorboard=False",
        "--config.model.dropout=0.1", "--config.model.depth=1",
    ]  # fmt: skip
    assert call("train", *flags, f"--workdir={tmp_path / 'whole'}")[0] == 0
    killed = commands.start("train", *flags, f"--workdir={tmp_path / 'killed'}", optimize=True)
    while not any((tmp_path / "killed" / "checkpoints").glob("1[05]")):
        assert killed.text("err") == ""
        time.sleep(0.05)
    killed.kill()
    assert killed.wait().code == -9
    assert call("train", *flags, f"--workdir={tmp_path / 'killed'}")[0] == 0
    whole, again = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "killed"))
    assert whole == again and whole.count(b"\n") == 30


@pytest.mark.slow
def test_two_processes_train_as_one(call, tmp_path):
    flags = [
        QUICKSTART, "--config.total_steps=6", "--config.log.every_steps=1",
        "--config.log.tensorboard=False", "--config.mesh.fsdp=2",
    ]  # fmt: skip
    command = ["vit_jax.train", *flags, f"--workdir={tmp_path / 'two'}"]
    with processes([command, command]) as both:
        for process in both:
            code, err = ends(process)
            assert code == 0, err
    assert call("train", *flags, "--config.mesh.fsdp=1", f"--workdir={tmp_path / 'one'}")[0] == 0
    two, one = (read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("two", "one"))
    assert len(two) == 6
    for a, b in zip(two, one, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-5)
    assert two[-1]["test/count"] == one[-1]["test/count"] == 355
