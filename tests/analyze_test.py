"""`vit-jax analyze` and `analysis.analyze`: images, failures, files, and comparison."""

import dataclasses
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
from vit_jax.analysis import all_measures
from vit_jax.analysis.measures import registry
from vit_jax.analysis.measures.registry import Takes
from vit_jax.analysis.measures.result import NamedArray, NotApplicableError, Result
from vit_jax.errors import ConfigError

pytestmark = pytest.mark.medium
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


@pytest.fixture
def measures(monkeypatch):
    """Measures of these tests beside those of the package."""
    monkeypatch.setattr(analysis, "brightness", brightness, raising=False)
    monkeypatch.setattr(analysis, "broken", broken, raising=False)
    monkeypatch.setattr(analysis, "supervised", brightness, raising=False)
    added = {
        "broken": Takes.IMAGE,
        "brightness": Takes.IMAGES,
        "supervised": Takes.LABELLED_IMAGES,
    }
    for module in (registry, all_measures):  # Those that fail come first.
        monkeypatch.setattr(module, "MEASURES", added | registry.MEASURES)
    monkeypatch.setattr(all_measures, "PAIRS", ("brightness",))


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


@pytest.fixture
def analysed(measures, folder, tmp_path):
    """The analysis of a model by all measures, one of which fails."""
    return analysis.analyze(small(image_size=(32, 48)), folder, out=tmp_path / "out", batch_size=2)


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
    assert len(figures) == 2 and all("numbers are in" in attrs["alt"] for attrs in figures)
    # One with an image is not inverted in dark mode.
    assert {attrs["class"] for attrs in figures} == {"photo", "drawn"}
    assert BROKEN_TITLE in page.text and "damaged & co.png" in page.text
    assert "an error of its author" in page.text and "needs labels" in page.text
    for value in (*analysed["brightness"].mean, *analysed["attention_distance"].summary().values()):
        assert f"{value:.4g}" in page.cells


def test_the_json_has_the_numbers_of_the_results(analysed):
    stored = json.loads((analysed.folder / "analysis.json").read_text())
    expected = analysed["attention_distance"].summary() | analysed["brightness"].summary()
    assert {name: row[0] for name, row in stored["overview"].items()} == expected
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


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        (["--only=atention_distance"], ['Did you mean "attention_distance"?']),
        (["--out=FILE/x"], ["FILE/x cannot be made: Not a directory"]),
        (["--compare=RUN"], ["--compare names a checkpoint twice"]),
        (["--images=nowhere"], ["nowhere"]),
        (["--num_images=-1"], ["num_images"]),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(typed, texts, plain_run, tmp_path):
    (tmp_path / "FILE").touch()
    words = [word.replace("RUN", str(plain_run)) for word in typed]
    result = call("analyze", f"--checkpoint={plain_run}", *words, cwd=tmp_path)
    assert result.code == 2 and all(text in result.err for text in texts), result.err
    assert sorted(os.listdir(tmp_path)) == ["FILE"] and not (plain_run / "analysis").exists()


def test_the_command_writes_into_the_work_directory(run_copy):
    result = call("analyze", f"--checkpoint={run_copy}", "--num_images=4")
    assert result.code == 0, result.err
    assert "4 images of 50, digits, test[:50]" in result.out
    assert f"report: {run_copy}/analysis/report.html" in result.out
    assert (run_copy / "analysis" / "attention_distance.npz").is_file()
    older = call("analyze", f"--checkpoint={run_copy}/checkpoints/8", "--num_images=1")
    assert older.code == 0 and (run_copy / "analysis-step-8" / "report.html").is_file()


def test_a_failure_is_the_commands_exit_code(measures, folder, run_copy, tmp_path):
    flags = (f"--images={folder}", "--only=broken,brightness", f"--out={tmp_path}")
    result = call("analyze", f"--checkpoint={run_copy}", *flags)
    assert result.code == 1 and "failed: TypeError" in result.out
    assert (tmp_path / "brightness.json").is_file()


def test_without_images_a_published_model_gets_what_needs_none(measures):
    found = analysis.analyze(small(image_size=32))
    assert all("needs images" in outcome.reason for outcome in found.outcomes)
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
