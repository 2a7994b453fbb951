"""Untrusted files: nothing in them is executed, and no escape sequence reaches the terminal."""

import ast
import json
import re
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.data_sources_test import open_, open_fashion, small_idx
from tests.folders import contents
from vit_jax.analysis import confusion, curves, predictions
from vit_jax.errors import DataError
from vit_jax.evals import Classification

__all__ = ["small_idx"]  # A fixture.

pytestmark = pytest.mark.medium

SOURCES = sorted([*(ROOT / "vit_jax").rglob("*.py"), *(ROOT / "configs").rglob("*.py")])

# ------------------------------------------------------------------------------ nothing is executed

# Modules and calls that execute data, or start programs.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code",
           "torch", "yaml", "subprocess", "pty", "ctypes"}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.load", "numpy.load",
         "np.fromregex", "jnp.load", "importlib.import_module", "runpy.run_module",
         "runpy.run_path", "spec.loader.exec_module"}  # fmt: skip
# The one file that a user names as code.
# A config's own file is run; torch loads weights only.
ALLOWED = {("file.py", "spec.loader.exec_module"), ("pth.py", "torch")}
# A sweep starts its runs, by the commands that the config's file gives, never by what it reads in a
# work directory; ctypes calls prctl, malloc_trim and the installed libturbojpeg. Of its own
# checkout a run asks git which commit it is.
ALLOWED |= {(name, "subprocess") for name in ("attempt.py", "local.py", "slurm.py", "reports.py")}
ALLOWED |= {("start.py", "ctypes"), ("turbojpeg.py", "ctypes"), ("turbojpeg.py", "ctypes.util")}
ALLOWED |= {("compilation.py", "ctypes")}
# The benchmark starts its own workers, which exchange arrays through files that it writes itself.
ALLOWED |= {("memory.py", "ctypes"), ("process.py", "subprocess"), ("torch_peers.py", "torch")}
ALLOWED |= {("torch_peers.py", "importlib.import_module")}
# Modules of our own, by names in tables of our own: public names, commands, sources of data.
ALLOWED |= {
    (name, "importlib.import_module") for name in ("__init__.py", "__main__.py", "sources.py")
}


def _pickles(keyword):
    """Whether an argument lets NumPy unpickle."""
    return keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"


def suspicious(source, name):
    """Which of these a file uses, as (file, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((name, module) for module in modules if module.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            plain = any(k.arg == "allow_pickle" and not _pickles(k) for k in node.keywords)
            if (called := ast.unparse(node.func)) in CALLS and not (called == "np.load" and plain):
                yield name, called
            yield from ((name, "allow_pickle") for k in node.keywords if _pickles(k))


def test_the_search_finds_calls_that_execute_data():
    source = (
        "import pickle\nfrom torch.serialization import load\neval('1')\nnp.load(f, allow_pickle=1)"
    )
    uses = [what for _, what in suspicious(source, "x")]
    assert sorted(uses) == ["allow_pickle", "eval", "np.load", "pickle", "torch.serialization"]
    assert not list(suspicious("re.compile('x')\nmodel.eval()\nlowered.compile()", "x"))
    assert not list(suspicious("np.load(f, allow_pickle=False)", "x"))


def test_no_source_file_executes_data():
    uses = {use for path in SOURCES for use in suspicious(path.read_text(), path.name)}
    assert uses == ALLOWED


def hostile(path, mark):
    """Python that leaves a mark if it runs."""
    path.write_text(f"open({str(mark)!r}, 'w')\n\ndef get_config(arg=None):\n    pass\n")
    return path


STOP = "--config.batch_size=0"  # Once the config's file has run.


@pytest.mark.parametrize("name", ["config.json", "config.pyc"])
def test_only_python_files_are_configs(commands, tmp_path, name):
    mark = tmp_path / "mark"
    config = hostile(tmp_path / name, mark)
    result = commands.run("train", f"--config={config}", f"--workdir={tmp_path / 'w'}", STOP)
    assert result.code == 2 and "a config is a name or a Python file" in result.err, result
    assert not mark.exists()


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory):
    """Returns a folder of images and a run on them, with class names from HOSTILE, and outputs."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}{ESCAPE}.png")
    results = {
        "train": commands.run(
            "train", "--config=configs/quickstart.py", f"--workdir={folder / 'run'}",
            "--config.total_steps=1", "--config.batch_size=8", "--config.model.depth=1",
            "--config.data.source=image_folder", f"--config.data.data_dir={folder / 'images'}",
            "--config.evals.test.split=train",
        )
    }  # fmt: skip
    results["evaluate"] = commands.run("evaluate", f"--workdir={folder / 'run'}")
    results["predict"] = commands.run(
        "predict", f"--checkpoint={folder / 'run'}", folder / "images"
    )
    return folder, results


