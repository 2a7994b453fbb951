"""Without a coordination service, as on a plain Cloud TPU pod, several processes are refused."""

import jax
import pytest
from etils import epath

from tests.commands import call
from tests.small_run import small_config
from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.ours import OurModel
from vit_jax.errors import ConfigError
from vit_jax.parallel import processes
from vit_jax.parallel.watch import Watch
from vit_jax.rundir.agreement import agree
from vit_jax.training.run import train

MESSAGE = r"process 1 of 4.*no coordination service.*JAX_COORDINATOR_ADDRESS.*start them again"


@pytest.fixture
def second_of_four(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 1)


@pytest.mark.parametrize(
    "use",
    [
        processes.coordination_client,
        lambda: processes.exchange("message"),
        lambda: Watch(60),
        lambda: agree(epath.Path("/nowhere"), small_config(), {}, remat="none", mesh={}),
    ],
    ids=["client", "exchange", "watch", "agreement"],
)
def test_without_a_service_its_users_raise_an_error(second_of_four, use):
    with pytest.raises(ConfigError, match=MESSAGE):
        use()


def test_a_run_is_refused_before_it_writes_files(second_of_four, tmp_path):
    with pytest.raises(ConfigError, match=MESSAGE):
        train(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "--checkpoint=nothing", "image.png"),
        ("analyze", "--checkpoint=nothing"),
        ("convert", "--inspect=nothing"),
    ],
)
def test_a_command_that_runs_in_one_process_is_refused(second_of_four, arguments):
    done = call(*arguments)
    assert done.code == 2, done
    assert f"`vit-jax {arguments[0]}` runs in one process, and the TPU runtime" in done.err


def test_a_benchmark_of_one_of_several_processes_is_refused(second_of_four):
    with pytest.raises(ConfigError, match="`vit-jax benchmark` runs in one process"):
        OurModel(Case("mu/4"), None)


def test_a_running_service_is_used(second_of_four, monkeypatch):
    service = object()
    monkeypatch.setattr(processes.distributed.global_state, "client", service)
    assert processes.coordination_client() is service


def test_one_process_needs_no_service():
    assert processes.coordination_client() is None
    assert processes.exchange("message") == ["message"]
    with Watch(60):
        pass
