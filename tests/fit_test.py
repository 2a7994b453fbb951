"""`python -m vit_jax.fit` on any table: what it writes, prints and refuses."""

import base64
import csv
import doctest
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.conftest import ROOT
from vit_jax.errors import ConfigError, DataError
from vit_jax.fit import COMMAND, define, main
from vit_jax.scaling import fit as scaling_fit
from vit_jax.scaling.answer import group_data
from vit_jax.scaling.expressions import with_computed
from vit_jax.scaling.fit import check_folder, fit_law
from vit_jax.scaling.fit import write as write_results
from vit_jax.scaling.method import LEAST_SQUARES
from vit_jax.scaling.query import groups
from vit_jax.scaling.question import NAMES, Question
from vit_jax.scaling.study import study
from vit_jax.scaling.table import read_runs

pytestmark = pytest.mark.medium


def write(path, **columns):
    """A CSV file."""
    lines = [",".join(columns)]
    lines += [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def written(runs, out, **question):
    """Returns what is printed, and fit.json; writes all files to `out`."""
    answered = study(read_runs(runs), Question(**question), runs=str(runs))
    text = write_results(answered, out, command="vit-jax fit ...")
    return text, json.loads((out / "fit.json").read_text())


def asked(runs, **question):
    """The same, and the figures, none of which is rendered."""
    answered = study(read_runs(runs), Question(**question), runs=str(runs))
    return str(answered), answered.result, answered.figures()


@pytest.fixture
def floor(tmp_path):
    """Loss = 3 x^-.4 + .1, with 1% of noise; two models, of which b needs four times as much x."""
    rng = np.random.default_rng(0)
    x = np.geomspace(10, 1e5, 14)
    rows = []
    for model, factor in (("a", 1), ("b", 4)):
        y = (3 * (x / factor) ** -0.4 + 0.1) * np.exp(rng.normal(0, 0.01, len(x)))
        rows += [(model, *pair) for pair in zip(x, y, strict=True)]
    model, x, y = zip(*rows, strict=True)
    return write(tmp_path / "runs.csv", model=model, **{"Seen Examples": x}, Loss=y)


@pytest.mark.slow
def test_a_law_its_figures_and_its_report(floor, tmp_path):
    question = {
        "law": "power_floor",
        "y": "Loss",
        "columns": {"x": "Seen Examples"},
        "where": ("model=a",),
        "hold_back": ("Seen Examples>=20%",),
        "predict": (1e6,),
    }
    text, result = written(floor, tmp_path / "out", **question)
    assert result["law"] == "power_floor"
    for parameter, truth in {"b": 3, "c": -0.4, "e": 0.1}.items():
        interval = result["params"][parameter]
        assert (
            interval["low"] < truth < interval["high"]
            and abs(interval["estimate"] / truth - 1) < 0.2
        )
    (entry,) = result["groups"]
    assert entry["diagnostics"]["rows"] == 11 and entry["test"]["rows"] == 3
    assert entry["test"]["rmse_log"] < 0.05 and entry["held_out"]["power_floor"]["origins"] >= 1
    (prediction,) = entry["tables"]["Predictions"]
    truth = 3 * 1e6**-0.4 + 0.1
    assert prediction["Loss"]["low"] < truth < prediction["Loss"]["high"]

    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2 and "b x^c + e" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page), "the page needs another file"
    for name in ("law", "residuals"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.width >= 500
        assert (tmp_path / "out" / f"{name}.svg").read_bytes().startswith(b"<?xml")
    assert "3 of them held back: Seen Examples>=20%" in text
    # The same question has the same answer, to the byte.
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    written(floor, tmp_path / "out", **question)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_the_page_is_complete(floor, tmp_path):
    """The answer comes first; the rows, terms and downloads are in the page itself."""
    columns = {"x": "Seen Examples"}
    question = {
        "law": "power",
        "y": "Loss",
        "columns": columns,
        "hold_back": ("Seen Examples>5e4",),
    }
    _, result = written(floor, tmp_path, where=("model=a",), **question)
    page = (tmp_path / "report.html").read_text()
    answer, trust = result["summary"]["answer"], result["summary"]["trust"]
    head, _, rest = page.partition(answer)
    assert head.endswith('<div class="answer partly"><p>') and "<h2>" not in head
    assert trust == "partly" and rest.index("Trust: partly.") < rest.index("<svg")
    assert "use it between the fitted runs only" in rest and "lack of fit, p = " in rest
    b, c = (result["params"][name]["estimate"] for name in "bc")
    assert answer.startswith(
        f"y = {b:.3g} x^{c:.3g} (y = Loss, x = Seen Examples) describes 13 runs"
    )
    assert 'name="viewport"' in head and "prefers-color-scheme: dark" in head
    downloads = {
        name: base64.b64decode(content).decode()
        for name, content in re.findall(r'download="(.*?)" href="data:[^,]*;base64,(.*?)"', page)
    }
    assert downloads.keys() == {"law.svg", "residuals.svg", "rows.csv", "parameters.csv"}
    assert downloads["law.svg"] == (tmp_path / "law.svg").read_text()
    rows = list(csv.DictReader(io.StringIO(downloads["rows.csv"])))
    assert [row["use"] for row in rows] == ["fitted"] * 13 + ["held back"]
    # The prediction of the row that is held back was refused, so none is told.
    assert rows[-1]["prediction"] == "" and float(rows[0]["prediction"]) > 1
    assert "<td>converged</td><td>yes</td>" in page and "starts_agreeing" not in page
    for term in ("condition number", "p-value (lack of fit)"):
        assert f"<dt>{term}</dt>" in page and f"<td>{term}</td>" in page


def test_fit_law_is_what_the_command_computes(floor, tmp_path):
    out = tmp_path / "out"
    values = flags.FlagValues()
    define(values)
    arguments = [
        *(f"--runs={floor}", f"--out={out}", "--law=power_floor", "--y=Loss", "--x=Seen Examples"),
        *("--group=model", "--huber_delta=0.001", "--bounds=e=0:1", "--starts=c=-0.5,-0.2"),
    ]
    values(["fit", *arguments])
    main(values, [])
    rows = list(csv.DictReader(io.StringIO(floor.read_text())))
    frame = {key: [float(row[key]) for row in rows] for key in ("Seen Examples", "Loss")}
    frame["model"] = [row["model"] for row in rows]
    answered = fit_law(
        frame, "power_floor", y="Loss", x="Seen Examples", group="model",
        huber_delta=0.001, bounds={"e": (0, 1)}, starts={"c": (-0.5, -0.2)},
    )  # fmt: skip
    command = json.loads((out / "fit.json").read_text())
    assert command.pop("runs") == str(floor) and answered.result["runs"] == "columns"
    assert command == {k: v for k, v in answered.result.items() if k != "runs"}
    # b needs four times as much x, so at four times x it has the error of a.
    a, b = answered.predict([1e4], model="a"), answered.predict(4e4, model="b")
    assert a.estimate == pytest.approx(b.estimate, rel=0.03) and a.supported
    assert a.low < 3 * 1e4**-0.4 + 0.1 < a.high
    assert answered.params(model="a")["c"].low < -0.4 < answered.params(model="a")["c"].high
    with pytest.raises(ConfigError, match=r"2 groups match \{\}: name one of model=a; model=b"):
        answered.predict(1e4)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"x": [1.0, 2.0], "y": [1.0]}, "one length, but have these: x 2, y 1"),
        ({"x": [[1.0], [2.0]], "y": [1.0, 2.0]}, '"x" has 2 dimensions'),
    ],
)
def test_columns_that_are_no_table(table, message):
    with pytest.raises(DataError, match=message):
        fit_law(table, "power", x="x", y="y")


