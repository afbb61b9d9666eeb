"""How long the chips of one replica take to exchange data, and how anybody knows.

Measured laws come first, where they were measured over as many chips and over the same kind of
network: inside a scale-up domain, or across hosts. Elsewhere `sim.cost.fabric` reckons a time from
the datasheet and the source says so.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from sim.cost.fabric import Fabric
from sim.cost.operators import CollectiveOperation, ExpertExchange
from sim.cost.work import Number
from sim.efficiency import Calibration, Collective, Engine
from sim.errors import InputError
from sim.hardware import System, Torus
from sim.parallelism import ChipGroup
from sim.units import MICROSECOND_S

Array = npt.NDArray[np.float64]

LIBRARIES = ("nccl", "oneccl")
"""General libraries, which every engine falls back to."""
ACROSS_HOSTS = "_hosts"
"""Ends the name of a library in a calibration where its laws were measured across hosts."""
HOST_RANKS = 8
"""Ranks on each host in those measurements; a send has one."""

Mode = Literal["low_latency", "high_throughput"]

_DEEPEP = ("deepep_low_latency", "deepep_normal")
_NVLINK = ("trtllm_nvlink", "trtllm_nvlink_one_sided")
EXCHANGE_LIBRARIES: Mapping[Engine, tuple[tuple[str, ...], ...]] = {
    "vllm": (_DEEPEP, _NVLINK),
    "sglang": (_DEEPEP, _NVLINK),
    "trtllm": (_NVLINK, _DEEPEP),
    "native": (),
}
"""Kernels of expert exchange that each engine can run, preferred ones first.

The two modes of DeepEP stand side by side: engines take the low-latency one for decode steps and
the normal one for prompts. TensorRT-LLM's kernels over multi-node NVLink reach vLLM and SGLang
through FlashInfer, and DeepEP is one of TensorRT-LLM's choices on Hopper.
"""

MODES: Mapping[str, Mode] = {
    "deepep_low_latency": "low_latency",
    "deepep_normal": "high_throughput",
}
"""The mode of a library that has only one."""

EXCHANGE_START_S: Mapping[Mode, float] = {
    "low_latency": 12.0 * MICROSECOND_S,
    "high_throughput": 30.0 * MICROSECOND_S,
}
"""Fixed cost of one half of an exchange on a chip where nobody has measured it: assumed, the
middle of what DeepEP takes for one token per rank inside a host of H100, H200, B200, B300, GB200
or GB300, 8 to 17 us and 25 to 36 us (ai-dynamo/aiconfigurator, DeepEP tables, commit 095f58a)."""


_BANDWIDTHS = (
    "bandwidth_bytes_per_s",
    "link_bandwidth_bytes_per_s",
    "fabric_bandwidth_bytes_per_s",
)
"""What fields of networks are called that say how fast they are."""


class Left(NamedTuple):
    """What degraded links leave of a network's bandwidth: 1 is all of it."""

    scale_up: float = 1.0
    scale_out: float = 1.0

    def slowdown(self, ending: str | None) -> float:
        """Say how many times as long bytes take in laws whose libraries end so."""
        return 1 / (self.scale_out if ending else self.scale_up)

    def of(self, system: System) -> System:
        """Return a system with so much less bandwidth.

        Raises
        ------
        InputError
            A part is not above 0 and at most 1.
        """
        if not (0 < self.scale_up <= 1 and 0 < self.scale_out <= 1):
            raise InputError(
                f"degraded links leave {self.scale_up} of the scale-up and {self.scale_out} of the "
                "scale-out bandwidth: give parts above 0 and at most 1; a dead link stops a replica"
            )
        networks = {
            "scale_up": _weaker(system.scale_up, self.scale_up),
            "scale_out": _weaker(system.scale_out, self.scale_out),
        }
        return system.model_copy(update=networks)


def _weaker(network: BaseModel | None, left: float) -> BaseModel | None:
    """Return a network, or an axis of a torus, with a part of its bandwidth."""
    if network is None or left == 1.0:
        return network
    changes: dict[str, object] = {}
    for name in _BANDWIDTHS:
        figure = getattr(network, name, None)
        if figure is not None:
            changes[name] = figure.model_copy(update={"value": figure.value * left})
    if isinstance(network, Torus):
        changes["axes"] = tuple(_weaker(axis, left) for axis in network.axes)
    return network.model_copy(update=changes)


