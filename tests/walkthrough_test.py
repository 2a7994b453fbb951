"""The page of `analysis.walkthrough`: its numbers against float64, its links, its keys."""

import dataclasses
import functools
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.measured_models import NO_ATTENTION, ONE_FAMILY, family, inputs, small
from tests.walkthrough_reference import reference
from vit_jax import analysis, create
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.errors import ConfigError, DataError, NonFiniteError

pytestmark = pytest.mark.medium
RELATIVE = 2e-5  # Float32 against float64, of the largest number of an array.
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
# Text with digits that are no results: names of patches, layers and classes; indices; formulas.
NAMES = ("label", "formula")
SMALL = {
    "plain": {"depth": 2},
    "all at once": {
        "depth": 2, "parallel": True, "norm": "rmsnorm", "pre_norm": True, "layer_scale": 0.1,
        "registers": 2, "pool": "token_gap", "posemb": "learned", "mlp": "geglu",
        "attn_norm": True, "mlp_norm": True, "rope": "axial_xy", "final_norm": "pooled",
    },
    "gap": {"pool": "gap", "posemb": "sincos2d", "class_token": True, "qkv_bias": False,
            "patch_bias": False, "rep_size": 12},
}  # fmt: skip
CHOICES = {"plain": {"layer": 1, "head": 1, "label": 3}}


