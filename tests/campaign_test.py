"""Runs that are really killed end in the same bits: see `tests.campaign`, here short and long."""

import pytest

from tests.campaign import PHASES, Campaign
from tests.conftest import campaign, slow

MOST = ("compile", "steps", "eval", "save", "write", "last", "plot")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("phases", "warm"), [slow(("steps", "save", "write", "last"), True), campaign(MOST, False)]
)
def test_kills_and_signals(tmp_path, phases, warm):
    shares = dict.fromkeys(phases, 1)
    runs = Campaign(tmp_path / "out", seed=0, shares=shares, variants=("threads",), warm=warm)
    runs.kill_runs(len(phases))
    assert not runs.different, runs.report()
    assert [kill.exit_code for kill in runs.kills] == [-9] * len(phases)
    assert {kill.aimed for kill in runs.kills} == set(phases)
    # However the machine's load moves them, they hit many phases.
    assert len({kill.hit for kill in runs.kills}) > (len(phases) - 1) // 2, runs.report()
    compared = ("params, bits", "opt_state, bits", "ema, bits", "metrics.jsonl, bytes")
    assert all(runs.equal[what] >= 1 for what in compared)

    runs.signal_runs(2)
    assert not runs.different, runs.report()
    assert [kill.by for kill in runs.kills[len(phases) :]] == ["SIGTERM", "SIGINT"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "warm"),
    [slow("SIGINT", True), campaign("SIGINT", False), campaign("SIGTERM", False)],
)
def test_a_signal_while_loader_processes_start(tmp_path, number, warm):
    """They get the signal as well: the terminal's and the scheduler's go to the whole group."""
    shares = {"steps": 1}
    runs = Campaign(tmp_path / "out", seed=0, shares=shares, variants=("workers",), warm=warm)
    runs.signal_run(0, number, "workers", aim="compile", step=0)
    assert not runs.different, runs.report()
    assert [kill.exit_code for kill in runs.kills] == [75]


@pytest.mark.campaign
@pytest.mark.timeout(6 * 3600)
def test_a_hundred_kills(tmp_path):
    shares = {phase: share for phase, (share, _) in PHASES.items()}
    runs = Campaign(tmp_path / "out", seed=0, shares=shares)
    runs.kill_runs(100)
    runs.signal_runs(16)
    assert not runs.different, runs.report()
    assert len([kill for kill in runs.kills if kill.by.startswith("kill")]) == 100
