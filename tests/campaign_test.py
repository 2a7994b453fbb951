"""A short campaign: runs that are really killed end in the same bits; see `tests.campaign`."""

import pytest

from tests.campaign import Campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
THREADS = ("threads",)


def test_killed_in_every_phase(tmp_path):
    phases = ("compile", "steps", "eval", "save", "write", "last", "plot")
    campaign = Campaign(tmp_path / "out", seed=0, shares=dict.fromkeys(phases, 1), variants=THREADS)
    campaign.kill_runs(len(phases))
    assert not campaign.different, campaign.report(0)
    assert [kill.exit_code for kill in campaign.kills] == [-9] * len(phases)
    assert {kill.aimed for kill in campaign.kills} == set(phases)
    # However the machine's load moves them, they hit many phases.
    assert len({kill.hit for kill in campaign.kills}) >= 4, campaign.report(0)
    compared = ("params, bits", "opt_state, bits", "ema, bits", "metrics.jsonl, bytes")
    assert all(campaign.equal[what] >= 1 for what in compared)


def test_told_to_stop_and_started_twice(tmp_path):
    campaign = Campaign(tmp_path / "out", seed=1, shares={"steps": 1}, variants=THREADS)
    campaign.signal_runs(2)
    campaign.second_starts(1)
    assert not campaign.different, campaign.report(0)
    assert [kill.by for kill in campaign.kills] == ["SIGTERM", "SIGINT"]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_told_to_stop_while_loader_processes_start(tmp_path, number):
    """They get the signal as well: the terminal's and the scheduler's go to the whole group."""
    campaign = Campaign(tmp_path / "out", seed=0, shares={"steps": 1}, variants=("workers",))
    campaign.signal_run(0, number, "workers", aim="compile", step=0)
    assert not campaign.different, campaign.report(0)
    assert [kill.exit_code for kill in campaign.kills] == [75]
