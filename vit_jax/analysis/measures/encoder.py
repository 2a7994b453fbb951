"""The model in the form that is measured, and the blocks of its forward pass one by one."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PyTree

from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.config.model import MixerConfig, ModelConfig, ResnetConfig, VitConfig
from vit_jax.errors import ConfigError
from vit_jax.models import Mixer, Resnet, Vit, build, describe_model, param_shapes
from vit_jax.models.blocks import Block, make_norm
from vit_jax.models.hooks import REGISTER_NEURONS
from vit_jax.models.mixer import MixerBlock
from vit_jax.parallel.constraints import constrain
from vit_jax.pretrained.adaptation import adapt_params
from vit_jax.pretrained.consistency import check_finite
from vit_jax.pretrained.model import Pretrained
from vit_jax.pretrained.run_checkpoint import one_device

Variables = dict[str, PyTree]
Model = Vit | Mixer | Resnet


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model in the form that is measured: float32, its blocks stacked, LoRA merged, no dropout.

    Attributes:
      model: the module.
      variables: {"params": ...}, and those of `vit_jax.models.hooks` that change a forward pass.
      name: of the checkpoint, for captions and messages.
    """

    model: Model
    variables: Variables
    name: str

    @property
    def config(self) -> ModelConfig:
        """Architecture."""
        return self.model.config

    @property
    def vit(self) -> VitConfig:
        """The config of a ViT.

        Raises:
          NotApplicableError: the model has no attention.
        """
        if not isinstance(self.config, VitConfig):
            kind = type(self.config).__name__.removesuffix("Config")
            raise NotApplicableError(f"{self.name} is a {kind}: it has no attention.")
        return self.config

    @property
    def blocks(self) -> VitConfig | MixerConfig:
        """The config of a model with blocks and tokens.

        Raises:
          NotApplicableError: the model is a ResNet.
        """
        if isinstance(self.config, ResnetConfig):
            raise NotApplicableError(
                f"{self.name} is a Resnet: it has no tokens and no blocks of one width."
            )
        return self.config


def measured(pretrained: Any) -> Measured:
    """Returns a loaded model in the form that is measured.

    Every measure begins with it, so what is no model is refused here.

    Args:
      pretrained: a `Pretrained`.

    Raises:
      ConfigError: it is something else, such as a path.
      CheckpointError: a parameter is NaN or infinite.
    """
    _check_model(pretrained)
    config, params = measured_config(pretrained.config), pretrained.params
    name = pretrained.loaded_from or describe_model(pretrained.config)
    # A training run asks with shapes whether a measure applies, before it has parameters.
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        check_finite(params, name=name)
    if param_shapes(config) != param_shapes(pretrained.config):  # Stacks blocks, merges LoRA.
        params = adapt_params(params, old=pretrained.config, new=config, mesh=_mesh_of(params))
    return Measured(cast(Model, build(config)), {"params": params}, name)


def _check_model(pretrained: Any) -> None:
    if isinstance(pretrained, str | os.PathLike):
        raise ConfigError(
            f'"{os.fspath(pretrained)}" is a path, not a model: '
            f'load_pretrained("{os.fspath(pretrained)}") returns the model.'
        )
    if not isinstance(pretrained, Pretrained):
        raise ConfigError(
            f"The first argument is of type {type(pretrained).__name__}, not a model: give what "
            "load_pretrained or create returns."
        )


def measured_config(config: ModelConfig) -> ModelConfig:
    """Returns the config of a model in the form that is measured."""
    config = dataclasses.replace(config, dtype="float32")
    if not isinstance(config, ResnetConfig):
        config = dataclasses.replace(config, scan=True, remat="none")
    if isinstance(config, VitConfig):  # cuDNN's attention has no float32.
        config = dataclasses.replace(config, lora_rank=0, attention="auto")
    return config


def _mesh_of(params: PyTree) -> Mesh:
    """Returns the mesh that parameters are on: in a training run, that of the run."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))
    meshes = (s.mesh for s in shardings if isinstance(s, NamedSharding))
    mesh = next(meshes, None)
    return mesh if isinstance(mesh, Mesh) else one_device()


Captured = dict[str, Array]


@partial(jax.jit, static_argnames=("model", "measure", "names"))
def measure_blocks(
    model: Vit | Mixer,
    variables: Variables,
    images: Float[Array, "b height width channels"],
    measure: Callable[..., PyTree],
    names: tuple[str, ...],
    arguments: tuple[PyTree, ...] = (),
) -> PyTree:
    """Runs a forward pass, and measures each block when it is reached.

    Only what `measure` returns is kept of a block: the memory does not grow with the attention
    matrices of all blocks.

    Args:
      model: of a `Measured`.
      variables: of the same.
      images: prepared.
      measure: ({name: intermediate of a block}, *arguments) -> arrays; a function that is defined
        once, since the program is compiled for it. Beside `names` there is "input", the block's
        input [b, n, width].
      names: intermediates, see `vit_jax.models.blocks.CAPTURED`; of a Mixer "blocks" alone.
      arguments: arrays for `measure`, which do not compile the program again if they change.

    Returns:
      What `measure` returns, with a leading axis of depth; on a mesh, every device has all of it.
    """
    config = model.config
    # XLA removes what follows the embedding.
    x = model.apply(variables, images, capture=("embed",))[1]["embed"]
    encoders = {
        collection: tree["encoder"] for collection, tree in variables.items() if "encoder" in tree
    }
    if isinstance(config, VitConfig) and config.pre_norm:
        norm = make_norm(config, "pre_norm")
        x = norm.apply({"params": encoders["params"]["pre_norm"]}, x)
    block = (
        Block(config, False, names)
        if isinstance(config, VitConfig)
        else MixerBlock(config, False, names)
    )

    def step(x, block_variables):
        y, captured = block.apply(block_variables, x, jnp.zeros(()))
        return y, measure({"input": x, **captured}, *arguments)

    _, measurements = jax.lax.scan(
        step, x, {collection: tree["blocks"] for collection, tree in encoders.items()}
    )
    return jax.tree.map(constrain, measurements)  # Each process reads all images' numbers.


def with_register_neurons(
    measured: Measured, masks: Float[Array, "depth hidden"] | Any
) -> Variables:
    """Returns variables with which the marked hidden units act on the last register token alone."""
    blocks = {"blocks": {"mlp": {"mask": jnp.asarray(masks, bool)}}}
    return {**measured.variables, REGISTER_NEURONS: {"encoder": blocks}}
