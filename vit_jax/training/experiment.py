"""An experiment: all that a config defines before a state or a batch exists."""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vit_jax.config import CLASSIFICATION
from vit_jax.data import pipeline, transforms
from vit_jax.data.base import Source
from vit_jax.data.batches import Batches, LoaderOptions
from vit_jax.data.blocks import Transform
from vit_jax.data.decoded_cache import DecodedCache, open_cache
from vit_jax.data.headers import check_headers
from vit_jax.data.image_folder import lower_root
from vit_jax.data.order import Chunks
from vit_jax.data.sources import open_source
from vit_jax.data.subset import few_shot, random_subset
from vit_jax.errors import ConfigError, DataError
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import (
    ModelConfig,
    build,
    param_shapes,
    read_section,
    update_flops_per_image,
)
from vit_jax.optim import make_optimizer, make_schedule, total_steps
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import xla_options
from vit_jax.telemetry.chips import peak_flops
from vit_jax.telemetry.clock import Clock
from vit_jax.telemetry.notes import note
from vit_jax.training import rematerialisation
from vit_jax.training.evaluations import Evaluation, build_evals, open_splits
from vit_jax.training.parts import number_of_parts
from vit_jax.training.periods import Periods
from vit_jax.training.state import TrainState, make_init, state_layout, with_shardings
from vit_jax.training.update import make_train_step

# An accuracy of fewer examples has a 95% interval of more than 4 points on either side.
_FEW = 500


