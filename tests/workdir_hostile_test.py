"""Work directories that a stranger has made up: only our errors, and no name leads out of them."""

import json
import pathlib
import re
import shutil

import pytest
from PIL import Image

from tests.conftest import slow
from tests.small_run import run, small_config, train_on_one
from vit_jax import evaluate as evaluate_module
from vit_jax.errors import CheckpointError, DataError, VitJaxError
from vit_jax.evaluate import evaluate
from vit_jax.rundir.workdir import read_config

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def whole(tmp_path_factory, finished_run):
    """A run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    finished_run(workdir)
    return workdir


PLAIN = {"name": "x", "split": "train", "num_examples": 3, "num_classes": 2, "channels": 1}
HOSTILE = {
    "empty": b"",
    "half": b'{"seed": 0, "batch_',
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "NaN": b'{"seed": NaN}',
    "infinite": b'{"optim": {"lr": 1e999}}',
    "many digits": b'{"seed": ' + b"9" * 100_000 + b"}",
    "deep": b'{"evals": ' * 50_000,
    "deep lists": b'{"evals": ' + b"[" * 200_000,
    "deep and whole": b'{"mesh": ' * 900 + b"1" + b"}" * 900,
    "huge": b'{"seed": "' + b"x" * 2**27 + b'"}',
    "unknown key": b'{"sede": 0}',
    "text for a number": b'{"batch_size": "16"}',
    "negative": b'{"batch_size": -1}',
    "a number for a section": b'{"model": 3}',
    "a section for a number": b'{"batch_size": {"a": 1}}',
    "evals are a list": b'{"evals": [1, 2]}',
    "an eval of nothing": b'{"evals": {"x": null}}',
    "an eval with other keys": b'{"evals": {"x": {"split": "test", "exec": "rm"}}}',
    "no such variant": b'{"model": {"variant": "../../etc/passwd"}}',
    "sizes that are none": b'{"model": {"image_size": ["a", {}, null]}}',
    "a giant": b'{"model": {"variant": "g/14", "width": 1000000000000}}',
    "transforms": b'{"data": {"eval_transforms": [1, {"op": ["x"]}, {"op": "__class__"}]}}',
    "internals": b'{"__class__": 1, "_fields": {"x": 2}, "__init__": {}}',
}


@pytest.fixture
def copy(whole, tmp_path):
    """A work directory to make a mess of."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


def assert_only_our_errors(workdir, name):
    """Both who looks at the run and who would go on with it hear of it, and nothing is changed."""
    before = state_of(workdir)
    with pytest.raises(VitJaxError) as error:
        evaluate(workdir)
    assert name in str(error.value) or str(workdir) in str(error.value), error.value
    assert len(str(error.value)) < 4000
    assert "\n  File" not in str(error.value)
    with pytest.raises(VitJaxError):
        train_on_one(small_config(), workdir)
    assert state_of(workdir) == before


def state_of(workdir):
    """When each file was written; the lock is, every time."""
    paths = (path for path in workdir.parent.rglob("*") if path.name != "lock")
    return {path: path.lstat().st_mtime_ns for path in paths if path.is_symlink() or path.is_file()}


# The others are much like one of these.
SHORT = ("empty", "half", "not UTF-8", "NaN", "deep", "huge", "unknown key", "text for a number",
         "a number for a section", "an eval of nothing", "transforms", "internals")  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [pytest.param(c, id=name, marks=[pytest.mark.slow] * (name not in SHORT))
     for name, c in HOSTILE.items()],
)  # fmt: skip
def test_a_config_that_somebody_made_up_is_refused(copy, content):
    (copy / "config.json").write_bytes(content)
    assert_only_our_errors(copy, "config.json")


@pytest.mark.parametrize(
    "content",
    [
        *(HOSTILE[name] for name in ("half", "a list")),
        *(slow(HOSTILE[name]) for name in ("empty", "not UTF-8", "NaN", "huge")),
        json.dumps(PLAIN).encode(),
        slow(json.dumps({**PLAIN, "class_names": "ab"}).encode()),
        json.dumps({**PLAIN, "class_names": ["a", 2]}).encode(),
        slow(json.dumps({**PLAIN, "class_names": ["a"]}).encode()),
        json.dumps({**PLAIN, "class_names": [], "num_classes": 0}).encode(),
        slow(json.dumps({**PLAIN, "class_names": ["a", "b"], "num_classes": True}).encode()),
        json.dumps({**PLAIN, "class_names": ["a", "b"], "name": ["x"]}).encode(),
        json.dumps({**PLAIN, "class_names": ["a", "b"]}).encode(),  # Whole; not this model's.
    ],
    ids=range(14),
)
def test_a_dataset_that_somebody_made_up_is_refused(copy, content):
    (copy / "dataset.json").write_bytes(content)
    assert_only_our_errors(copy, "dataset.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" " * 2**20 + b"{}", "larger than 1,048,576 bytes"),
        (b'{"optim": {"eps": NaN}}', "NaN is no number of JSON"),
        (b'{"optim": {"eps": -Infinity}}', "-Infinity is no number of JSON"),
        (b'{"optim": {"eps": 1e400}}', "1e400 is no number of JSON"),
        (b"[" * 500_000 + b"]" * 500_000, "nested too deeply"),
        (b'{"optim": {"epss": 1}}', "no key 'epss'. Did you mean \"eps\"?"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_config(tmp_path)


KINDS = ("folder", "loop", "file")
# Each name with two kinds, each kind with at least one name; the others are slow.
PAIRS = [("config.json", "loop"), ("dataset.json", "folder"), ("metrics.jsonl", "file"),
         ("checkpoints", "folder"), ("checkpoints", "file")]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind) if (name, kind) in PAIRS else slow(name, kind)
        for name in ("config.json", "dataset.json", "metrics.jsonl", "checkpoints")
        for kind in KINDS
    ],
)
def test_a_file_that_is_none_does_not_keep_us_waiting(copy, name, kind):
    path = copy / name
    path.rename(copy.parent / "away")
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("x\ny\n")
    else:
        path.symlink_to(path)
    if name == "metrics.jsonl":
        with pytest.raises(DataError, match=r"metrics.jsonl"):
            train_on_one(small_config(), copy)
    elif (name, kind) == ("checkpoints", "folder"):
        with pytest.raises(CheckpointError, match="has no checkpoint yet"):
            evaluate(copy)
    else:
        assert_only_our_errors(copy, name)


