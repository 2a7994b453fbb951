"""`vit-jax analyze` and `analysis.analyze`: images, failures, files, and comparison."""

import contextlib
import dataclasses
import html
import html.parser
import json
import os
import shutil
import subprocess
from typing import ClassVar

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.commands import call
from tests.measured_models import small
from vit_jax import analysis
from vit_jax.analysis import all_measures, report
from vit_jax.analysis.measures import registry
from vit_jax.analysis.measures.registry import Takes
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.analysis.outcomes import last_part
from vit_jax.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.medium
# Figures take most of the time of `analyze`: only one test, a slow one, has all measures.
CHEAP = ("embedding_filters", "attention_distance")
BROKEN_TITLE = '<script>alert("x")</script> & co'


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Brightness(Result):
    """A measure for these tests."""

    mean: np.ndarray
    name: ClassVar[str] = "brightness"
    title: ClassVar[str] = BROKEN_TITLE
    shows: ClassVar[str] = "How bright images are."
    summary_units: ClassVar[dict[str, str]] = {"brightness": "grey"}
    definition: ClassVar[str] = "Mean of the pixels of each image."
    source: ClassVar[str] = "These tests"

    def arrays(self):
        return {"mean": NamedArray(self.mean, ("image",), "", "mean of the pixels")}

    def summary(self):
        return {"brightness": float(self.mean.mean())}

    def plot(self):
        figure = Figure(figsize=(4, 3))
        figure.subplots().imshow(np.random.default_rng(0).random((8, 8)))
        return figure


def brightness(pretrained, images, other=None, *, batch_size=32):
    """Of the prepared images; of two models, the difference."""
    if other is not None and other.config == pretrained.config:
        raise NotApplicableError("Both are of one architecture.")
    means = [
        np.asarray(batch.images)[batch.good].mean(axis=(1, 2, 3))
        for batch in images.batches(batch_size)
    ]
    mean = np.concatenate(means)
    return Brightness(checkpoint=pretrained.loaded_from, num_images=len(mean), mean=mean)


def broken(pretrained, image):
    """Fails."""
    assert image.first(1).dtype == np.float32
    raise TypeError("an error of its author")


ADDED = {
    "broken": Takes.IMAGE,
    "brightness": Takes.IMAGES,
    "supervised": Takes.LABELLED_IMAGES,
}