@dataclasses.dataclass(frozen=True)
class Program:
    """The programs of a run and the layout of its state; they depend on shapes, not on data.

    Attributes:
      init: (key, params=None) -> the state before the first update; not jitted yet.
      shapes: shape, dtype and sharding of each array of the state.
      train_step: (state, batch, stop) -> (state, metrics), jitted; donates the state.
    """

    init: Callable[..., TrainState]
    shapes: TrainState
    train_step: Any

    @property
    def layout(self) -> TrainState:
        """Returns the shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    @classmethod
    def of(
        cls,
        config: FrozenConfigDict,
        model_config: ModelConfig,
        mesh: Mesh,
        *,
        num_examples: int,
        head: nn.Module | None = None,
    ) -> "Program":
        """Returns the programs of a config. Touches no device and opens no data.

        Args:
          config: the config of the run.
          model_config: the result of `vit_jax.models.read_section`.
          mesh: the mesh of the state and the batches.
          num_examples: number of examples in an epoch.
          head: trained instead of the model; its input are features in the place of images.
        """
        module = build(model_config)
        schedule = make_schedule(
            config.optim.schedule,
            total_steps=total_steps(config, num_examples),
            batch_size=config.batch_size,
            num_examples=num_examples,
        )
        tx: optax.GradientTransformation = make_optimizer(
            config.optim, param_shapes(model_config), schedule=schedule
        )
        init = make_init(config, module, tx)
        # The key is described as the one of `starting_point`, so that JAX traces `init` once.
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=meshes.replicated(mesh))
        shapes = jax.eval_shape(init, key)
        layout = state_layout(shapes, mesh)
        parts = 1 if head else number_of_parts(config, model_config, mesh)
        train_step = jax.jit(
            make_train_step(config, head or module, tx, schedule, parts=parts),
            donate_argnums=0,
            out_shardings=(layout, meshes.replicated(mesh)),
        )
        return cls(init, with_shardings(shapes, layout), train_step)

    def compile(
        self,
        batch: Mapping[str, jax.ShapeDtypeStruct],
        stop: jax.Array,
        *,
        mesh: Mesh,
        options: Mapping[str, Any],
    ) -> Future:
        """Compiles the train step in a thread, and returns at once.

        XLA needs Python's lock only at the beginning, so this process goes on with other work.

        Args:
          batch: shapes, dtypes and shardings of a batch.
          stop: a flag as the train step will get it.
          mesh: the mesh of the state and the batches.
          options: XLA's options; see `vit_jax.parallel.xla_options`.

        Returns:
          Its result is the compiled train step, or the error.
        """

        def compiled():
            with jax.set_mesh(mesh), xla_options.reported():  # Each thread has its own mesh.
                lowered = self.train_step.lower(self.shapes, batch, stop)
                return lowered.compile(compiler_options=dict(options))

        executor = ThreadPoolExecutor(1, thread_name_prefix="compilation")
        future = executor.submit(compiled)
        executor.shutdown(wait=False)
        return future


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run as defined by its config and its data.

    Attributes:
      config: the config, after `vit_jax.training.init_from.inherit_model` has completed it.
      model_config: the config of its model, with the `remat` that was chosen for `mesh`.
      remat_reason: how it was chosen; "" if it was not.
      mesh: the mesh of its devices.
      source: the training examples.
      transform: maps an example to the input of the model.
      evals: evaluations by name.
      total_steps: number of updates of the whole run.
      save_every_steps: number of updates between saves.
      cache: of decoded images, for training and evaluations; None: there is none.
      mesh_reason: how the sizes of the mesh were chosen; "" if the config has them.
    """

    config: FrozenConfigDict
    model_config: ModelConfig
    remat_reason: str
    mesh: Mesh
    source: Source
    transform: Transform
    evals: Mapping[str, Evaluation]
    total_steps: int
    save_every_steps: int
    cache: DecodedCache | None = None
    mesh_reason: str = ""

    @classmethod
    def of(
        cls, config: FrozenConfigDict, source: Source, mesh: Mesh, mesh_reason: str = ""
    ) -> "Experiment":
        """Builds the experiment of a config, and opens the data of its evaluations.

        Args:
          config: the config of the run.
          source: the result of `open_training_data`.
          mesh: the mesh of the run's devices.
          mesh_reason: how its sizes were chosen; "" if the config has them.

        Raises:
          VitJaxError: the config or the data is wrong, or they do not match.
        """
        model = read_section(config.model, num_classes=source.num_classes)
        if model.num_classes < source.num_classes:
            raise ConfigError(
                f"model.num_classes is {model.num_classes}, but {source.name} has "
                f"{source.num_classes} classes."
            )
        if source.num_classes == 1 and config.loss.name == "softmax_xent":
            raise DataError(_single_class(source, config))
        model, remat_reason = rematerialisation.resolve(config, model, mesh)
        transform = transforms.compose(
            config.data.train_transforms,
            image_size=model.image_size,
            channels=model.channels,
            key="data.train_transforms",
            decode=config.data.decode,
            cache=(cache := open_cache(config.data, processes=jax.process_count())),
        )
        steps = total_steps(config, len(source))
        periods = Periods.of(config, total_steps=steps, num_examples=len(source))
        splits = open_splits(config, class_names=source.class_names)
        skip_bad = config.data.on_bad == "skip"
        check_headers([source, *splits.values()], skip_bad=skip_bad)
        evals = build_evals(
            Evaluator(config, model, mesh, cache), sources=splits, every_steps=periods.evaluate
        )
        for name, evaluation in evals.items():
            is_accuracy = config.evals[name].type == CLASSIFICATION
            if is_accuracy and evaluation.num_examples < _FEW:
                precision = evaluation.precision(num_trained_on=len(source))
                note(f"{name}: {'up to ' if skip_bad else ''}{precision}.")
        return cls(
            config,
            model,
            remat_reason,
            mesh,
            source,
            transform,
            evals,
            steps,
            periods.save,
            cache,
            mesh_reason,
        )

    @property
    def evaluator(self) -> Evaluator:
        """Returns the evaluator of the model."""
        return Evaluator(self.config, self.model_config, self.mesh, self.cache)

    def program(self, head: nn.Module | None = None) -> Program:
        """Returns the programs of the run; see `Program.of`."""
        return Program.of(
            self.config, self.model_config, self.mesh, num_examples=len(self.source), head=head
        )

    def clock(self) -> Clock:
        """Returns a clock that counts the FLOPs of the run's updates."""
        return Clock(
            num_devices=self.mesh.size,
            flops_per_example=update_flops_per_image(self.model_config, self.config),
            peak_flops=peak_flops(self.mesh.devices.flat[0].device_kind),
        )

    @property
    def compiler_options(self) -> dict[str, Any]:
        """Returns XLA's options for the train step on the devices of the run."""
        platform = self.mesh.devices.flat[0].platform
        return xla_options.compiler_options(self.config.compiler.options, platform)

    def compile(self, program: Program, stop: jax.Array) -> Future:
        """Begins to compile the train step of a program of this run; see `Program.compile`.

        Raises:
          DataError: the first example is bad.
        """
        batch = pipeline.batch_shapes(
            self.source,
            self.transform,
            batch_size=self.config.batch_size,
            sharding=meshes.batch_sharding(self.mesh),
            skip_bad=self.config.data.on_bad == "skip",
        )
        return program.compile(batch, stop, mesh=self.mesh, options=self.compiler_options)

    def batches(
        self, start: int, *, on_bad: Callable[[int, int, int, str], None] | None
    ) -> Batches:
        """Returns the training batches, beginning with the batch after `start` updates.

        `on_bad`: see `vit_jax.data.pipeline.train_batches`.
        """
        config = self.config
        return pipeline.train_batches(
            self.source,
            self.transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start,
            num_steps=self.total_steps - start,
            sharding=meshes.batch_sharding(self.mesh),
            options=LoaderOptions.from_config(config.data),
            on_bad=on_bad,
            chunks=Chunks.from_config(config),
        )

    def evals_due(self, step: int) -> list[str]:
        """Returns the names of the evaluations that are due after `step` updates."""
        return [name for name in self.evals if self.evals[name].is_due(step, self.total_steps)]

    def save_is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates."""
        periodic = step % self.save_every_steps == 0
        keep_steps = self.config.checkpoint.keep_steps
        return step == self.total_steps or periodic or step in keep_steps


def open_training_data(config: FrozenConfigDict) -> Source:
    """Opens the training examples of a config.

    Raises:
      VitJaxError: they are missing or broken, or the config asks for more than there are.
    """
    source = open_source(config.data, split=config.data.split)
    source = random_subset(source, config.data.examples, seed=config.seed)
    return few_shot(source, config.data.shots, seed=config.seed)


def _single_class(source: Source, config: FrozenConfigDict) -> str:
    """Returns the error of a softmax over one class."""
    (name,) = source.class_names
    hint = ""
    if config.data.source == "image_folder":
        root, follow_links = config.data.data_dir, config.data.follow_links
        hint = lower_root(root, class_name=name, follow_links=follow_links)
    hint = hint or "Add images of another class."
    return f"{source.name}, {source.split}, has a single class, {name}. {hint}"
