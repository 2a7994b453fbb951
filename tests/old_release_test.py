"""Runs of older releases can be evaluated, predicted from and continued."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.small_run import mesh_of
from vit_jax.checkpoints.load import load_run
from vit_jax.config import freeze, thaw
from vit_jax.data import transforms
from vit_jax.data.sources import open_source
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.predict import predict
from vit_jax.models import Vit, read_section
from vit_jax.parallel.rules import path_name
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.run import train

pytestmark = pytest.mark.medium
FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
RELEASES = ("0.1.0", pytest.param("0.2.0", marks=pytest.mark.slow))


@pytest.fixture(params=RELEASES)
def release(request, tmp_path):
    """A copy of a work directory of a release, and expected outputs of its model."""
    workdir = tmp_path / "run"
    shutil.copytree(FIXTURES / f"workdir-{request.param}", workdir)
    expected = json.loads((FIXTURES / f"workdir-{request.param}.json").read_text())
    return workdir, expected


def digits(run, count):
    """Returns the first test digits, prepared for the model."""
    source = open_source(run.config.data, split="test")
    cfg = read_section(run.config.model, num_classes=source.num_classes)
    build = transforms.compose(run.config.data.eval_transforms, image_size=cfg.image_size)
    rng = np.random.default_rng(0)
    return np.stack([build(source[i], rng)["image"] for i in range(count)]), source, cfg


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_the_same_logits(release, sizes):
    workdir, expected = release
    run = load_run(workdir, mesh=mesh_of(*sizes))
    images, _, cfg = digits(run, 3)
    logits, _ = jax.jit(Vit(cfg).apply)({"params": run.params}, jnp.asarray(images))
    want = np.array(expected["logits"], np.float32)
    assert logits.dtype == np.float32 and np.abs(want).max() > 1
    np.testing.assert_allclose(logits, want, atol=1e-6, rtol=1e-6)


def test_it_would_start_from_the_same_parameters(release):
    """Keys that later releases added, with the value None, do not change the initial parameters."""
    workdir, expected = release
    config = workdirs.read_config(workdir)
    cfg = read_section(config.model, num_classes=10)
    images = jnp.zeros((1, *cfg.image_size, cfg.channels))
    params = jax.jit(Vit(cfg).init)(jax.random.key(config.seed), images)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        # Equal bits with that release's JAX; another version may round differently.
        want = expected["initial"].pop(path_name(path))
        np.testing.assert_allclose(leaf.ravel()[:3], want, rtol=1e-6, err_msg=path_name(path))
    assert not expected["initial"]


def test_it_is_evaluated_and_predicted_from(release, tmp_path):
    workdir, expected = release
    report = evaluate(workdir).report
    for name, value in expected["evaluation"].items():
        exact = name in ("top1", "top5", "count")
        assert getattr(report, name) == (value if exact else pytest.approx(value, rel=1e-5)), name

    run = load_run(workdir, mesh=mesh_of(fsdp=8))
    _, source, _ = digits(run, 3)
    paths = []
    for i in range(3):
        # Digits are 8 by 8 pixels, so an image file of one is not resized.
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(source[i]["image"].squeeze().astype(np.uint8)).save(paths[-1])
    best = [prediction.classes[0] for prediction in predict(workdir, paths, top_k=1)]
    assert best == [str(np.argmax(row)) for row in expected["logits"]]


@pytest.mark.slow
def test_it_is_trained_further(release):
    workdir, _ = release
    before = (workdir / "metrics.jsonl").read_bytes()
    config = thaw(workdirs.read_config(workdir))
    assert config.total_steps == 400
    config.total_steps = 450
    devices = jax.devices()[:1]
    assert train(freeze(config), workdir, devices=devices, allow_config_change=True) == 0
    after = (workdir / "metrics.jsonl").read_bytes()
    assert after.startswith(before)
    (line,) = read_jsonl(workdir / "metrics.jsonl")[len(before.splitlines()) :]
    assert line["step"] == 450 and line["test/count"] == 355
    # It continued, and did not start from the beginning: the loss of an untrained model is 2.3.
    assert line["test/loss"] < 2.0
    assert not list(workdir.glob("checkpoints.broken*"))


def test_it_is_the_finished_run_of_its_own_config(release):
    """The same command changes nothing: keys of later releases are no difference."""
    workdir, _ = release
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train(workdirs.read_config(workdir), workdir, devices=jax.devices()[:1]) == 0
    assert (workdir / "metrics.jsonl").read_bytes() == before
