"""Our contender: the train step of `vit-jax train`, the inference of `vit-jax evaluate`."""

import pathlib
import time
from typing import Any

import flax
import jax
import numpy as np
from jaxtyping import Float32

from vit_jax.benchmarking import inputs, weights
from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.contenders import Preparation, Turn
from vit_jax.benchmarking.memory import peak_device_bytes
from vit_jax.errors import ConfigError
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import VitConfig
from vit_jax.models.attention import current_platform, resolve_backend
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes
from vit_jax.parallel.compilation import release_unused_memory
from vit_jax.training.experiment import Program
from vit_jax.training.rematerialisation import resolve


class OurModel:
    """The programs of a run: see `Contender`."""

    def __init__(self, case: Case, folder: pathlib.Path | None):
        """Checks the case.

        Args:
          case: what is measured.
          folder: has the parameters of `weights.write`; None: those of the initialisation are kept.

        Raises:
          ConfigError: the devices here are fewer than the case needs, or of several processes.
        """
        processes.check_alone("benchmark")
        self._folder = folder
        self._config = case.config()
        if len(jax.devices()) < case.num_devices:
            raise ConfigError(
                f"--mesh needs {case.num_devices} devices, but there are {len(jax.devices())}."
            )
        self._mesh = meshes.make_mesh(self._config.mesh, devices=jax.devices()[: case.num_devices])
        self._model_config, _ = resolve(self._config, case.model_config(), self._mesh)
        meshes.check_batch_size(case.batch_size, accum_steps=case.accum_steps, mesh=self._mesh)
        self._batch = jax.device_put(inputs.batch(case), meshes.batch_sharding(self._mesh))
        self._program = Program.of(
            self._config, self._model_config, self._mesh, num_examples=case.batch_size
        )
        self.compiled: Any = None  # The train step.

    def prepare(self) -> Preparation:
        """Initialises and compiles as a run does, and then loads the common parameters."""
        with jax.set_mesh(self._mesh):
            start = time.perf_counter()
            init = jax.jit(self._program.init, out_shardings=self._program.layout)
            state = jax.block_until_ready(init(jax.random.key(0)))
            init_seconds = time.perf_counter() - start

            self._stop = processes.flag_array(False, self._mesh)
            start = time.perf_counter()
            lowered = self._program.train_step.lower(state, self._batch, self._stop)
            trace_seconds = time.perf_counter() - start
            start = time.perf_counter()
            self.compiled = lowered.compile()
            compile_seconds = time.perf_counter() - start
            release_unused_memory()  # As a run does.

            if self._folder is not None:
                state = state.replace(params=self._common_parameters())
            self._state = state
        memory = self.compiled.memory_analysis()
        device = self._mesh.devices.flat[0]
        return Preparation(
            software=f"jax {jax.__version__}, flax {flax.__version__}",
            device=device.device_kind,
            platform=device.platform,
            init_seconds=init_seconds,
            trace_seconds=trace_seconds,
            compile_seconds=compile_seconds,
            temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
            argument_bytes=getattr(memory, "argument_size_in_bytes", None),
            settings=self._settings(),
        )

    def _settings(self) -> str:
        config = self._model_config
        if not isinstance(config, VitConfig):
            return ""
        backend = resolve_backend(config, train=True, platform=current_platform())
        return f"remat={config.remat} scan={str(config.scan).lower()} attention={backend}"

    def _common_parameters(self) -> Any:
        assert self._folder is not None, "outputs are those of the common parameters"
        return weights.read(self._folder, self._program.layout.params)

    def step(self) -> dict[str, jax.Array]:
        """Makes an update; returns its metrics, which may not be computed yet."""
        self._state, metrics = self.compiled(self._state, self._batch, self._stop)
        return metrics

    def train(self, steps: int) -> Turn:
        """Makes updates, without waiting for one before the next is dispatched."""
        start = time.perf_counter()
        losses = [self.step()["train/loss"] for _ in range(steps)]
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - start
        return Turn(seconds, tuple(float(loss) for loss in losses))

    def peak_bytes(self) -> int | None:
        """Returns the peak of the first device; None on a CPU."""
        return peak_device_bytes(self._mesh.devices.flat[0])

    def outputs(self) -> Float32[np.ndarray, "b classes"]:
        """Compiles the inference, with the parameters before training."""
        self._state = self.compiled = None  # Frees their memory.
        with jax.set_mesh(self._mesh):
            self._params = self._common_parameters()
            evaluator = Evaluator(self._config, self._model_config, self._mesh)
            self._forward = evaluator.compile(self._params, self._batch)
        return np.asarray(self._forward(self._params, self._batch)["logits"])

    def forward(self, steps: int) -> Turn:
        """Computes outputs, without waiting for one before the next is dispatched."""
        start = time.perf_counter()
        results = [self._forward(self._params, self._batch)["logits"] for _ in range(steps)]
        jax.block_until_ready(results)
        return Turn(time.perf_counter() - start)
