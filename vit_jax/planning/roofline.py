"""How long a step takes at the data sheets' rates: arithmetic, memory, and links."""

import dataclasses
from collections.abc import Sequence

from vit_jax.planning.collectives import Collective
from vit_jax.planning.topology import Topology

# The share of the peak that matrix products reach at the slow end of the range. This is our
# assumption: it has no source, and no step of a plan has been timed on its devices.
PRODUCTS = 0.7


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device.

    Attributes:
      compute: all products at the peak, those that are computed again included.
      memory: all traffic to and from HBM at its bandwidth.
      links: all collectives inside a slice or node over all ports at once.
      links_one_axis: the same over the ports of one axis of the torus.
      network: what goes between slices or nodes.
    """

    compute: float
    memory: float
    links: float
    links_one_axis: float
    network: float

    @property
    def fastest(self) -> float:
        """Everything at its peak and at the same time."""
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def slowest(self) -> float:
        """Products at `PRODUCTS` of the peak, a collective on one axis, and nothing at once."""
        return self.compute / PRODUCTS + self.memory + self.links_one_axis + self.network

    @property
    def bound(self) -> str:
        """What takes longest: "compute", "memory", "links" or "network"."""
        return max(("compute", "memory", "links", "network"), key=lambda name: getattr(self, name))


def roofline(
    topology: Topology,
    *,
    peak: float,
    flops: float,
    hbm_bytes: float,
    collectives: Sequence[Collective],
) -> Roofline:
    """Returns the roofline of a step.

    Args:
      topology: the chips and how they are connected.
      peak: FLOP/s of one device.
      flops: FLOPs of a step on one device.
      hbm_bytes: bytes that a step moves between the memory and the processor of one device.
      collectives: the collectives of a step.
    """
    chip = topology.chip
    inside = sum((each.sent_bytes for each in collectives if not each.network), 0.0)
    across = sum((each.sent_bytes for each in collectives if each.network), 0.0)
    port = chip.links / 2 / chip.devices / chip.ports
    ports = topology.ports_by_axis or (1,)
    return Roofline(
        compute=flops / peak,
        memory=hbm_bytes / (chip.bandwidth / chip.devices),
        links=inside / (port * sum(ports)),
        links_one_axis=inside / (port * min(ports)),
        network=across / (chip.network / chip.devices),
    )
