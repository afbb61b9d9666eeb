"""What keeps a fleet from being all there: failures, maintenance, scaling, and the time to boot.

A scenario says which parts fail, how requests survive that, when hosts are taken out for work and
how a pool grows and shrinks. The rates come from a file of ``hardware/reliability`` or from the
scenario itself; what neither names does not fail, and `fault_laws` says so aloud.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast, get_args

import numpy as np
from pydantic import Field, model_validator

from sim.errors import InputError
from sim.figures import Figure
from sim.hardware import Dragonfly, FullMesh, ScaleOut, ScaleUp, Switched, System, Torus
from sim.schema import StrictModel
from sim.units import BytesPerSecond, Fraction, NonNegativeInt, PositiveInt, Seconds

PartKind = Literal["engine", "chip", "link", "host", "rack"]
"""What can fail: the engine's processes, a chip, the links of a chip, a host, a rack of hosts."""

PARTS: tuple[PartKind, ...] = get_args(PartKind)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[Seconds, Field(gt=0)]
SpareKind = Literal["hot", "warm", "cold"]
RetryKeeps = Literal["nothing", "answer", "kv"]
RepairLaw = Literal["fixed", "exponential", "lognormal"]
Signal = Literal[
    "waiting_requests", "outstanding_requests", "kv_used_fraction", "ttft_p95_s", "slo_attainment"
]

MAX_HOST_CHIPS = 16
"""A system of more chips is a rack or a slice of a pod, and its hosts must be told apart."""


# --- The catalogue.


class PartRates(StrictModel):
    """How often parts of one kind fail, and how long they are away."""

    mtbf_s: Figure[Duration]
    """Mean time from a repair to the next failure, of one part."""
    repair_s: Figure[Seconds]
    """Mean time from the failure until the part can be used again."""
    shape: Figure[Positive] | None = None
    """Of a Weibull law: below 1 failures come early in a life, above 1 late; none: 1, no memory."""


class BootRates(StrictModel):
    """How long a replica takes from the order to its first step, without the weights."""

    provisioning_s: Figure[Seconds]
    """Until a host runs the engine's container: machine, drivers, image."""
    store_bytes_per_s: Figure[BytesPerSecond]
    """What one host reads from the store that keeps the weights."""
    warm_up_s: Figure[Seconds]
    """Starting processes, compiling, sizing the KV cache, capturing graphs."""


class Reliability(StrictModel):
    """One file of ``hardware/reliability``: rates of failures, or of booting, with sources."""

    name: str
    engine: PartRates | None = None
    """Per replica."""
    chip: PartRates | None = None
    link: PartRates | None = None
    """Per chip: its network card, cable and port."""
    host: PartRates | None = None
    rack: PartRates | None = None
    boot: BootRates | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.boot is None and all(getattr(self, kind) is None for kind in PARTS):
            raise ValueError("has no rates: give boot or at least one of " + ", ".join(PARTS))
        return self


# --- The scenario.


class PartFaults(StrictModel):
    """Failures of one kind of part, in place of those of a catalogue file."""

    mtbf_s: Duration
    """Mean time from a repair to the next failure, of one part."""
    repair_s: Seconds
    """Mean time from the failure until the part can be used again."""
    shape: Positive = 1.0
    """Of a Weibull law; 1 is the exponential one, without memory."""


class Faults(StrictModel):
    """Failures of parts, and what becomes of the requests that they hit."""

    rates: str | None = None
    """Id of a file in ``hardware/reliability``."""
    engine: PartFaults | None = None
    """Of the engine's processes, by replica; instead of ``rates``."""
    chip: PartFaults | None = None
    """Of one chip; instead of ``rates``."""
    link: PartFaults | None = None
    """Of the links of one chip; instead of ``rates``."""
    host: PartFaults | None = None
    """Of one host; instead of ``rates``."""
    rack: PartFaults | None = None
    """Of one rack of hosts; instead of ``rates``."""
    parts: tuple[PartKind, ...] | None = None
    """Kinds that fail; all that have a rate unless given."""
    rate_factor: Positive = 1.0
    """Failures come so many times as often: what a short run needs to see any."""
    repair: RepairLaw = "exponential"
    """Law of the time to repair around its mean."""
    repair_sigma: Positive = 1.0
    """Standard deviation of the logarithm, of the lognormal law."""
    chips_per_host: PositiveInt | None = None
    """Chips that go down with a host; the system's unless it is larger than a host."""
    hosts_per_rack: PositiveInt | None = None
    """Hosts that go down with a rack."""
    link_effect: Literal["slow", "down"] = "slow"
    """Whether a replica goes on over the links that are left, or waits for the repair."""
    link_bandwidth_fraction: Annotated[Fraction, Field(gt=0)] = 0.5
    """What is left of the bandwidth meanwhile."""
    link_network: Literal["scale_up", "scale_out"] = "scale_out"
    """Whose bandwidth that is."""
    spares: NonNegativeInt = 0
    """Replicas beside those that serve, to take over."""
    spare: SpareKind = "cold"
    """``hot``: loaded and idle; ``warm``: the host is ready, the weights are not loaded; ``cold``:
    the host has to be provisioned first."""
    lost: Literal["retry", "fail"] = "retry"
    """What becomes of the requests of a replica that fails."""
    retry_keeps: RetryKeeps = "answer"
    """``nothing``: the answer starts again; ``answer``: prompt and answer so far are prefilled
    elsewhere; ``kv``: their keys and values are in a remote store and only loaded."""
    max_attempts: PositiveInt = 3
    """A request that was sent so often is lost."""
    detection_s: Seconds = 0.0
    """From the failure until its requests are sent elsewhere."""

    @model_validator(mode="after")
    def _something_fails(self) -> Self:
        if self.rates is None and all(getattr(self, kind) is None for kind in PARTS):
            raise ValueError("nothing fails: name rates or give one of " + ", ".join(PARTS))
        return self


