"""The named sets of XLA's options: their names are known, and a run with one says so."""

import json

import jax
import jax.numpy as jnp
import pytest

from tests.small_run import small_config
from vit_jax.config import base_config, validate
from vit_jax.errors import ConfigError
from vit_jax.parallel import xla_options
from vit_jax.parallel.xla_options import SETS
from vit_jax.rundir import workdir as workdirs
from vit_jax.training.run import train


@pytest.fixture(scope="module")
def lowered():
    return jax.jit(lambda x: 2 * x + 1).lower(jnp.ones(4))


@pytest.mark.parametrize("name", [name for name, platforms in SETS.items() if "gpu" in platforms])
def test_this_jaxlib_knows_the_options_for_gpus(lowered, name):
    lowered.compile(compiler_options=xla_options.compiler_options(name, "gpu"))


def test_an_option_that_the_compiler_lacks_is_an_error_with_the_fix(lowered):
    with (
        pytest.raises(ConfigError, match=r"no_such_option.*--config\.compiler\.options=none"),
        xla_options.reported(),
    ):
        lowered.compile(compiler_options={"xla_gpu_no_such_option": True})


def test_the_config_accepts_the_sets_and_nothing_else():
    config = base_config()
    for name in SETS:
        config.compiler.options = name
        validate(config)
    config.compiler.options = "fast"
    with pytest.raises(ConfigError, match=r"compiler\.options.*none, overlap"):
        validate(config)


def test_a_platform_without_options_has_none():
    assert [xla_options.compiler_options(name, "cpu") for name in SETS] == [{}] * len(SETS)
    assert xla_options.compiler_options("none", "tpu") == {}
    assert xla_options.compiler_options("sparse_core", "gpu") == {}


def test_a_run_may_continue_with_another_set():
    then, now = (
        workdirs.comparable(small_config(compiler__options=name)) for name in ("none", "overlap")
    )
    assert not workdirs.config_changes(then, now)


@pytest.mark.slow
def test_a_run_compiles_with_its_options_and_records_them(tmp_path, monkeypatch):
    # An option that XLA has on a CPU.
    options = {"xla_cpu_enable_fast_math": False}
    monkeypatch.setattr(xla_options, "SETS", {"overlap": {"cpu": options}})
    given = []
    stage = jax.stages.Lowered
    compile_program = stage.compile

    def recorded(self, compiler_options=None, **how):
        given.append(compiler_options)
        return compile_program(self, compiler_options, **how)

    monkeypatch.setattr(stage, "compile", recorded)
    train(small_config(compiler__options="overlap"), tmp_path / "run")
    assert options in given
    assert json.loads((tmp_path / "run" / "run.json").read_text())["compiler_options"] == options