@pytest.mark.parametrize(
    "change",
    [
        {"clock": None},
        slow({"clock": [1]}),
        {"clock": {"seconds": {"step": "long"}, "device_seconds": 1, "examples": 1}},
        slow({"clock": {"seconds": {"step": 1}, "device_seconds": "much", "examples": 1}}),
        {"clock": {"seconds": {"step": 1}, "device_seconds": 1e999, "examples": 10**400}},
        {"last_line": "12"},
        slow({"last_line": [12]}),
        {"step": "12"},
        slow({"step": None}),
    ],
)
def test_a_loop_state_that_somebody_made_up_is_refused(copy, change):
    for step in (4, 8, 12):
        path = copy / "checkpoints" / str(step) / "chrono" / "metadata"
        if path.exists():
            loop_state = {**json.loads(path.read_text()), **change}
            del loop_state["digests"]  # As in the first release: no checksum, either.
            path.write_text(json.dumps(loop_state))
    with pytest.raises(CheckpointError):
        train_on_one(small_config(), copy)


def test_a_span_that_only_another_release_has_is_other_time(copy):
    path = copy / "checkpoints" / "12" / "chrono" / "metadata"
    loop_state = json.loads(path.read_text())
    loop_state["clock"]["seconds"]["naps"] = 1000.0
    del loop_state["digests"]
    path.write_text(json.dumps(loop_state))
    assert train_on_one(small_config(), copy) == 0


@pytest.mark.parametrize("name", ["checkpoints", "tb"])
def test_a_folder_that_is_a_link_is_not_written_to(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VitJaxError, match=rf"{name} cannot be .*lead out of the work directory"):
        train_on_one(small_config(log__tensorboard=True), tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_no_name_in_a_work_directory_leads_out_of_it(copy, whole):
    names = [
        "../../../evil",
        "/etc/evil",
        "..",
        ".",
        "",
        "a/b",
        "nul\0",
        "new\nline",
        "x" * 999,
        "é",
    ]
    dataset = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**dataset, "class_names": names}))
    with pytest.MonkeyPatch.context() as patch:
        # The data set would have to agree with the names: here it does.
        opened = evaluate_module.open_source

        def open_source(*args, **kwargs):
            source = opened(*args, **kwargs)
            source.class_names = tuple(names)
            return source

        patch.setattr(evaluate_module, "open_source", open_source)
        evaluate(copy)
        evaluate(copy, split="test[:20]")
        evaluate(copy / "checkpoints" / "8", split="test[20:]")
    made = {path.relative_to(copy.parent) for path in copy.parent.rglob("*")}
    expected = {path.relative_to(whole.parent) for path in whole.rglob("*")}
    tops = {path.parts[1] for path in made if len(path.parts) > 1}
    assert tops - {path.parts[1] for path in expected if len(path.parts) > 1} == {
        "evaluation.json", "confusion.png", "predictions.png", "samples",
        "evaluation-test_20", "evaluation-test_20_end-step-8",
    }  # fmt: skip
    samples = list((copy / "samples").iterdir())
    assert len(samples) == 10 and all(re.fullmatch(r"\d-[\w.-]*\.png", s.name) for s in samples)


def test_damage_in_the_middle_of_the_lines_is_said_and_nothing_is_lost(copy):
    path = copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[3:]]))
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=r"metrics.jsonl, line 3 is not a JSON object"):
        train_on_one(small_config(), copy)
    after = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "lock"}
    assert after == {p: content for p, content in before.items() if p.name != "lock"}
    path.write_bytes(b"".join(lines))
    run(copy)


def test_a_checkpoint_of_another_model_than_the_config_says(copy):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["depth"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"step 12 is not of the model of .*config.json"):
        evaluate(copy)


@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
def test_a_file_that_was_lost_can_be_written_anew(copy, name):
    before = (copy / name).read_bytes()
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}.*\n.*--allow_config_change"):
        train_on_one(small_config(), copy)
    assert train_on_one(small_config(), copy, allow_config_change=True) == 0
    assert (copy / name).read_bytes() == before


@pytest.mark.slow
def test_class_names_do_not_steer_the_terminal(copy, commands, tmp_path):
    names = ["\x1b[2J\x1b]0;evil\a", "\ud800", "line\r\nline", "\u202e", *"456789"]
    dataset = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**dataset, "class_names": names}))
    output = tmp_path / "out.csv"
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for more in ([], [f"--output={output}"]):
        done = commands.run(
            "predict", f"--checkpoint={copy}", "--top_k=10", *more, tmp_path / "x.png"
        )
        assert done.code == 0, done.err
        shown = done.out
        assert all(letter.isprintable() or letter == "\n" for letter in shown)
        assert more or "\N{REPLACEMENT CHARACTER}[2J" in shown
    assert "line\r\nline" in output.read_bytes().decode()
