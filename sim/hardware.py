"""Accelerators and systems: what the datasheets say, each figure with its source.

Nothing here is fitted. How far a real kernel stays from these peaks is the business of
`sim.efficiency` and of the files under ``hardware/calibrations/``.
"""

from collections.abc import Mapping
from typing import Generic, Literal, TypeVar

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

T = TypeVar("T")

Confidence = Literal["datasheet", "measured", "secondary", "estimate"]


class Figure(StrictModel, Generic[T]):
    """One figure of a catalogue and where it comes from."""

    value: T
    """The figure; SI, or text with a unit such as ``3.35 TB/s``."""
    source: str
    """Where it was read: a document, a page or a repository file, with its date."""
    confidence: Confidence
    """``datasheet``: vendor's own; ``measured``; ``secondary``: press or analyst; ``estimate``."""
    as_of: str | None = None
    """The date of a figure that ages, such as a price."""
    note: str | None = None
    """What a reader must know before using it."""


class Memory(StrictModel):
    """The memory that holds weights and KV cache."""

    kind: str
    """``HBM3e`` and the like."""
    capacity_bytes: Figure[Bytes]
    """What a program can allocate on an empty chip."""
    bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """Datasheet peak."""


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
    memory: Memory
    peak_flop_per_s: Mapping[Dtype, Figure[FlopPerSecond]]
    """Dense peaks by dtype; a dtype that is missing is not supported in hardware."""
    power: Power


class ScaleUp(StrictModel):
    """The network that joins the chips of one domain (NVLink and the like)."""

    topology: Literal["switched"]
    """``switched``: every chip reaches every other at full rate through switches."""
    domain_chips: PositiveInt
    """How many chips one domain joins."""
    bandwidth_bytes_per_s: Figure[BytesPerSecond]
    """Per chip, one direction."""
    latency_s: Figure[Seconds]
    """One small message from chip to chip."""


class System(StrictModel):
    """What is bought or rented: a host or a rack (one file of ``hardware/systems``)."""

    name: str
    accelerator: str
    """Id of a file in ``hardware/accelerators``."""
    chips: PositiveInt
    """Accelerators in the system."""
    scale_up: ScaleUp
    host_power_w: Figure[Watts]
    """Everything that is not an accelerator (CPUs, switches, NICs, fans), running, per system."""
    provisioned_power_w: Figure[Watts]
    """Power that must be reserved in the data centre, per system, cooling not counted."""