class Maintenance(StrictModel):
    """Planned work on all replicas in turn."""

    start_s: Seconds
    """When the first round begins."""
    duration_s: Seconds
    """Work on one replica, after it is empty."""
    period_s: Duration | None = None
    """From the start of a round to that of the next; none: there is one round."""
    max_unavailable: PositiveInt = 1
    """Replicas that are out at the same time."""
    drain_s: Seconds = 300.0
    """How long a replica may take to finish its requests; those left are treated as lost."""


class Autoscaling(StrictModel):
    """A controller that keeps a signal near its target by starting and draining replicas.

    The rule is that of the Kubernetes HorizontalPodAutoscaler
    (https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/): wanted replicas =
    ceil(replicas x signal / target), nothing within the tolerance, and scale-in to the highest
    number wanted within a while.
    """

    signal: Signal
    """Waiting or outstanding requests per replica, mean share of KV blocks in use, 95th percentile
    of the time to first token, or share of requests that meet the SLO."""
    target: Positive
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt
    interval_s: Duration = 15.0
    """Between two looks at the signal."""
    window_s: Duration = 60.0
    """Requests that left so long ago at most count for the two signals of the service level."""
    tolerance: Fraction = 0.1
    """Deviation from the target that is let pass, as a fraction of it."""
    scale_out_cooldown_s: Seconds = 0.0
    """Time after a scale-out until the next one."""
    scale_in_cooldown_s: Seconds = 300.0
    """Fewer replicas must have been wanted for so long."""
    max_step_replicas: PositiveInt | None = None
    """Replicas that one look adds at most."""

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})"
            )
        if self.signal in ("slo_attainment", "kv_used_fraction") and self.target >= 1:
            raise ValueError(f"a target of {self.target} for {self.signal} is not below 1")
        return self


class Boot(StrictModel):
    """How long a replica takes to come up; ``rates`` and the system say what is not given here."""

    rates: str | None = None
    """Id of a file in ``hardware/reliability`` that has ``boot``."""
    provisioning_s: Seconds | None = None
    """Until a host runs the engine's container."""
    warm_up_s: Seconds | None = None
    """Starting processes, compiling, sizing the KV cache, capturing graphs."""
    store_bytes_per_s: BytesPerSecond | None = None
    """What one host reads from the store of weights."""
    nic_bytes_per_s: BytesPerSecond | None = None
    """Network cards of one host together; those of the system's scale-out network unless given."""
    host_memory_bytes_per_s: BytesPerSecond | None = None
    """Writing the weights into the memory of one host; taken to be no limit unless given."""
    chip_link_bytes_per_s: BytesPerSecond | None = None
    """From host memory into one chip; that of the system's host memory unless given."""
    weights_from: Literal["store", "host"] = "store"
    """Where the weights lie: in a remote store, or in the memory of the host already."""


# --- From both to laws.