class Network:
    """Exchanges between the chips of replicas of one system as one engine runs them.

    Parameters
    ----------
    system : System
    accelerator_id : str
        Names the chip in the sources of measured laws.
    calibration : Calibration, optional
        None: nothing was measured on this chip.
    engine : Engine
    """

    def __init__(
        self, system: System, accelerator_id: str, calibration: Calibration | None, engine: Engine
    ) -> None:
        self.accelerator_id = accelerator_id
        self.engine = engine
        self.fabric = Fabric(system)
        self._calibration = calibration
        self._collectives = calibration.collectives if calibration else {}
        self._exchanges = calibration.expert_exchange if calibration else {}
        self._left = Left()

    def degraded(self, left: "Left") -> "Network":
        """Return the same network with less bandwidth; latencies stay.

        Measured laws pay for their bytes as many times as much, the others are reckoned again.

        Parameters
        ----------
        left : Left
            Of the bandwidth of the sound network.
        """
        weaker = Network(
            left.of(self.fabric.system), self.accelerator_id, self._calibration, self.engine
        )
        weaker._left = Left(
            self._left.scale_up * left.scale_up, self._left.scale_out * left.scale_out
        )
        return weaker

    def collective(
        self,
        operation: CollectiveOperation,
        group: ChipGroup,
        replica_chips: int,
        payload_bytes: Number,
    ) -> tuple[Array, str]:
        """Time of one collective, and where it comes from.

        Every engine carries a custom all-reduce for small messages and falls back to a general
        library for large ones, so the time is the least over them.

        Parameters
        ----------
        operation : str
        group : ChipGroup
        replica_chips : int
            Chips of the whole replica.
        payload_bytes : float or array
            By the convention of nccl-tests; see `sim.cost.fabric`.

        Raises
        ------
        InputError
            When the group reaches beyond its domain and no network is known there.
        InfeasibleError
            When nothing was measured and the group is no box of its torus.
        """
        if group.ranks == 1:
            return np.zeros_like(np.asarray(payload_bytes, dtype=np.float64)), "one chip alone"
        ranks = 2 if operation == "send" else group.ranks
        libraries = (self.engine, *LIBRARIES)
        ending = self._ending(group, replica_chips, apart=operation == "send")
        laws = _covering(self._collectives.get(operation, {}), libraries, ranks, ending)
        if laws:
            slow = self._left.slowdown(ending)
            seconds = _fastest(laws, payload_bytes * slow, 0.0)
            return seconds, _origin(operation, ranks, laws)
        seconds = self.fabric.seconds(operation, group, replica_chips, payload_bytes)
        return seconds, f"assumed: {operation}, {self.fabric.source(group, replica_chips)}"

    def expert_exchange(
        self, operator: ExpertExchange, tokens: Number, replica_chips: int | None = None
    ) -> tuple[Array, str]:
        """Time of one half of an expert exchange, and where it comes from.

        Kernels made for it are preferred; where none was measured over this number of chips it is
        an all-to-all of a general library, and where that was not measured either it is reckoned
        from the datasheet. The first count bytes by picks (`ExpertExchange.picked_bytes`), the
        others by what a rank sends (`ExpertExchange.sent_bytes`). Mode ``auto`` takes whichever
        kernel is faster at each size.

        Parameters
        ----------
        operator : ExpertExchange
        tokens : float or array
            Tokens of the step, on all ranks together.
        replica_chips : int, optional
            Chips of the whole replica; those of the group unless given.

        Raises
        ------
        InputError
            When the group reaches beyond its domain and no network is known there.
        """
        group = operator.group
        if group.ranks == 1:
            return np.zeros_like(np.asarray(tokens, dtype=np.float64)), "one chip alone"
        chips = group.ranks * group.stride if replica_chips is None else replica_chips
        ending = self._ending(group, chips)
        measured = self._exchanges.get(operator.half, {})
        for libraries in EXCHANGE_LIBRARIES[self.engine]:
            suited = [name for name in libraries if _suits(name, operator)]
            laws = _covering(measured, suited, group.ranks, ending)
            if laws:
                slow = self._left.slowdown(ending)
                picks = tokens / group.ranks * operator.experts_per_token * slow
                seconds = _fastest(laws, operator.picked_bytes(tokens) * slow, picks)
                return seconds, _origin(operator.half, group.ranks, laws)
        general = self._collectives.get("all_to_all", {})
        laws = _covering(general, LIBRARIES, group.ranks, ending)
        if laws:
            slow = self._left.slowdown(ending)
            seconds = _fastest(laws, operator.sent_bytes(tokens) * slow, 0.0)
            return seconds, _origin("all_to_all", group.ranks, laws)
        return self._assumed_exchange(operator, tokens, chips)

    def _ending(self, group: ChipGroup, replica_chips: int, *, apart: bool = False) -> str | None:
        """End the names of libraries measured over such a network; None: there are none.

        Across hosts a law holds for groups that lie on hosts as those that were measured.
        """
        members = self.fabric.ranks_inside(group, replica_chips)
        if members == group.ranks:
            return ""
        return ACROSS_HOSTS if apart or members == HOST_RANKS else None

    def _assumed_exchange(
        self, operator: ExpertExchange, tokens: Number, replica_chips: int
    ) -> tuple[Array, str]:
        modes: tuple[Mode, ...] = ("low_latency", "high_throughput")
        if operator.mode != "auto":
            modes = (operator.mode,)
        times = []
        for mode in modes:
            inside, outside = self._exchanged_bytes(operator, mode, tokens, replica_chips)
            wire_s = self.fabric.exchange_s(operator.group, replica_chips, inside, outside)
            times.append(EXCHANGE_START_S[mode] + wire_s)
        seconds: Array = np.minimum.reduce(times)
        networks = self.fabric.source(operator.group, replica_chips)
        return seconds, f"assumed: {operator.half}, start-up of DeepEP, {networks}"

    def _exchanged_bytes(
        self, operator: ExpertExchange, mode: Mode, tokens: Number, replica_chips: int
    ) -> tuple[Array, Array]:
        """Count what a rank sends inside its domain and to others, bytes.

        The low-latency kernel sends a copy for each pick straight to its rank. The other one sends
        one copy to each domain that has an expert of the token, from which it is handed on to each
        rank concerned; picks are taken to be random, although some models keep a token's experts
        to a few hosts.
        """
        ranks = operator.group.ranks
        members = self.fabric.ranks_inside(operator.group, replica_chips)
        if mode == "low_latency" or members == ranks:
            sent = operator.picked_bytes if mode == "low_latency" else operator.sent_bytes
            all_bytes = np.asarray(sent(tokens), dtype=np.float64)
            inside = all_bytes * (members / ranks)
            return inside, all_bytes - inside
        domains = math.ceil(ranks / members)
        visited = domains * (1 - (1 - 1 / domains) ** operator.experts_per_token)
        copy_bytes = np.asarray(tokens, dtype=np.float64) / ranks
        copy_bytes = copy_bytes * (operator.hidden * operator.element_bytes)
        outside = copy_bytes * (visited * (domains - 1) / domains)
        return np.asarray(operator.sent_bytes(tokens), dtype=np.float64), outside