class Page(html.parser.HTMLParser):
    """What a reader sees: numbers with their references, shapes, and all other text."""

    VOID = ("img", "meta", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.numbers, self.shapes, self.sizes, self.rows = [], [], [], []
        self.other, self.ids, self.sources, self.titles = [], [], [], []
        self._stack, self._step, self._row = [], None, None
        self.feed(text)
        self.close()
        assert not self._stack, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section":
            self._step = attrs["data-step"]
            self.ids.append(attrs["id"])
        if tag == "tr":
            self._row = ["", []]
            self.rows.append((self._step, self._row))
        self.sources += [attrs[key] for key in ("src", "href", "srcset") if key in attrs]
        if (
            tag not in self.VOID
            and not attrs.get("/")
            and tag not in ("path", "rect", "circle", "polyline")
        ):
            self._stack.append((tag, attrs))

    def handle_startendtag(self, tag, attrs):
        pass  # Of SVG, without text.

    def handle_endtag(self, tag):
        assert self._stack.pop()[0] == tag

    def handle_data(self, text):
        tags = [tag for tag, _ in self._stack]
        if "style" in tags or "script" in tags or "title" in tags:
            return
        for tag, attrs in self._stack:
            for kind, found in (("data-number", self.numbers), ("data-shape", self.shapes),
                                ("data-size", self.sizes)):  # fmt: skip
                if kind in attrs:
                    found.append((self._step, attrs[kind], text))
                    if kind == "data-number" and self._row:
                        self._row[1].append(attrs[kind])
                    return
            if tag in ("nav", "header", "footer") or set(attrs.get("class", "").split()) & set(
                NAMES
            ):
                if "tr" in tags:
                    self._row[0] += text
                return
            if tag in ("sub", "sup") or (tag == "th" and attrs["scope"] == "col"):
                return  # The index of a symbol or of a component.
        self.other.append(text)


@functools.cache
def walk(name):
    if name in SMALL:
        fields = {"num_classes": 5, "image_size": (32, 48), **SMALL[name]}
        return analysis.walkthrough(small(**fields), PIXELS, **CHOICES.get(name, {}))
    return analysis.walkthrough(family(name), inputs(name))


def model_of(name):
    if name in SMALL:
        return small(**{"num_classes": 5, "image_size": (32, 48), **SMALL[name]})
    return family(name)


@pytest.mark.parametrize("name", [*SMALL, *ONE_FAMILY])
def test_every_number_of_the_page_is_that_of_a_forward_pass_in_float64(name):
    result, pretrained = walk(name), model_of(name)
    image = pretrained.preprocess(PIXELS)[0] if name in SMALL else inputs(name)[0]
    trace = result.trace
    expected = reference(
        pretrained.config, pretrained.params, image, trace,
        feature_map=trace.arrays.get("feature_map"),
    )  # fmt: skip
    expected["stored"] = PIXELS
    page = Page(result.html)
    stored = re.search(r'id="numbers">(.*?)</script>', result.html, re.S)[1]
    stored = json.loads(stored)
    assert len(page.numbers) > 150
    for step, path, text in page.numbers:
        array, *index = path.split("/")
        values = np.asarray(expected[array])
        want = float(values[tuple(map(int, index))])
        error = RELATIVE * float(np.abs(values).max())
        assert abs(stored[step][path] - want) <= error, path
        text = text.replace("−", "-")
        places = len(text.partition(".")[2])
        assert abs(float(text) - want) <= 0.5 * 10**-places + error, (path, text, want)
        assert places >= 3
    shown = {(step, path) for step, path, _ in page.numbers}
    assert shown == {(step, path) for step, values in stored.items() for path in values}
    for _, array, text in page.shapes:
        assert json.loads(text) == list(np.shape(expected[array])), array
    for _, path, text in page.sizes:
        array, axis = path.split("/")
        assert int(text.replace(",", "")) == np.shape(expected[array])[int(axis)]
    # The worked score: a sum of products, and its division.
    width, path = re.search(
        r'; <span class="total">/ √<data[^>]*>(\d+)</data> = <strong>'
        r'<data[^>]*number="(scores/\d+)">',
        result.html,
    ).groups()
    scored = stored["scores"][path.replace("scores", "dots")] / int(width) ** 0.5
    assert path == f"scores/{trace.token}"
    assert stored["scores"][path] == pytest.approx(scored, rel=1e-5)
    # No number is shown without a reference.
    assert not re.search(r"\d", " ".join(page.other)), [
        t for t in page.other if re.search(r"\d", t)
    ]


@pytest.mark.parametrize("name", [*SMALL, *ONE_FAMILY])
def test_the_names_of_tokens_are_those_of_the_rows_numbers(name):
    result, checked = walk(name), 0
    for step, (label, paths) in Page(result.html).rows:
        if step in ("scores", "softmax", "values") and label:
            token = int(paths[0].split("/")[1])
            config = result.trace.config
            names = ["class"] * config.has_class_token + ["distillation"] * config.distilled
            names += [f"register {i + 1}" for i in range(config.registers)]
            names += [f"patch {i + 1}" for i in range(config.grid[0] * config.grid[1])]
            assert label == names[token]
            checked += 1
    assert checked >= 3
    spread = result.trace.arrays["patch_std"]
    assert spread[result.trace.patch] == spread.max()


@pytest.mark.parametrize("name", SMALL)
def test_steps_that_a_model_has_not_are_left_out(name):
    steps = re.findall(r'data-step="(\w+)"', walk(name).html)
    if name == "plain":
        assert steps == [
            "image", "patches", "vectors", "projection", "prefix", "positions", "norm1",
            "projections", "scores", "softmax", "values", "heads", "residual1", "norm2", "mlp",
            "residual2", "layers", "final_norm", "pooling", "head", "probabilities", "loss",
        ]  # fmt: skip
    elif name == "all at once":
        assert {"pre_norm", "rotation", "pooled_norm"} <= set(steps)
        assert not {"norm2", "residual1", "final_norm"} & set(steps)
    else:
        assert steps.index("positions") < steps.index("prefix") and "pre_logits" in steps


def test_the_page_needs_no_network_and_its_links_lead_to_steps():
    page = Page(walk("plain").html)
    assert page.ids == [f"step-{i}" for i in range(1, len(page.ids) + 1)]
    for source in page.sources:
        assert source.startswith("data:image/png;base64,") or source[1:] in page.ids
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", walk("plain").html)
    assert "//" not in re.sub(r"//.*\n", "", text) and "@import" not in text
    assert "url(" not in text.replace('url("")', "")


def test_label_files_and_errors(tmp_path):
    result = walk("plain")
    assert result.save(tmp_path / "new") == [tmp_path / "new" / "walkthrough.html"]
    assert result.save(tmp_path / "a.html") == [tmp_path / "a.html"]
    assert (tmp_path / "a.html").read_text() == result.html
    assert "layer 2, head 2" in repr(result) and "the label of this image" in result.html
    model = model_of("plain")
    for kwargs, message in (
        ({"layer": 2}, "the model has 2 layers, counted from 0 to 1"), ({"head": -3}, "2 heads"),
        ({"label": 5}, "from 0 to 4"), ({"label": "cat"}, "the names of the model's classes"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            analysis.walkthrough(model, PIXELS, **kwargs)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"broken\.png"):
        analysis.walkthrough(model, tmp_path / "broken.png")
    with pytest.raises(NonFiniteError, match='"image"'):
        analysis.walkthrough(model, np.full((1, 32, 48, 3), np.nan, np.float32))


def test_the_label_of_the_data_is_taken_if_the_classes_are_the_models(tmp_path):
    for name in "abcde":
        (tmp_path / name).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / name / "1.png")
    model = dataclasses.replace(model_of("plain"), labels=tuple("abcde"))
    first = analysis.walkthrough(model, tmp_path)
    folder = first.image_name.split("/")[-2]
    assert first.trace.label == "abcde".index(folder) and not first.trace.is_label_predicted
    assert analysis.walkthrough(model, PIXELS, label="c").trace.label == 2
    other = dataclasses.replace(model, labels=tuple("vwxyz"))
    trace = analysis.walkthrough(other, tmp_path).trace
    assert trace.label == trace.arrays["logits"].argmax() and trace.is_label_predicted


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_a_model_without_attention_is_named(name):
    with pytest.raises(NotApplicableError, match="it has no attention"):
        analysis.walkthrough(family(name), inputs(name))


@pytest.mark.slow
def test_the_page_of_a_large_model_has_at_most_three_megabytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")  # Compresses worse than any photo.
    result = analysis.walkthrough(create("B/16"), tmp_path / "noise.png")
    assert len(result.html.encode()) < 3e6


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_one_step_and_obeys_keys(tmp_path):
    path = walk("plain").save(tmp_path)[0]

    def active(page, address, *flags):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *flags]
        command += ["--virtual-time-budget=2000", "--dump-dom", f"file://{page}{address}"]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        current = re.findall(r'href="#(step-\d+)" aria-current="step"', dom)
        return re.findall(r'<section id="(step-\d+)"[^>]*class="active"', dom), current, dom

    assert active(path, "#step-5")[:2] == (["step-5"], ["step-5"])
    assert active(path, "")[:2] == (["step-1"], ["step-1"])
    # Keys, one after another, at the end of each step, where a page key goes to the next one.
    keys = ["ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowLeft", "PageDown"]
    script = f"""<script>addEventListener("load", async () => {{
      const seen = [];
      for (const key of {json.dumps(keys)}) {{
        scrollTo(0, document.documentElement.scrollHeight);
        document.body.dispatchEvent(new KeyboardEvent("keydown", {{key, bubbles: true}}));
        await new Promise((done) => setTimeout(done, 50));
        seen.push(document.querySelector("section.active").id);
      }}
      document.querySelectorAll(".controls button")[0].click();
      await new Promise((done) => setTimeout(done, 50));
      seen.push(document.querySelector("[aria-live]").textContent);
      // On a phone, a table of vectors shows three components and the last one.
      const row = "#step-5 .vector tr:first-child th:not(:first-child)";
      const heads = document.querySelectorAll(row);
      location.hash = "#step-5";
      await new Promise((done) => setTimeout(done, 50));
      const shown = [...heads].filter((head) => head.offsetWidth && head.textContent !== "…");
      const wide = document.documentElement.scrollWidth > innerWidth;
      parent.postMessage({{seen: seen.join(" "), columns: shown.length, wide, innerWidth}}, "*");
    }});</script>"""
    page = tmp_path / "keys.html"
    page.write_text(path.read_text().replace("</body>", script + "</body>"))
    phone = tmp_path / "phone.html"  # A window of Chromium has at least 500 pixels.
    phone.write_text(
        """<body><iframe src="keys.html" style="border: 0; width: 390px; height: 844px"></iframe>
        <script>addEventListener("message", ({data}) => Object.assign(document.body.dataset, data));
        </script></body>"""
    )
    dom = active(phone, "")[2]
    seen = re.search(r'data-seen="([^"]*)"', dom)[1]
    assert seen.startswith("step-2 step-3 step-2 step-22 step-21 step-22 Step 21 / 22: ")
    assert all(entry in dom for entry in ('inner-width="390"', 'wide="false"', 'columns="4"'))