@contextlib.contextmanager
def added_measures():
    """Measures of these tests beside those of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "brightness", brightness, raising=False)
        patch.setattr(analysis, "broken", broken, raising=False)
        patch.setattr(analysis, "supervised", brightness, raising=False)
        with_added = ADDED | registry.MEASURES  # Those that fail come first.
        for module in (registry, all_measures):
            patch.setattr(module, "MEASURES", with_added)
        patch.setattr(all_measures, "PAIRS", ("brightness",))
        yield


@pytest.fixture
def measures():
    with added_measures():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for value in (0, 100, 200):
        Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(folder / f"{value}.png")
    (folder / "damaged & co.png").write_bytes(b"no image")
    return folder


class Page(html.parser.HTMLParser):
    """What the tests read of a page."""

    void = frozenset(("meta", "img", "br"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def analysed(folder, tmp_path_factory):
    """The analysis of a model by a few measures, one of which fails."""
    out, model = tmp_path_factory.mktemp("out"), small(image_size=(32, 48))
    with added_measures():
        return analysis.analyze(model, folder, out=out, batch_size=2, only=[*ADDED, *CHEAP])


def test_one_failure_loses_no_result_and_reasons_are_given(analysed):
    reasons = {outcome.measure: outcome.reason for outcome in analysed.outcomes}
    assert reasons["broken"] == "TypeError: an error of its author"
    assert "needs labels" in reasons["supervised"]
    assert [outcome.measure for outcome in analysed.failed] == ["broken"]
    assert analysed["brightness"].num_images == 3
    with pytest.raises(KeyError, match="an error of its author"):
        analysed["broken"]
    assert "TypeError" in repr(analysed) and list(analysed.bad) == [
        os.fspath(path) for path in [next(iter(analysed.bad))] if "damaged & co.png" in str(path)
    ]


def test_the_page_has_every_number_and_no_other_resource(analysed):
    page = Page((analysed.folder / "report.html").read_text())
    urls = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    files = [url for url in urls if not url.startswith(("#", "data:image/"))]
    assert files and all((analysed.folder / file).is_file() for file in files)
    assert not page.all("script") and not page.all("link")
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {url[1:] for url in urls if url.startswith("#")} <= anchors
    figures = page.all("img")
    assert len(figures) == 3 and all("numbers are in" in attrs["alt"] for attrs in figures)
    # One with an image is not inverted in dark mode.
    assert {attrs["class"] for attrs in figures} == {"photo", "drawn"}
    assert BROKEN_TITLE in page.text and "damaged & co.png" in page.text
    assert "an error of its author" in page.text and "needs labels" in page.text
    for value in (*analysed["brightness"].mean, *analysed["attention_distance"].summary().values()):
        assert f"{value:.4g}" in page.cells


def test_an_interrupted_report_names_what_computes_the_rest(measures, folder, tmp_path):
    def interrupt(line):
        if line.startswith("  brightness"):
            raise KeyboardInterrupt

    model = small(image_size=(32, 48))
    with pytest.raises(KeyboardInterrupt):
        analysis.analyze(
            model, folder, out=tmp_path, only="broken,brightness,attention_distance", log=interrupt
        )
    text = Page((tmp_path / "report.html").read_text()).text
    assert "--only=brightness,attention_distance --out=FOLDER" in text
    stored = json.loads((tmp_path / "analysis.json").read_text())
    assert not stored["complete"] and stored["missing"] == ["brightness", "attention_distance"]


def test_the_json_has_the_numbers_of_the_results(analysed):
    stored = json.loads((analysed.folder / "analysis.json").read_text())
    expected = {}
    for outcome in analysed.outcomes:
        expected |= outcome.result.summary() if outcome.result else {}
    # A class token and 2 x 3 patches: attention over seven tokens.
    uniform = analysed["attention_distance"].uniform_distance
    expected |= {
        "distance_of_uniform_attention": uniform,
        "entropy_of_uniform_attention": np.log(7),
    }
    assert {name: row[0] for name, row in stored["overview"].items()} == pytest.approx(expected)
    assert {"attention_distance_last_layer", "brightness"} <= expected.keys()
    distance = json.loads((analysed.folder / "attention_distance.json").read_text())
    assert distance["summary"] == analysed["attention_distance"].summary()
    mean = analysed["attention_distance"].mean
    assert expected["attention_distance_last_layer"] == mean["distance"][-1].mean()
    assert expected["attention_entropy_first_layer"] == mean["entropy"][0].mean()
    for entry in stored["measures"]:
        assert all((analysed.folder / file).is_file() for file in entry["files"])
        assert bool(entry["files"]) == (not entry["reason"])


def test_checkpoints_are_compared_on_the_same_images(measures, plain_run, tmp_path):
    """Two steps of a run on its own test images, and a Mixer, which has no attention."""
    models = [
        plain_run,
        plain_run / "checkpoints" / "8",
        small("Mixer-S/16", image_size=32, depth=1),
    ]
    found = analysis.analyze(
        models, out=tmp_path, num_images=6, only=["brightness", "attention_distance"]
    )
    last, earlier, mixer = (
        [o.result for o in found.outcomes if o.measure == name and o.subjects == (index,)]
        for name, index in (("brightness", 0), ("brightness", 1), ("brightness", 2))
    )
    np.testing.assert_array_equal(last[0].mean, earlier[0].mean)
    # The same images, larger and in colour: their means differ by the interpolation.
    np.testing.assert_allclose(last[0].mean, mixer[0].mean, atol=0.05)
    overview = found.overview()
    assert None not in overview["brightness"]
    assert overview["attention_distance_last_layer"][2] is None
    first, second, _ = overview["attention_entropy_last_layer"]
    assert first != second
    pairs = {o.subjects: o for o in found.outcomes if len(o.subjects) == 2}
    assert pairs[0, 1].reason == "Both are of one architecture."
    assert (tmp_path / "1-3" / "brightness.npz").is_file() and pairs[0, 2].result
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.all("img")) == 3 + 2 + 1 and "it has no attention" in page.text
    heads = next(line for line in found.overview_text().splitlines() if " 1. " in line)
    assert f"1. {plain_run.name} at step 12" in heads
    assert f"2. {plain_run.name} at step 8" in heads
    # A pair's number is in the column of its second checkpoint.
    assert overview["brightness_with_checkpoint_1"] == [None, None, pairs[0, 2].result.mean.mean()]
    stored = json.loads((tmp_path / "analysis.json").read_text())
    assert stored["complete"] and len(stored["locations"]) == 6
    assert all(location in page.text for location in stored["locations"])
    # The run's images are of 8x8 pixels.
    assert "The models differ in size" in page.text and "image size: 8x8, 8x8, 32x32" in page.text


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        (["--only=atention_distance"], ['Did you mean "attention_distance"?']),
        (["--skip=faithfulnes"], ['Did you mean "faithfulness"?']),
        (["--only=faithfulness", "--skip=faithfulness"], ["No measure is left"]),
        (["--out=FILE/x"], ["FILE/x cannot be made: Not a directory"]),
        (["--compare=RUN"], ["--compare names a checkpoint twice"]),
        (["--images=nowhere"], ["nowhere"]),
        (["--num_images=-1"], ["num_images"]),
        (["--images=BROKEN"], ["None of the 1 images can be read", "Not an image"]),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    typed, texts, plain_run, tmp_path, tmp_path_factory
):
    (tmp_path / "FILE").touch()
    broken = tmp_path_factory.mktemp("broken")
    (broken / "1.png").write_text("broken")
    words = [w.replace("RUN", str(plain_run)).replace("BROKEN", str(broken)) for w in typed]
    result = call("analyze", f"--checkpoint={plain_run}", *words, cwd=tmp_path)
    assert result.code == 2 and all(text in result.err for text in texts), result.err
    assert sorted(os.listdir(tmp_path)) == ["FILE"] and not (plain_run / "analysis").exists()


def test_the_command_writes_into_the_work_directory(run_copy):
    only = "--only=attention_distance"
    result = call("analyze", f"--checkpoint={run_copy}", "--num_images=4", only)
    assert result.code == 0, result.err
    text = "4 of 50 images, chosen at random (the same in each call), from digits, test[:50]"
    assert text in result.out
    assert f"report: {run_copy}/analysis/report.html" in result.out
    assert (run_copy / "analysis" / "attention_distance.npz").is_file()
    # An older checkpoint has a folder of its own.
    older = all_measures.default_folder(f"{run_copy}/checkpoints/8")
    assert older.parent == run_copy and older.name == "analysis-step-8"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 20])
def test_all_measures_of_few_images(count, run_copy):
    """A measure that needs more images than there are says so, and is no failure."""
    result = call("analyze", f"--checkpoint={run_copy}", f"--num_images={count}")
    assert result.code == 0, result.out + result.err
    out = run_copy / "analysis"
    entries = {e["measure"]: e for e in json.loads((out / "analysis.json").read_text())["measures"]}
    assert entries.keys() == registry.MEASURES.keys()
    for entry in entries.values():
        assert bool(entry["files"]) == (not entry["reason"]), entry
        assert all((out / file).is_file() for file in entry["files"])
    refused = {name: entry["reason"] for name, entry in entries.items() if entry["reason"]}
    # A new model has no outliers.
    assert "needs no register" in refused.pop("test_time_registers")
    needed = {
        "layer_similarity": "at least 4 images", "layer_probes": "are too few",
        "nearest_images": "at least two",
    }  # fmt: skip
    assert refused.keys() == (needed.keys() if count == 1 else set())
    assert all(needed[name] in reason for name, reason in refused.items())
    report = (out / "report.html").read_text()
    assert ("all 20 are one minibatch" in report) == (count == 20)
    assert all(reason in html.unescape(report) for reason in refused.values())


def test_a_failure_is_the_commands_exit_code(measures, folder, run_copy, tmp_path):
    flags = (f"--images={folder}", "--only=broken,brightness", f"--out={tmp_path}")
    result = call("analyze", f"--checkpoint={run_copy}", *flags)
    assert result.code == 1 and "failed: TypeError" in result.out
    assert (tmp_path / "brightness.json").is_file()


def test_without_images_a_published_model_gets_what_needs_none(measures):
    found = analysis.analyze(small(image_size=32))
    assert {outcome.measure for outcome in found.outcomes if outcome.result} == {
        name for name, takes in registry.MEASURES.items() if takes is Takes.NOTHING
    }
    missing = [outcome for outcome in found.outcomes if not outcome.result]
    assert missing and all("left out: no images are given" in one.line() for one in missing)
    with pytest.raises(ConfigError, match="attention_distance needs images: give --images"):
        analysis.analyze(small(image_size=32), only="embedding_filters,attention_distance")
    with pytest.raises(ConfigError, match="at least one"):
        analysis.analyze([])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
@pytest.mark.parametrize("count", [1, 3])
def test_the_page_is_not_wider_than_a_phone(measures, folder, tmp_path, count):
    models = [small(image_size=(32, 48))] * count
    found = analysis.analyze(models, folder, out=tmp_path)
    text = (found.folder / "report.html").read_text()
    script = "<script>document.title = 'width ' + document.documentElement.scrollWidth</script>"
    # A window of Chromium is at least 500 pixels wide: a frame has the width of a phone.
    inner = tmp_path / "inner.html"
    inner.write_text(text.replace("</body>", f"{script}</body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(
        '<iframe src="inner.html" width="390" height="800" style="border:0" onload="'
        'document.body.dataset.width = this.contentDocument.title"></iframe>'
    )
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=5000"
    flags += " --allow-file-access-from-files --dump-dom"
    command = ["chromium", *flags.split(), outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert 'data-width="width 390"' in done.stdout


def test_a_model_that_is_not_finite_is_refused_before_anything_is_measured(tmp_path):
    model = small(image_size=32)
    head = {"bias": np.full(model.config.num_classes, np.nan, np.float32)}
    broken = dataclasses.replace(
        model, params={**model.params, "head": {**model.params["head"], **head}}
    )
    with pytest.raises(CheckpointError, match=r"not finite \(NaN or infinity\): head"):
        analysis.analyze([model, broken], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="not finite"):
        analysis.position_similarity(broken)


@pytest.mark.parametrize(
    ("name", "last", "short"),
    [
        ("/x/sweep/a/checkpoints/8 at step 8", "a at step 8", "sweep/a at step 8"),
        ("sweep/a at step 8", "a at step 8", "sweep/a at step 8"),
        ("/x/checkpoints/dinov2", "dinov2", "checkpoints/dinov2"),
        ("ViT-B/16", "ViT-B/16", "ViT-B/16"),
    ],
)
def test_checkpoints_have_short_names(name, last, short):
    assert (last_part(name), report.short_name(name)) == (last, short)