def _suits(library: str, operator: ExpertExchange) -> bool:
    """Whether a library can run an exchange in the mode that was asked for."""
    return operator.mode in {"auto", MODES.get(library, operator.mode)}


def _covering(
    measured: Mapping[str, Mapping[int, Collective]],
    libraries: Iterable[str],
    ranks: int,
    ending: str | None,
) -> dict[str, Collective]:
    """Pick the libraries that were measured over a number of chips and the same network."""
    if ending is None:
        return {}
    names = {library: measured.get(library + ending, {}) for library in libraries}
    return {library: laws[ranks] for library, laws in names.items() if ranks in laws}


def _fastest(laws: Mapping[str, Collective], size: Number, messages: Number) -> Array:
    """Give the time of whichever library is fastest at each size."""
    payload = np.asarray(size, dtype=np.float64)
    times = [law.law.seconds(payload + law.message_bytes * messages) for law in laws.values()]
    fastest: Array = np.minimum.reduce(times)
    return fastest


def _origin(what: str, ranks: int, laws: Mapping[str, Collective]) -> str:
    extrapolated = any(law.extrapolated for law in laws.values())
    origin = "extrapolated" if extrapolated else "fitted"
    return f"{origin}: {what} over {ranks} chips, {' or '.join(laws)}"
