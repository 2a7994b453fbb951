"""Columns computed from columns: values, precedence, names with odd characters, errors."""

import numpy as np
import pytest

from vit_jax.errors import ConfigError
from vit_jax.scaling.expressions import with_computed

TABLE = {
    "top1": np.array([0.5, 0.75, np.nan]),
    "n": np.array([1, 2, 3]),
    "d": np.array([10**9, 10**10, 10**11]),
    "test/top1": np.array([0.1, 0.2, 0.3]),
    "test": np.array([6.0, 8.0, 10.0]),
    "Fehler %": np.array([10.0, 20.0, 30.0]),
    "Daten (Bilder)": np.array([1000, 3000, 10000]),
    "10-shot": np.array([60.0, 70.0, 80.0]),
    " padded": np.array([1.0, 2.0, 3.0]),
    "1": np.array([7.0, 7.0, 7.0]),
    "2*n": np.array([5.0, 5.0, 5.0]),
    "model": np.array(["a", "b", "c"]),
}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1-top1", [0.5, 0.25, np.nan]),
        ("100-10-shot", [40.0, 30.0, 20.0]),
        ("1-test/top1", [0.9, 0.8, 0.7]),  # The longest name.
        ("Fehler %/100", [0.1, 0.2, 0.3]),
        ("1-1e-1*n", [0.9, 0.8, 0.7]),
        ("2-n-1", [0.0, -1.0, -2.0]),  # From left to right.
        ("(1+n)*.5", [1.0, 1.5, 2.0]),
        ("-n", [-1.0, -2.0, -3.0]),
        ("n/(n-1)", [np.inf, 2.0, 1.5]),
        ("6e2*d*d", [6e20, 6e22, 6e24]),  # Beyond 64-bit integers.
        ("2*n", [5.0, 5.0, 5.0]),  # A column of that name.
    ],
)
def test_values(text, values):
    np.testing.assert_allclose(with_computed(TABLE, [text])[text], values, rtol=1e-15)


def test_the_table_stays_and_has_the_new_columns():
    computed = with_computed(TABLE, ["n", "1-top1", "1-top1"])
    assert list(computed) == [*TABLE, "1-top1"] and all(computed[k] is TABLE[k] for k in TABLE)
    assert list(TABLE)[-1] == "model"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1-tpo1", 'there is no column "tpo1". Did you mean "1-top1"'),
        ("1 - val/top1", 'no column "val/top1". Did you mean "1 - top1"'),  # Of a sweep's table.
        ("1-tset/top1", 'no column "tset/top1". Did you mean "1-test/top1"'),
        ("(1-tpo1)/tets", r'column "tpo1" or "tets". Did you mean "\(1-top1\)/test"'),
        ("2*tpo1/n", r'no column "tpo1". Did you mean "2\*top1/n"'),  # A division.
        ("1-qqqq", 'no column "qqqq". Accepted: '),
        ("1-model", "\"model\" is not numeric: it has 'a' in row 1"),
        ("1-", "missing at its end"),
        ("(1-top1", "a bracket is not closed"),
        ("(" * 5000 + "top1" + ")" * 5000, "nested too deeply"),
        ("1-1", "it contains no column"),
        ("n**2", r"missing before '\*2'"),
        ("__import__('os').getcwd()", 'there is no column "__import__"'),
    ],
)
def test_malformed_expressions_are_refused_with_the_reason(text, message):
    with pytest.raises(ConfigError, match=message):
        with_computed(TABLE, [text])
