"""The front doors as a user types them: one message for a mistake, no traceback, exit code 2."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.small_run import run

QUICKSTART = "--config=configs/quickstart.py"


def call(verb, *flags):
    """Runs `python -m vit_jax.VERB`; gives exit code, standard output, standard error."""
    command = [sys.executable, "-m", f"vit_jax.{verb}", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([QUICKSTART, "--config.optim.lrr=1"], 'no config key "lrr". Did you mean "lr"?'),
        ([QUICKSTART, "--config.optim.lr=abc"], "could not convert string to float: 'abc'"),
        ([QUICKSTART, "--config.data.train_transforms[9].size=1"], "tuple index out of range"),
        ([QUICKSTART, "--config.loss.name=softmax"], 'Did you mean "softmax_xent"?'),
        ([QUICKSTART, "--wrkdir=x"], "Did you mean: workdir"),
        ([QUICKSTART, "extra"], "What is 'extra'?"),
        (["--config=configs/quickstar.py"], 'Did you mean "configs/quickstart.py"?'),
        (["--config=configs/fashion_mnist.py:epoch=3"], 'Did you mean "epochs"?'),
        (["--config=configs/fashion_mnist.py:epochs=x"], 'epochs="x" is not a float'),
        (["--config=setup_missing/none.py"], "there is no such file"),
        ([], "--config must have a value"),
    ],
)
def test_a_mistake_is_one_clear_message(tmp_path, flags, message):
    code, out, err = call("train", *flags, f"--workdir={tmp_path / 'run'}")
    assert code == 2 and message in err, err
    assert err.startswith("error: ") and "Traceback" not in err + out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_help_shows_the_real_flags(verb):
    _, out, _ = call(verb, "--help")
    flags = {"train": ("--config:", "--workdir:"), "evaluate": ("--workdir:", "--split:"),
             "predict": ("--checkpoint:", "--top_k:", "--output:")}[verb]  # fmt: skip
    assert all(flag in out for flag in flags), out


@pytest.mark.parametrize(("verb", "flag"), [("evaluate", "--workdir"), ("predict", "--checkpoint")])
def test_no_checkpoint_is_said(tmp_path, verb, flag):
    for path, message in (("nowhere", "does not exist"), ("", "is not the work directory")):
        code, _, err = call(verb, f"{flag}={tmp_path / path}", *(["x.png"] * (verb == "predict")))
        assert code == 2 and message in err and "Traceback" not in err, err


def test_train_evaluate_predict_in_the_shell(tmp_path):
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
    code, out, err = call(
        "predict", f"--checkpoint={workdir}", f"--output={output}", folder / "samples"
    )
    assert code == 0 and len(output.read_text().splitlines()) == 11, err