def test_the_example_of_fit_law():
    assert doctest.testmod(scaling_fit) == (0, 6)


def test_groups_are_compared(floor):
    question = {"law": "power_floor", "y": "Loss", "columns": {"x": "Seen Examples"}}
    question["group"] = ("model",)
    text, result, figures = asked(floor, **question)
    assert "a and b: No crossing" in text and "For the error of a at Seen Examples" in text
    assert [entry["group"] for entry in result["groups"]] == [{"model": "a"}, {"model": "b"}]
    (crossing,) = result["crossings"]
    assert (crossing["group"], crossing["over"]) == ("a", "b") and "estimate" not in crossing
    # b needs four times the x, wherever one looks.
    assert crossing["times_x"]["low"] < 4 < crossing["times_x"]["high"]
    assert crossing["times_x"]["estimate"] == pytest.approx(4, rel=0.1)
    # Whichever group comes first in the table, the first of the two that are named is meant.
    head, *lines = floor.read_text().splitlines()
    floor.write_text("\n".join([head, *lines[14:], *lines[:14]]) + "\n")
    _, turned, _ = asked(floor, **question)
    assert turned["crossings"] == [crossing] and "a leads" in crossing["reason"]
    assert "curves" in figures


@pytest.mark.slow  # It compiles a law of its own.
def test_both_inputs_and_the_best_of_a_budget(tmp_path):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e4, 1e7, 6), np.geomspace(1e5, 1e8, 6)))
    y = 0.2 + 40 / n**0.5 + 90 / d**0.5
    runs = write(
        tmp_path / "runs.csv", params=n, examples_seen=d, error=y, total_train_flops=96 * n * d
    )
    _, result, figures = asked(runs, law="chinchilla", budgets=(9.6e12,))
    truth = {"E": 0.2, "A": 40, "B": 90, "alpha": 0.5, "beta": 0.5}
    for parameter, value in truth.items():
        assert result["params"][parameter]["estimate"] == pytest.approx(value, rel=1e-6)
    (entry,) = result["groups"]
    assert entry["diagnostics"]["flops_per_param_and_example"] == pytest.approx(96)
    (best,) = entry["tables"]["Best for a budget"]
    # A / N^.5 = B / D^.5 and N D = 1e11.
    assert best["n"]["estimate"] == pytest.approx((1e11 * (40 / 90) ** 2) ** 0.5, rel=1e-4)
    assert best["n"]["estimate"] * best["d"]["estimate"] == pytest.approx(1e11, rel=1e-4)
    assert "contours" in figures