# ------------------------------------------------------------------- no escape sequence is printed

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
HOSTILE = (
    "two\nlines\rand a return",
    f"colour{ESCAPE}",
    "$\\frac{1}{$",
    "<script>alert(1)</script>".replace("/", "\N{DIVISION SLASH}"),
    "long " * 40,
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\x9b31m",
    "-rf",
    "%s {0} {x} \\n",
)


def spoken(result):
    """Returns the output of a call, which holds only printable characters."""
    text = result.out + result.err
    assert all(char.isprintable() or char == "\n" for char in text), ascii(text)
    assert "Traceback" not in text and "Warning" not in text, text
    return text


def test_class_names_are_printed_without_control_characters(run):
    folder, results = run
    assert [result.code for result in results.values()] == [0, 0, 0], results
    for verb, text in (("train", "Done:   1 step;"), ("evaluate", "top-1"), ("predict", "frac")):
        assert text in spoken(results[verb]), results[verb]
    samples = contents(folder / "run" / "samples")
    assert len(samples) == 10 and all(name.isprintable() for name in samples), samples


def test_a_broken_image_with_a_hostile_name(commands, run, tmp_path):
    folder, _ = run
    image = tmp_path / f"{ESCAPE}\n.png"
    image.write_text(f"{ESCAPE} no image")
    result = commands.run("predict", f"--checkpoint={folder / 'run'}", image)
    assert result.code == 1 and "cannot be predicted" in spoken(result), result


def test_a_hostile_config_is_refused_in_plain_words(commands, run, tmp_path):
    folder, _ = run
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    plain = json.loads(path.read_text())
    for change in (
        {"model": plain["model"] | {"variant": f"B/16{ESCAPE}"}},
        {f"key{ESCAPE}": 1},
    ):
        path.write_text(json.dumps(plain | change))
        result = commands.run("evaluate", f"--workdir={tmp_path / 'run'}")
        assert result.code == 2 and spoken(result).startswith("error: "), result


@pytest.mark.parametrize("names", [HOSTILE[1:5], ("", "\0", "\ud800", HOSTILE[7])], ids=range(2))
def test_figures_accept_any_class_name(tmp_path, names):
    rng, labels = np.random.default_rng(0), np.arange(4)
    wrong = np.roll(np.eye(4, dtype=np.float32), 1, axis=0)  # Each is taken for another.
    predictions(
        rng.integers(0, 256, (4, 8, 8, 3), np.uint8), labels, wrong, names,
        tmp_path / "predictions.png",
    )  # fmt: skip
    batch = {"image": jnp.zeros((4, 2)), "label": jnp.array(labels), "weight": jnp.ones(4)}
    report = Classification(
        lambda params, images: jnp.array(wrong), num_classes=4, loss_name="softmax_xent"
    ).report({}, [batch])
    confusion(report, names, tmp_path / "confusion.png")
    values = {f"{name}/top1": 0.5 for name in names}
    lines = [{"step": i, "train/loss": 1 / (i + 1), **values} for i in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_tfds_folder_names_no_module_to_import(tmp_path, small_idx, monkeypatch):
    """TFDS imports what `pythonClassName` says."""
    open_fashion(tmp_path, small_idx)
    prepared = next((tmp_path / "tfds").rglob("features.json")).parent
    strange = tmp_path / "strange" / "stranger" / "1.0.0"
    shutil.copytree(prepared, strange)
    info = json.loads((strange / "dataset_info.json").read_text())
    (strange / "dataset_info.json").write_text(json.dumps({**info, "name": "stranger"}))
    mark = tmp_path / "mark"
    hostile(tmp_path / "payload.py", mark)
    monkeypatch.syspath_prepend(tmp_path)
    features = (strange / "features.json").read_text()
    data_dir = str(tmp_path / "strange")
    assert len(open_("train", source="tfds", name="stranger", data_dir=data_dir)) == 60
    changed = re.sub(r'"tensorflow_datasets[^"]*"', '"payload.X"', features, count=1)
    (strange / "features.json").write_text(changed)
    with pytest.raises(DataError, match=r"names the class 'payload\.X'"):
        open_("train", source="tfds", name="stranger", data_dir=data_dir)
    assert not mark.exists() and "payload" not in sys.modules
    with pytest.raises(DataError, match="would run foreign code"):
        open_("train", source="tfds", name="huggingface:mnist", data_dir=data_dir)
