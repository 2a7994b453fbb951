"""No test is left out: the parts that the Makefile runs are all tests, each once."""

import itertools
import re

from tests.conftest import ROOT
from tests.parts import MARKERS, part_of


def selections():
    """What the Makefile's variables FAST, MEDIUM, SLOW and CAMPAIGN select, as Python."""
    text = (ROOT / "Makefile").read_text()
    return dict(re.findall(r"^(FAST|MEDIUM|SLOW|CAMPAIGN) := (.+)$", text, re.MULTILINE))


def test_every_test_is_in_the_one_part_that_its_markers_name():
    parts = selections()
    assert len(parts) == 4
    for chosen in itertools.product((False, True), repeat=len(MARKERS)):
        markers = dict(zip(MARKERS, chosen, strict=True))
        ran_by = [name.lower() for name, part in parts.items() if eval(part, {}, markers)]
        assert ran_by == [part_of({marker for marker in MARKERS if markers[marker]})], markers


def test_ci_runs_all_parts_but_the_campaign():
    text = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^(test\S*|campaign):.*\n\t(.+)$", text, re.MULTILINE))
    assert "$(FAST)" in recipes["test-fast"] and "$(CAMPAIGN)" in recipes["campaign"]
    assert "($(FAST)) or ($(MEDIUM))" in recipes["test"] and "$(SLOW)" in recipes["test-slow"]
    ci = (ROOT / ".ci" / "run").read_text()
    assert {"make test", "make lint", "make test-slow"} <= set(ci.splitlines())