def valleys():
    """Columns of a sweep of four budgets, the best x of which grows with their root."""
    budgets = np.repeat([1e12, 1e13, 1e14, 1e15], 7)
    best = (budgets / 1e12) ** 0.5 * 1e4
    x = best * np.tile(np.geomspace(0.2, 5, 7), 4)
    y = 0.1 + 1e3 / budgets**0.3 * (1 + 0.1 * np.log(x / best) ** 2)
    return {"params": x, "total_train_flops": budgets, "error": y}


def test_valleys(tmp_path):
    text, result, figures = asked(write(tmp_path / "runs.csv", **valleys()), law="isoflop")
    assert result["law"] == "isoflop"
    assert result["params"]["c"]["estimate"] == pytest.approx(0.5, abs=1e-6)
    assert "misplaces the best by" in text and "isoflop" in figures


@pytest.mark.slow  # It compiles a law of its own.
def test_the_arms_of_a_star(tmp_path):
    def loss(x, t, best):
        return 0.1 + best**0.4 * x**-0.4 + x**0.3 * best**-0.3 * 3 * t**-0.2

    rows = []
    for t in np.geomspace(1e3, 1e6, 4):
        rows += [(w, 8, 16, t, loss(w, t, 5)) for w in (8, 16, 32, 64, 128, 256)]
        # The centre belongs to all arms: 32 / 5 = 8 / 1.25 = 16 / 2.5.
        rows += [(32, d, 16, t, loss(d, t, 1.25)) for d in (1, 2, 4, 16, 64)]
        rows += [(32, 8, m, t, loss(m, t, 2.5)) for m in (2, 4, 8, 32, 128)]
    width, depth, mlp, t, y = zip(*rows, strict=True)
    runs = write(
        tmp_path / "runs.csv", width=width, depth=depth, mlp_dim=mlp, total_train_flops=t, error=y
    )
    text, result, _ = asked(runs, law="shape", columns={"x": "width,depth,mlp_dim"})
    arms = ["width", "depth", "mlp_dim"]
    assert [entry["group"] for entry in result["groups"]] == [{"x": arm} for arm in arms]
    for entry in result["groups"]:
        assert entry["diagnostics"]["rows"] == 24 and entry["diagnostics"]["rmse_log"] < 1e-4
        for row in entry["tables"]["Best for a budget"]:
            assert row["exponent"]["estimate"] == pytest.approx(0.2 / 0.7, rel=0.02)
    assert [row["centre"] for row in result["grown"]] == [32, 8, 16]
    for row in result["grown"]:
        assert row["grown"] / row["centre"] == pytest.approx(10 ** (0.2 / 0.7 / 3), rel=0.02)
    assert "SoViT's joint update" in text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"law": "powr"}, ConfigError, r'--law=powr: no such law\. Did you mean "power"'),
        ({"law": "power", "y": "loss"}, ConfigError, 'no column "loss". Did you mean "Loss"'),
        ({"law": "power", "y": "Loss"}, ConfigError, 'no column "total_train_flops"'),
        ({"law": "chinchilla", "y": "Loss", "predict": (1.0,)}, ConfigError, "laws of one input"),
        ({"law": "power", "budgets": (1.0,)}, ConfigError, "--budget is for the law chinchilla"),
        ({"law": "isoflop", "hold_back": ("Loss>1",)}, ConfigError, "fit chinchilla to test"),
        ({"predict": (1.0, np.inf)}, ConfigError, "--predict=1,inf: write numbers above 0"),
        ({"columns": {"n": "Loss"}}, ConfigError, "--n=Loss: the law auto has no input n, only x"),
        (
            {"law": "power", "y": "Loss", "columns": {"x": "model"}},
            ConfigError,
            "The column \"model\" is not numeric: it has 'a' in row 1",
        ),
        (
            {"law": "power", "y": "Loss", "columns": {"x": "Loss"}, "where": ("Loss>1000",)},
            DataError,
            "No row of the table is left",
        ),
        (
            {"law": "power", "y": "Loss", "columns": {"x": "Loss"}, "where": ("Loss>1.5",)},
            DataError,
            "(?s)No law could be fitted.*needs at least 3 rows",
        ),
    ],
)
def test_questions_that_have_no_answer(floor, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        written(floor, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_group_of_fewer_runs_than_parameters_is_named(tmp_path):
    """Runs have several rows each: those of two runs do not say how sure two parameters are."""
    rng = np.random.default_rng(0)
    runs = [f"run{i}" for i in range(8) for _ in range(5)]
    x = np.geomspace(10, 1e4, 40)
    y = x**-0.3 * np.exp(rng.normal(0, 0.01, 40))
    table = write(tmp_path / "runs.csv", run=runs, model=["a"] * 30 + ["b"] * 10, x=x, y=y)
    question = {"law": "power", "y": "y", "columns": {"x": "x"}, "group": ("model",)}
    text, result, _ = asked(table, **question)
    a, b = result["groups"]
    assert a["params"]["c"]["low"] < -0.3 < a["params"]["c"]["high"]
    assert b["error"].startswith(
        "2 clusters are too few for intervals of the 2 parameters of power"
    )
    assert b["error"].endswith(". Add runs. Or fit the groups as one, without --group.")
    assert "2 clusters are too few" in text


def test_too_few_runs_of_all_groups_are_one_message_that_says_what_helps(tmp_path):
    models, x = np.repeat([f"m{i}" for i in range(8)], 4), np.tile([10, 20, 80, 80], 8)
    table = write(tmp_path / "runs.csv", model=models, x=x, y=x**-0.5)
    question = {"y": "y", "columns": {"x": "x"}, "group": ("model",)}
    with pytest.raises(DataError) as error:
        asked(table, law="auto", **question)
    _, line = str(error.value).split("\n")
    assert line.startswith("m0, m1, m2, m3, m4, m5, m6, m7: No law could be tested on larger")
    assert line.endswith("or fit --law=power or --law=power_floor, without that test.")
    with pytest.raises(DataError, match=r"there are 4\. Fit a law with fewer .*without --group"):
        asked(table, law="m4", **question)


def test_a_table_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match=r"nothere does not exist\."):
        read_runs(tmp_path / "nothere")


def test_the_expressions_in_the_help_are_of_a_table_of_a_sweep():
    expressions = re.findall(r"--[xy]=([\w]+[-*][\w]+)", COMMAND.description)
    assert len(expressions) == 2
    with_computed(read_runs(ROOT / "docs/study/runs.csv"), expressions)


@pytest.mark.parametrize("flops", ["unknown", 0])
def test_unknown_compute_is_six_flops_for_a_parameter_and_example(flops):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e4, 1e7, 5), np.geomspace(1e5, 1e8, 5)))
    y = 0.2 + 40 / n**0.5 + 90 / d**0.5
    table = {
        "params": n,
        "examples_seen": d,
        "error": y,
        "total_train_flops": np.array([flops] * len(n)),
    }
    (group,) = groups(table, np.arange(len(n)), ())
    (part,) = group_data(table, group, np.zeros(len(n), bool), Question(law="chinchilla"))
    assert part.flops_per == 6


