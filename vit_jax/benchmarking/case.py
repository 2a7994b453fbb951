"""A case: the model, the batch and the settings that are measured.

Imports JAX only to read a model's config: the memory of PyTorch's workers must not contain it.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from ml_collections import FrozenConfigDict

from vit_jax.config import base_config, freeze, validate
from vit_jax.config.fields import declarations
from vit_jax.config.model import VitConfig
from vit_jax.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vit_jax.models import ModelConfig

# Of all contenders: small, so that rounding is not amplified from update to update.
LEARNING_RATE = 1e-2
ADAM_LEARNING_RATE = 1e-4
MOMENTUM = 0.9
CLIP_NORM = 1.0
AXES = tuple(name for name in base_config().mesh if name != "auto")  # data, fsdp, tensor.
OPTIMIZERS = ("sgd", "adamw")
DTYPES = ("float32", "bfloat16")


def choices(field: str) -> tuple[str, ...]:
    """Returns the accepted values of a field of a ViT's config, such as "remat"."""
    by_name = {each.name: declaration for each, declaration in declarations(VitConfig)}
    return tuple(by_name[field].choices or ())


def settled_choices(field: str) -> tuple[str, ...]:
    """Returns the `choices` that are tried one by one: without "auto", which is one of them."""
    return tuple(choice for choice in choices(field) if choice != "auto")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a batch and settings. Settings that are None are those of the base config.

    Attributes:
      variant: size and patch, such as "B/16".
      image_size: side of the images in pixels.
      batch_size: images of a step, over all devices.
      dtype: of the computation; parameters are float32.
      mesh: devices along the axes data, fsdp and tensor.
      remat: `config.model.remat`.
      scan: `config.model.scan`.
      attention: `config.model.attention`.
      optimizer: sgd (with momentum) or adamw; the gradient is clipped at a global norm of 1.
      num_classes: outputs of the head.
      accum_steps: microbatches of a step.
      sizes: sizes that replace those of the variant, such as (("depth", 24),).
    """

    variant: str
    image_size: int = 224
    batch_size: int = 16
    dtype: str = "float32"
    mesh: tuple[int, ...] = (1, 1, 1)
    remat: str | None = None
    scan: bool | None = None
    attention: str | None = None
    optimizer: str = "sgd"
    num_classes: int = 1000
    accum_steps: int = 1
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def num_devices(self) -> int:
        """Number of devices of the mesh."""
        return math.prod(self.mesh)

    @property
    def learning_rate(self) -> float:
        """Constant learning rate."""
        return LEARNING_RATE if self.optimizer == "sgd" else ADAM_LEARNING_RATE

    def config(self) -> FrozenConfigDict:
        """Returns the config of a run with this model, batch and optimizer.

        Raises:
          ConfigError: a value is not accepted.
        """
        c = base_config()
        c.batch_size, c.total_steps = self.batch_size, 1_000_000
        c.model.variant, c.model.image_size = self.variant, (self.image_size,)
        c.model.num_classes, c.model.dtype = self.num_classes, self.dtype
        c.model.update(dict(self.sizes))
        for name in ("remat", "scan", "attention"):
            if (value := getattr(self, name)) is not None:
                c.model[name] = value
        c.optim.name, c.optim.lr = self.optimizer, self.learning_rate
        c.optim.momentum, c.optim.clip_norm = MOMENTUM, CLIP_NORM
        c.optim.accum_steps = self.accum_steps
        c.optim.schedule.name = "constant"
        c.mesh.update(dict(zip(AXES, self.mesh, strict=True)))
        config = freeze(c)
        validate(config)
        return config

    def model_config(self) -> "ModelConfig":
        """Returns the config of the model; see `config`."""
        from vit_jax.models import read_section

        return read_section(self.config().model, num_classes=self.num_classes)

    def reference(self) -> "Case":
        """Returns the plain case whose losses are the reference: all of it in float32."""
        return dataclasses.replace(
            self, dtype="float32", mesh=(1, 1, 1), remat="none", scan=False, attention="xla",
            accum_steps=1,
        )  # fmt: skip

    def workload(self) -> "Case":
        """Returns the case without settings: equal for contenders that can be compared."""
        return dataclasses.replace(self, remat=None, scan=None, attention=None, accum_steps=1)

    def describe_workload(self) -> str:
        """Returns the model, the batch and the optimizer in words."""
        sizes = "".join(f" {name}={value}" for name, value in self.sizes)
        mesh = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, self.mesh, strict=True) if n > 1)
        return (
            f"{self.variant}{sizes}, {self.image_size} px, batch {self.batch_size}, {self.dtype}, "
            f"{self.optimizer}" + (f", mesh {mesh}" if mesh else "")
        )

    def describe_settings(self) -> str:
        """Returns the settings that are not those of the base config, such as "remat=full"."""
        values = {"remat": self.remat, "scan": self.scan, "attention": self.attention}
        return " ".join(
            f"{name}={str(value).lower()}" for name, value in values.items() if value is not None
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Case":
        """Returns the case of `to_json`, also after it was written as JSON."""
        sizes = tuple((name, value) for name, value in fields["sizes"])
        return cls(**{**fields, "mesh": tuple(fields["mesh"]), "sizes": sizes})


def parse_mesh(text: str) -> tuple[int, ...]:
    """Returns the devices along the axes of a flag such as "data=4,fsdp=2"; "" is one device.

    Raises:
      ConfigError: an axis or a number is wrong.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, text.split(",")):
        axis, _, number = part.partition("=")
        if axis not in sizes:
            raise ConfigError(f'--mesh: there is no axis "{axis}". {did_you_mean(axis, AXES)}')
        if not number.isdigit() or int(number) < 1:
            raise ConfigError(f"--mesh={text}: write whole numbers, such as data=4,fsdp=2.")
        sizes[axis] = int(number)
    return tuple(sizes.values())
