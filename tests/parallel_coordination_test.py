"""Without a coordination service, as on a plain Cloud TPU pod, several processes are refused."""

import jax
import pytest
from etils import epath

from tests.small_run import small_config
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


def test_a_running_service_is_used(second_of_four, monkeypatch):
    service = object()
    monkeypatch.setattr(processes.distributed.global_state, "client", service)
    assert processes.coordination_client() is service


def test_one_process_needs_no_service():
    assert processes.coordination_client() is None
    assert processes.exchange("message") == ["message"]
    with Watch(60):
        pass
