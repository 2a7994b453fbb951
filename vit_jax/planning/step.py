"""The train step of a config on given devices: the same that `vit-jax train` compiles there."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vit_jax.config import validate
from vit_jax.errors import ConfigError
from vit_jax.models import ModelConfig, read_section
from vit_jax.optim import total_steps
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes, xla_options
from vit_jax.training import rematerialisation
from vit_jax.training.experiment import Program

_LEAST_EFFORT = {"optimization_level": 9}  # EFFORT_O0 of XLA. A number, because JAX 0.9 wants one.


def check_config(config: FrozenConfigDict) -> None:
    """Raises ConfigError if a config is wrong, or is of a run that cannot be planned."""
    validate(config)
    if config.cache_features:
        raise ConfigError("cache_features=True trains a head alone, which needs no plan.")


@dataclasses.dataclass(frozen=True)
class Step:
    """A train step and the shapes of its arguments.

    Attributes:
      config: the config of the run.
      model_config: the config of its model, with the `remat` that was chosen for the mesh.
      remat_reason: how `remat` was chosen; "" if the config has it.
      mesh: the mesh of the run's devices.
      num_steps: the number of updates of the whole run.
      program: the programs of the run.
      batch: shape, dtype and sharding of each array of a batch.
    """

    config: FrozenConfigDict
    model_config: ModelConfig
    remat_reason: str
    mesh: Mesh
    num_steps: int
    program: Program
    batch: dict[str, jax.ShapeDtypeStruct]

    @classmethod
    def of(
        cls, config: FrozenConfigDict, mesh: Mesh, *, num_classes: int, num_examples: int
    ) -> "Step":
        """Returns the step of a config, whose data need not be here.

        Args:
          config: the config of the run.
          mesh: the mesh of its devices, which need not be here.
          num_classes: the number of classes of the training data.
          num_examples: the number of training examples in an epoch.

        Raises:
          ConfigError: the config is wrong, or does not fit the mesh.
        """
        check_config(config)
        meshes.check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)
        model_config = read_section(config.model, num_classes=num_classes)
        model_config, reason = rematerialisation.resolve(config, model_config, mesh)
        return cls.with_model(config, model_config, reason, mesh, num_examples=num_examples)

    @classmethod
    def with_model(
        cls,
        config: FrozenConfigDict,
        model_config: ModelConfig,
        remat_reason: str,
        mesh: Mesh,
        *,
        num_examples: int,
    ) -> "Step":
        """Returns the step of a config with this model; see `of`."""
        with jax.set_mesh(mesh):
            program = Program.of(config, model_config, mesh, num_examples=num_examples)
        sharding = meshes.batch_sharding(mesh)
        shapes = {
            "image": ((*model_config.image_size, model_config.channels), jnp.float32),
            "label": ((), jnp.int32),
            "weight": ((), jnp.float32),
        }
        batch = {
            key: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)
            for key, (shape, dtype) in shapes.items()
        }
        steps = total_steps(config, num_examples)
        return cls(config, model_config, remat_reason, mesh, steps, program, batch)

    @property
    def platform(self) -> str:
        """Platform of the mesh's devices: "tpu", "gpu" or "cpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def stop(self) -> jax.ShapeDtypeStruct:
        """Shape of the flag by which processes agree to stop."""
        return processes.flag_shape(self.mesh)

    def trace(self) -> Any:
        """Returns the traced step, a `jax.stages.Traced`."""
        with jax.set_mesh(self.mesh):
            return self.program.train_step.trace(self.program.shapes, self.batch, self.stop)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step, or why the compiler refused it.

    Attributes:
      text: the optimised program (HLO); "" if it was refused.
      memory: bytes on one device by name: "arguments", "temporaries", "outputs", "aliased" (outputs
        in the place of arguments) and "peak"; {} if it was refused.
      refusal: the compiler's error message on memory; "" if it fits.
      full_effort: see `compile_step`.
      seconds: seconds of "lower" and "compile".
    """

    text: str
    memory: dict[str, int]
    refusal: str
    full_effort: bool
    seconds: dict[str, float]

    @property
    def needed(self) -> int:
        """Bytes of arguments and temporaries, and of results that do not take arguments' place.

        XLA reports a peak that is smaller: it does not count the gaps between arrays. Of a refused
        program this is what the refusal says, of newer versions the temporaries alone, or 0.
        """
        if self.refusal:
            used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT]?)", self.refusal)
            return int(float(used[1]) * 1024 ** " KMGT".index(used[2] or " ")) if used else 0
        memory = self.memory
        return memory["arguments"] + memory["temporaries"] + memory["outputs"] - memory["aliased"]


def compile_step(step: Step, traced: Any, *, full_effort: bool) -> Compiled:
    """Compiles a step for its devices.

    Args:
      step: the step.
      traced: the result of its `trace`.
      full_effort: as `vit-jax train` compiles it; False: with the least effort, which takes a
        quarter of the time and gives nearly the same memory and collectives, but mostly moves
        more between memory and processor (docs/planning.md).
    """
    seconds = {}
    start = time.perf_counter()
    with jax.set_mesh(step.mesh):
        lowered = traced.lower(lowering_platforms=(step.platform,))
    seconds["lower"] = time.perf_counter() - start
    start = time.perf_counter()
    options = xla_options.compiler_options(step.config.compiler.options, step.platform)
    options |= {} if full_effort else _LEAST_EFFORT
    try:
        with xla_options.reported():
            compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds["compile"] = time.perf_counter() - start
        return Compiled("", {}, str(error), full_effort, seconds)
    seconds["compile"] = time.perf_counter() - start
    sizes = compiled.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "aliased": sizes.alias_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "peak": sizes.peak_memory_in_bytes,
    }
    return Compiled(compiled.as_text(), memory, "", full_effort, seconds)