@dataclass(frozen=True)
class PartLaw:
    """When one part fails and comes back: an alternating renewal process.

    Examples
    --------
    >>> law = PartLaw(mtbf_s=99.0, repair_s=1.0)
    >>> law.availability
    0.99
    """

    mtbf_s: float
    repair_s: float
    shape: float = 1.0
    repair: RepairLaw = "exponential"
    repair_sigma: float = 1.0

    @property
    def availability(self) -> float:
        """Share of the time that the part can be used, in the long run, whatever the laws."""
        return self.mtbf_s / (self.mtbf_s + self.repair_s)

    def draw_life_s(self, rng: np.random.Generator) -> float:
        """Draw a time to failure: Weibull, its mean ``mtbf_s`` (scale x Gamma(1 + 1/shape))."""
        scale = self.mtbf_s / math.gamma(1 + 1 / self.shape)
        return scale * float(rng.weibull(self.shape))

    def draw_repair_s(self, rng: np.random.Generator) -> float:
        """Draw a time to repair, its mean ``repair_s``."""
        if self.repair == "fixed":
            return self.repair_s
        if self.repair == "exponential":
            return self.repair_s * float(rng.exponential())
        spread = self.repair_sigma * float(rng.standard_normal())
        return self.repair_s * math.exp(spread - self.repair_sigma**2 / 2)


@dataclass(frozen=True)
class FaultLaws:
    """Who fails, and what a reader must know about it."""

    laws: Mapping[PartKind, PartLaw]
    notes: tuple[str, ...]


def fault_laws(faults: Faults, rates: Reliability | None) -> FaultLaws:
    """Put the rates of the scenario over those of the catalogue.

    Parameters
    ----------
    faults : Faults
    rates : Reliability, optional
        The entry that ``faults.rates`` names.

    Raises
    ------
    InputError
        A kind of ``faults.parts`` has no rate.
    """
    laws: dict[PartKind, PartLaw] = {}
    for kind in PARTS if faults.parts is None else faults.parts:
        law = _law_of(kind, faults, rates)
        if law is not None:
            laws[kind] = law
        elif faults.parts is not None:
            raise InputError(
                f"faults.parts names {kind}, whose rate is not known; give faults.{kind} with "
                f"mtbf_s and repair_s, or rates that have it",
                key="faults.parts",
            )
    if not laws:
        raise InputError(
            f"{faults.rates} has no rate of failure; name another file in faults.rates, or give a "
            "rate",
            key="faults.rates",
        )
    steady = ", ".join(kind for kind in PARTS if kind not in laws)
    notes = [f"Failures of these parts are not modelled: {steady}."] if steady else []
    if faults.rate_factor != 1:
        notes.append(f"Failures come {faults.rate_factor:g} times as often as their rates say.")
    return FaultLaws(laws, tuple(notes))


def _law_of(kind: PartKind, faults: Faults, rates: Reliability | None) -> PartLaw | None:
    own = cast("PartFaults | None", getattr(faults, kind))
    if own is not None:
        mtbf_s, repair_s, shape = own.mtbf_s, own.repair_s, own.shape
    else:
        listed = cast("PartRates | None", None if rates is None else getattr(rates, kind))
        if listed is None:
            return None
        mtbf_s, repair_s = listed.mtbf_s.value, listed.repair_s.value
        shape = 1.0 if listed.shape is None else listed.shape.value
    mtbf_s /= faults.rate_factor
    return PartLaw(mtbf_s, repair_s, shape, faults.repair, faults.repair_sigma)


def chips_per_host(faults: Faults, system: System) -> int:
    """Chips that go down with a host.

    Raises
    ------
    InputError
        The system is larger than a host, and nobody says how many chips a host has.
    """
    if faults.chips_per_host is not None:
        return faults.chips_per_host
    if system.chips > MAX_HOST_CHIPS:
        raise InputError(
            f"{system.name} has {system.chips} chips on several hosts; say with "
            f"faults.chips_per_host how many go down with one",
            key="faults.chips_per_host",
        )
    return system.chips


def degraded(system: System, faults: Faults) -> System:
    """Return the system with what a failed link leaves of its bandwidth, to price steps on.

    All chips of a replica wait for the one with the slow link, so the whole network slows down.

    Raises
    ------
    InputError
        The system has no such network, or it is one wafer's.
    """
    fraction = faults.link_bandwidth_fraction
    network: ScaleUp | ScaleOut | None = getattr(system, faults.link_network)
    if isinstance(network, Torus):
        slow_axes = tuple(
            axis.model_copy(
                update={
                    "link_bandwidth_bytes_per_s": _scaled(axis.link_bandwidth_bytes_per_s, fraction)
                }
            )
            for axis in network.axes
        )
        slower: ScaleUp | ScaleOut = network.model_copy(update={"axes": slow_axes})
    elif isinstance(network, FullMesh):
        key = "link_bandwidth_bytes_per_s"
        figure = network.link_bandwidth_bytes_per_s
        slower = network.model_copy(update={key: _scaled(figure, fraction)})
    elif isinstance(network, Switched | Dragonfly | ScaleOut):
        figure = network.bandwidth_bytes_per_s
        slower = network.model_copy(update={"bandwidth_bytes_per_s": _scaled(figure, fraction)})
    else:
        raise InputError(
            f"faults.link_network is {faults.link_network}, but {system.name} has no such links; "
            f"leave link out of faults.parts, or set link_effect: down",
            key=["faults.link_network", "faults.link_effect", "faults.parts", "faults"],
        )
    return system.model_copy(update={faults.link_network: slower})