def test_each_group_has_its_figure(tmp_path):
    """Whatever of its name a file's may have."""
    names = ("a/b", "a b", "A b", "ü" * 300)
    columns = {key: np.tile(values, len(names)) for key, values in valleys().items()}
    models = np.repeat(names, len(columns["error"]) // len(names))
    runs = write(tmp_path / "runs.csv", model=models, **columns)
    _, _, figures = asked(runs, law="isoflop", group=("model",))
    for name in figures:
        (tmp_path / f"{name}.png").touch()
    assert len(list(tmp_path.glob("isoflop_*.png"))) == len(names)
    assert len({name.lower() for name in figures}) == len(names)


@pytest.mark.slow
def test_the_command(floor, tmp_path):
    command = [
        *(sys.executable, "-m", "vit_jax.fit", f"--runs={floor}", "--law=power", "--y=Loss"),
        *("--x=Seen Examples", "--group=model", "--where=Seen Examples<1000"),
        f"--out={tmp_path / 'out'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "model=a: power, y = b x^c" in done.stdout and "report.html" in done.stdout
    assert "vit-jax fit --runs=" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_report_of_another_question_is_said_to_be_replaced(floor, tmp_path):
    question = {"law": "power", "y": "Loss", "columns": {"x": "Seen Examples"}}
    question |= {"where": ("model=a",), "method": LEAST_SQUARES}
    first, result = written(floor, tmp_path, **question)
    again, _ = written(floor, tmp_path, **question)
    assert "eplaces" not in first + again
    other, _ = written(floor, tmp_path, **question | {"where": ("model=b",)})
    note = f"Replaces the report of another question: Loss over Seen Examples, of {floor}."
    assert other.endswith(note) and result["question"]["method"]["delta"] == "Infinity"
    (tmp_path / "fit.json").write_text("[1]")
    foreign, _ = written(floor, tmp_path, **question)
    assert foreign.endswith("Replaces a fit.json that was not written by vit-jax fit.")


def test_an_output_folder_that_is_a_file_is_refused(floor):
    with pytest.raises(ConfigError, match=r"runs\.csv is a file: choose a folder"):
        check_folder(floor)


@pytest.mark.slow
def test_auto_chooses_by_larger_scales(floor):
    text, result, _ = asked(floor, y="Loss", columns={"x": "Seen Examples"}, where=("model=a",))
    (entry,) = result["groups"]
    assert result["law"] in NAMES and result["law"] != "power"
    errors = {name: error["rmse_log"] for name, error in entry["held_out"].items()}
    assert min(errors, key=errors.get) in (result["law"], "average")
    assert errors["power"] > 2 * errors[result["law"]] and "chosen" in text
