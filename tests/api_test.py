"""The public names of vit_jax: listed, described, typed, each with an example that runs."""

import dataclasses
import doctest
import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import ROOT, slow
from tests.images import make
from vit_jax import analysis
from vit_jax.__main__ import command, verbs
from vit_jax.errors import CheckpointError, ConfigError

# Figures of what is in memory already have their example in docs/api.md.
MEASURES = sorted(set(dir(analysis)) - {"class_accuracy", "confusion", "curves", "predictions"})
API = (ROOT / "docs" / "api.md").read_text()


@pytest.fixture(scope="module")
def imported():
    """Imports all that the public names and the commands need: seconds, if no test has before."""
    for verb in verbs():
        command(verb)
    for name in vit_jax.__all__:
        getattr(vit_jax, name)
    for module in pkgutil.walk_packages(analysis.__path__, f"{analysis.__name__}."):
        importlib.import_module(module.name)


def test_every_name_is_listed_and_described(imported):
    assert set(dir(vit_jax)) == {*vit_jax.__all__, "__version__"}
    rows = re.findall(r"^\| (`.*?) \|", API.partition("## Commands")[0], re.M)
    described = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert described == set(vit_jax.__all__)
    for name in vit_jax.__all__:
        assert getattr(vit_jax, name).__doc__, name


def test_the_page_lists_the_figures():
    pages = API + (ROOT / "docs" / "analysis.md").read_text()
    described = re.findall(r"^\| `analysis\.(\w+)\(", pages, re.M)
    assert sorted(described) == sorted(dir(vit_jax.analysis))


def test_a_name_stays_a_function_when_a_module_of_its_name_is_imported(imported):
    for package in (vit_jax, analysis):
        modules = [name for name in dir(package) if inspect.ismodule(getattr(package, name))]
        assert modules == (["analysis"] if package is vit_jax else [])


def test_importing_it_imports_no_jax():
    code = "import sys, vit_jax, vit_jax.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.fixture(scope="module")
def folder(plain_run, tmp_path_factory):
    """The current folder of the examples: two runs, a published model in tiny-vit, an image."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(plain_run, folder / "runs" / "quickstart")
    shutil.copytree(plain_run, folder / "runs" / "longer")
    config = folder / "runs" / "longer" / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(folder / "cat.png")
    # The model of most examples.
    tiny = vit_jax.create("mu/16", image_size=32, num_classes=10)
    vit_jax.export(tiny, folder / "tiny-vit", to="hf")
    return folder


@pytest.fixture(scope="module")
def names(imported):
    """The names that an example need not import."""
    public = {name: getattr(vit_jax, name) for name in vit_jax.__all__}
    return public | {"np": np, "jax": jax, "pathlib": pathlib, "os": os, "vit_jax": vit_jax}


@pytest.mark.medium
@pytest.mark.parametrize(
    "name",
    [
        slow(name) if name in ("layer_probes", "train") else name
        for name in (*sorted(set(vit_jax.__all__) - {"analysis"}), *MEASURES)
    ],
)
def test_the_example_runs(name, folder, names, monkeypatch):
    monkeypatch.chdir(folder)
    example_of = getattr(analysis if name in MEASURES else vit_jax, name)
    finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
    # An inherited docstring, or one of a method, is an example as well.
    tests = [test for test in finder.find(example_of, name, globs=names) if test.examples]
    assert tests, f"vit_jax.{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_a_config_is_printed_with_the_meaning_of_each_key():
    config = vit_jax.load_config("quickstart", {"batch_size": 7})
    lines = vit_jax.config.format_config(config).splitlines()
    assert lines[0].startswith("batch_size = 7  # Examples per optimizer update")
    (decode, *_), text = config.data.eval_transforms, "\n".join(lines)
    assert f"data.eval_transforms = ({dict(decode)}, " in text and "immutabledict" not in text


def test_images_and_parameters_that_do_not_fit_are_named():
    model = vit_jax.create("mu/16", image_size=32, num_classes=2)
    for shape, text in {
        (1, 3, 32, 32): "Channels come last: images.transpose(0, 2, 3, 1)",
        (1, 16, 32, 3): "(1, 16, 32, 3). This model takes (n, 32, 32, 3)",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(text)):
            model(np.zeros(shape, np.float32))
    headless = {name: leaf for name, leaf in model.params.items() if name != "head"}
    for params, text in (
        (headless, "head/bias: params lacks it, model (2,)"),
        (
            headless | {"head": {"bias": np.zeros(3), "x": np.zeros(1)}},
            "head/x: params (1,), model",
        ),
        ({"params": model.params}, 'params["params"]'),
    ):
        changed = dataclasses.replace(model, params=params)
        for call in (
            lambda changed=changed: changed(np.zeros((1, 32, 32, 3), np.float32)),
            lambda changed=changed: vit_jax.evaluate(changed, "nowhere"),
        ):
            with pytest.raises(CheckpointError, match=re.escape(text)):
                call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: vit_jax.create("b/16"), 'Did you mean "B/16"? Other sizes near it: s/16'),
        (
            # Without the tests' checks of types, which refuse a list before.
            lambda: inspect.unwrap(vit_jax.load_config)("quickstart", ["total_epochs=3"]),
            'write a dict of keys and values, such as {"total_epochs": 3}',
        ),
        (lambda: vit_jax.create("B16"), 'Did you mean "B/16"? list_models() lists all sizes.'),
        (
            lambda: vit_jax.create("mu/16", drop=0.1),
            'no field "drop" of a model. Did you mean "dropout"',
        ),
        (lambda: vit_jax.create("tiny-vit", depth=3), '"depth" follows from the checkpoint'),
        (lambda: vit_jax.load_pretrained("B/16"), 'create("B/16") makes a new model'),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(call, text, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(vit_jax.VitJaxError, match=re.escape(text)):
        call()


@pytest.mark.medium
def test_a_checkpoint_takes_fields_that_leave_its_parameters(folder):
    model = vit_jax.create(folder / "tiny-vit", dropout=0.5)
    images = np.ones((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(
        model(images)[0], vit_jax.load_pretrained(folder / "tiny-vit")(images)[0]
    )
    _, features = (
        model.model.apply(
            {"params": model.params}, images, train=True, rngs={"dropout": jax.random.key(seed)}
        )[1]["pre_logits"]
        for seed in (0, 1)
    )
    assert not np.allclose(features, model(images)[1]["pre_logits"])


@pytest.mark.slow
def test_the_training_loop_of_the_page_runs(tmp_path, monkeypatch, capsys):
    make(tmp_path / "IMAGES", each=12)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"## A training loop.*?```python\n(.*?)```", API, re.S)[1]
    exec(code.replace("range(100)", "range(2)"), {})
    output = capsys.readouterr().out
    assert "(in memory) on " in output and "IMAGES, test\n" in output and "zeros" not in output
    assert vit_jax.load_pretrained("trained").labels == ("flower", "portrait", "temple")
    code = re.search(r"## Results and figures.*?```python\n(.*?)```", API, re.S)[1]
    exec(code, {})
    assert "calibration error" in capsys.readouterr().out
    assert {"confusion.png", "classes.png", "results"} <= set(os.listdir())