def _scaled(figure: Figure[BytesPerSecond], fraction: float) -> Figure[BytesPerSecond]:
    return figure.model_copy(update={"value": figure.value * fraction})


# --- Booting.


@dataclass(frozen=True)
class BootFacts:
    """What has to be moved before a replica can serve, and over what."""

    weights_bytes_per_chip: float
    """Of the fullest chip."""
    chips_per_replica: int
    chips_per_host: int
    system: System


@dataclass(frozen=True)
class BootTime:
    """Where the time goes from the order of a replica to its first step, in seconds."""

    provisioning_s: float
    load_s: float
    """Weights on their way, at the pace of the slowest link: they are streamed through."""
    warm_up_s: float
    legs_s: Mapping[str, float]
    """What each link on the way would take by itself."""
    notes: tuple[str, ...]

    @property
    def slowest_leg(self) -> str:
        """The link that sets the pace."""
        return max(self.legs_s, key=lambda leg: self.legs_s[leg])

    @property
    def total_s(self) -> float:
        """From the order to the first step."""
        return self.provisioning_s + self.load_s + self.warm_up_s

    @property
    def restart_s(self) -> float:
        """The same on a host that is there already."""
        return self.load_s + self.warm_up_s


def boot_time(boot: Boot, facts: BootFacts, rates: Reliability | None = None) -> BootTime:
    """Add up what a replica needs to come up.

    The hosts of a replica load side by side, each the weights of its own chips. Replicas that boot
    at the same time are taken not to disturb each other.

    Parameters
    ----------
    boot : Boot
    facts : BootFacts
    rates : Reliability, optional
        The entry that ``boot.rates`` names.

    Raises
    ------
    InputError
        A time or a rate is known from nowhere.
    """
    listed = None if rates is None else rates.boot
    if boot.rates is not None and listed is None:
        raise InputError(
            f"{boot.rates} says nothing about booting; name another file in boot.rates",
            key="boot.rates",
        )
    legs, notes = _legs(boot, facts, listed)
    return BootTime(
        provisioning_s=_known("provisioning_s", boot, listed),
        load_s=max(legs.values()),
        warm_up_s=_known("warm_up_s", boot, listed),
        legs_s=legs,
        notes=notes,
    )


def _legs(
    boot: Boot, facts: BootFacts, listed: BootRates | None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Time of each link on the way of the weights, and what is not known about them."""
    chips = min(facts.chips_per_replica, facts.chips_per_host)
    host_bytes = facts.weights_bytes_per_chip * chips
    memory, network = facts.system.host_memory, facts.system.scale_out
    link = boot.chip_link_bytes_per_s or (memory and memory.bandwidth_bytes_per_s.value)
    legs, notes = {}, []
    if link:
        legs["host to chip"] = facts.weights_bytes_per_chip / link
    else:
        notes.append("Nothing is known of the links from host to chip: no limit to booting.")
    if boot.weights_from == "host":
        if not link:
            raise InputError(
                f"boot.weights_from is host, but {facts.system.name} has no host_memory; give "
                f"boot.chip_link_bytes_per_s",
                key="boot.weights_from",
            )
        return legs, tuple(notes)
    store = _known("store_bytes_per_s", boot, listed)
    legs["store"] = host_bytes / store
    cards = boot.nic_bytes_per_s
    if cards is None and network is not None:
        cards = network.bandwidth_bytes_per_s.value * facts.chips_per_host
    if cards is None:
        notes.append("Nothing is known of the host's network cards: no limit to booting.")
    else:
        legs["network cards"] = host_bytes / cards
    if boot.host_memory_bytes_per_s is not None:
        legs["host memory"] = host_bytes / boot.host_memory_bytes_per_s
    return legs, tuple(notes)


def _known(key: str, boot: Boot, listed: BootRates | None) -> float:
    """Return the scenario's figure, else that of the catalogue."""
    own = cast("float | None", getattr(boot, key))
    if own is not None:
        return own
    if listed is None:
        raise InputError(
            f"boot.{key} is not known; give it, or name boot.rates that have it", key=f"boot.{key}"
        )
    return cast("Figure[float]", getattr(listed, key)).value
