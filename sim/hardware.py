"""Accelerators and systems: what the datasheets say, each figure with its source.

Nothing here is fitted. How far a real kernel stays from these peaks is the business of
`sim.efficiency` and of the files under ``hardware/calibrations/``.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sim.figures import Figure
from sim.schema import StrictModel
from sim.units import (
    Bytes,
    BytesPerSecond,
    Dtype,
    FlopPerSecond,
    PositiveInt,
    Seconds,
    Watts,
)


class MemoryTier(StrictModel):
    """One kind of memory that can hold weights or KV cache."""

    kind: str
    """``HBM3e``, ``on-wafer SRAM``, ``LPDDR5X over NVLink-C2C`` and the like."""
    capacity_bytes: Figure[Bytes]
    """What a program can allocate on an empty chip."""
    bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """Datasheet peak of reading; of a tier behind a link, what the link lets through."""


class Achieved(StrictModel):
    """Rates that somebody measured on a chip whose kernels nobody published."""

    gemm_flop_per_s: Mapping[Dtype, Figure[FlopPerSecond]] = {}
    """Best large dense matrix product, by format of the product."""
    read_bytes_per_s: Figure[BytesPerSecond] | None = None
    """Reading or copying the fastest memory tier."""


class Power(StrictModel):
    """Electric power of one accelerator."""

    tdp_w: Figure[Watts]
    """Board power limit."""
    idle_w: Figure[Watts]
    """Powered on, model loaded, nothing to do."""


class Accelerator(StrictModel):
    """One chip as its vendor sells it (one file of ``hardware/accelerators``)."""

    name: str
    """What people call it."""
    vendor: str
    family: str
    """Chips of one family share laws where one of them has not been measured."""
    speculative: bool = False
    """True where the vendor has not published the figures."""
    memory: Annotated[tuple[MemoryTier, ...], Field(min_length=1)]
    """Where weights and KV cache can lie, the fastest tier first."""
    on_chip_bytes: Figure[Bytes] | None = None
    """Cache or scratch memory between the arithmetic and the first tier."""
    peak_flop_per_s: Mapping[Dtype, Figure[FlopPerSecond]]
    """Dense peaks by dtype; a dtype that is missing is not supported in hardware."""
    achieved: Achieved = Achieved()
    power: Power

    @property
    def local_memory(self) -> MemoryTier:
        """The fastest tier: what bandwidth and capacity mean where nothing else is said."""
        return self.memory[0]


class Switched(StrictModel):
    """Every chip reaches every other at full rate through switches (NVSwitch, PCIe switches)."""

    topology: Literal["switched"]
    domain_chips: PositiveInt
    """How many chips one domain joins."""
    bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """Per chip, one direction."""
    latency_s: Figure[Seconds]
    """One small message from chip to chip."""
    in_network_reduction: Figure[bool] | None = None
    """Whether the switches add up (NVLink SHARP); none: they do not."""
    over_pcie: bool = False
    """Whether messages go over PCIe and the host, where collectives reach far less of the rate."""


class Dragonfly(StrictModel):
    """A direct network of low diameter; priced like switches of its injection rate."""

    topology: Literal["dragonfly"]
    domain_chips: PositiveInt
    bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """Per chip, one direction."""
    latency_s: Figure[Seconds]
    """One small message from chip to chip."""


class FullMesh(StrictModel):
    """Every pair of chips has a link of its own (MI300X, Gaudi, bridged pairs)."""

    topology: Literal["mesh"]
    domain_chips: PositiveInt
    link_bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """The link of one pair, one direction."""
    latency_s: Figure[Seconds]
    """One small message from chip to chip."""


class TorusAxis(StrictModel):
    """One dimension of a torus."""

    chips: PositiveInt
    wraps: bool
    """Whether a link joins the last chip to the first; a line otherwise."""
    link_bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """One link between neighbours, one direction."""


class Torus(StrictModel):
    """Chips on a grid, each joined to its neighbours along every axis (TPU, NeuronLink)."""

    topology: Literal["torus"]
    axes: Annotated[tuple[TorusAxis, ...], Field(min_length=1, max_length=3)]
    latency_s: Figure[Seconds]
    """One small message over one hop."""

    @property
    def domain_chips(self) -> int:
        """Chips of the whole grid."""
        return math.prod(axis.chips for axis in self.axes)


class Wafer(StrictModel):
    """One wafer that counts as one chip; what crosses it stays on its fabric."""

    topology: Literal["wafer"]
    fabric_bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """All links of the fabric together."""
    latency_s: Figure[Seconds]
    """One small message across the wafer."""

    @property
    def domain_chips(self) -> int:
        """A wafer is alone in its domain."""
        return 1


ScaleUp = Annotated[
    Switched | Dragonfly | FullMesh | Torus | Wafer, Field(discriminator="topology")
]
"""The network that joins the chips of one domain (NVLink, ICI, NeuronLink and the like)."""


class ScaleOut(StrictModel):
    """The network between domains: network cards and the switches behind them."""

    kind: str
    """``InfiniBand NDR``, ``EFAv3``, ``Ethernet`` and the like."""
    bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """Per chip, one direction."""
    latency_s: Figure[Seconds]
    """One small message from chip to chip of different domains."""
    shared_by_chips: PositiveInt = 1
    """Chips behind one card, which carries so many times the bandwidth of a chip."""


class System(StrictModel):
    """What is bought or rented: a host, a rack or a slice of a pod (``hardware/systems``)."""

    name: str
    accelerator: str
    """Id of a file in ``hardware/accelerators``."""
    chips: PositiveInt
    """Accelerators in the system."""
    scale_up: ScaleUp | None = None
    """None: the chips are alone."""
    scale_out: ScaleOut | None = None
    """None: nothing joins the domains, or nobody says what does."""
    host_memory: MemoryTier | None = None
    """Memory of the host that its chips can read: the share and the rate of one chip."""
    host_power_w: Figure[Watts]
    """Everything that is not an accelerator (CPUs, switches, NICs, fans), running, per system."""
    provisioned_power_w: Figure[Watts]
    """Power that must be reserved in the data centre, per system, cooling not counted."""

    @property
    def domain_chips(self) -> int:
        """Chips that the scale-up network joins."""
        return 1 if self.scale_up is None else self.scale_up.domain_chips
