"""Times of collectives from the datasheet of the network, where nobody has measured them.

Every time is latency times rounds plus bytes over bandwidth (the alpha-beta model), of the best
algorithm that the topology allows. The chips of a replica lie on the system's domains in order,
and the same goes on everywhere: all groups of an axis, and all replicas, exchange at the same
time. What that means for a group depends on what the groups share:

- switched, dragonfly: every chip has a port of its own, so groups share nothing;
- mesh: every pair has a link of its own; a group of four of eight chips uses three of the seven
  links of each chip, and no other group uses those;
- torus: groups that lie between each other's members share links (`sim.cost.torus`);
- between domains: every chip sends through its card, or through its share of one.

A wafer counts as one chip, so its own fabric never shows here.

Payloads follow nccl-tests (https://github.com/NVIDIA/nccl-tests, PERFORMANCE.md): the buffer of a
rank of an all-reduce, the whole buffer of an all-gather or a reduce-scatter, what one rank sends
in an all-to-all (its own share included), the message of a send.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sim.cost.operators import CollectiveOperation
from sim.cost.torus import TorusDomain
from sim.cost.work import Number
from sim.errors import InputError
from sim.hardware import Dragonfly, FullMesh, ScaleUp, Switched, System, Torus, Wafer
from sim.parallelism import ChipGroup
from sim.units import MICROSECOND_S

Array = npt.NDArray[np.float64]


class Wire(NamedTuple):
    """What is assumed of a kind of network that nobody has measured on this system."""

    efficiency: float
    """Fraction of the datasheet bandwidth that large collectives reach."""
    source: str


WIRES: Mapping[str, Wire] = MappingProxyType(
    {
        # 0.63 to 0.75 for all-gather, reduce-scatter and all-to-all of 512 MiB over eight A100,
        # H100, H200, B200 or B300 (ai-dynamo/aiconfigurator, NCCL tables, commit 095f58a)
        "switched": Wire(0.7, "NCCL over NVSwitch reaches 0.63 to 0.75 of line rate"),
        "dragonfly": Wire(0.7, "like NCCL over NVSwitch, 0.63 to 0.75 of line rate"),
        # Payload (n + 1) / n, see `_Switch`: 843 GB/s of bus bandwidth over 72 GB200 at 4 to 8 GB
        # are 0.48 of line rate (coreweave/nccl-tests pull request 43), 840 over 8 B200 0.60, says
        # stas00/ml-engineering, network/README.md
        "in_network": Wire(0.5, "NVLink SHARP reaches 0.48 over 72 GB200, 0.60 over 8 B200"),
        # 312.9 of 448 GB/s of bus bandwidth over eight MI300X, 47.7 of 64 over two (RCCL;
        # stas00/ml-engineering, network/README.md)
        "mesh": Wire(0.7, "RCCL reaches 0.70 over 8 MI300X, 0.75 over 2"),
        # 0.37 over four or eight RTX PRO 6000; L40S on two sockets: 0.62 over two and 0.04 over
        # eight (ai-dynamo/aiconfigurator, NCCL tables)
        "pcie": Wire(0.37, "NCCL over PCIe reaches 0.37 over 8 RTX PRO 6000, 0.04 over 8 L40S"),
        # 45 of 50 GB/s a link (jax-ml/scaling-book, tpus.md)
        "torus": Wire(0.9, "45 of 50 GB/s on a TPU link"),
        # 381.8 of 400 GB/s a host, all-reduce over four hosts of eight B200 (stas00/ml-engineering,
        # network/README.md)
        "scale_out": Wire(0.95, "NCCL over 4 hosts of B200 reaches 0.95 of its cards' rate"),
    }
)

LIBRARY_CALL_S = 3.0 * MICROSECOND_S
LIBRARY_STEP_S = 1.0 * MICROSECOND_S
"""What a call of a general library on GPUs costs beside the message, and each step of it: assumed.
Where a message and its kernel take 3.8 us (A100) and 3.7 us (B200), NCCL's all-gather of 512 bytes
takes 9.0 and 8.8 us over two chips, 10.8 and 11.2 us over four, 15.6 and 16.1 us over eight
(ai-dynamo/aiconfigurator, commit 095f58a); Hopper is 2 to 3 us faster. All-reduces inside a domain
go by the engines' own kernels and those of a torus or a dragonfly are compiled into the program:
neither pays this."""

RANK_WAIT = 0.04
"""What each rank beyond two, up to eight, adds to the latency of an engine's own all-reduce:
assumed. From two to eight chips small ones take 1.15 (A100) to 1.38 (H100) times as long."""


def library_start_s(ranks: int) -> float:
    """Give the fixed cost of a call of a general library, seconds.

    A ring of up to eight ranks takes a step for each; beyond, trees take two for each doubling.

    >>> round(library_start_s(8) / MICROSECOND_S, 3), round(library_start_s(32) / MICROSECOND_S, 3)
    (10.0, 14.0)
    """
    steps = ranks - 1 if ranks <= 8 else 7 + 2 * math.log2(ranks / 8)
    return LIBRARY_CALL_S + LIBRARY_STEP_S * steps


class _Domain(Protocol):
    """The chips that one scale-up network joins."""

    latency_s: float

    def seconds(self, operation: str, group: ChipGroup, payload_bytes: Array) -> Array: ...


class _Switch:
    """Chips of which each has so much bandwidth to all others together.

    A mesh is one whose bandwidth grows with the group, and whose messages from one chip to another
    have a single link.
    """

    def __init__(self, network: Switched | Dragonfly | FullMesh) -> None:
        wire = _wire(network)
        self.latency_s = network.latency_s.value
        self._rank_wait = 0.0 if isinstance(network, Dragonfly) else RANK_WAIT
        self._mesh = isinstance(network, FullMesh)
        self._reducing_rate = 0.0
        if isinstance(network, FullMesh):
            self._rate = network.link_bandwidth_bytes_per_s.value * wire.efficiency
            return
        bandwidth = network.bandwidth_bytes_per_s.value
        self._rate = bandwidth * wire.efficiency
        reduction = network.in_network_reduction if isinstance(network, Switched) else None
        if reduction is not None and reduction.value:
            self._reducing_rate = bandwidth * WIRES["in_network"].efficiency

    def port_bytes_per_s(self, ranks: int) -> float:
        """Give the rate at which a chip can send to the other members of a group."""
        return self._rate * (ranks - 1) if self._mesh else self._rate

    def seconds(self, operation: str, group: ChipGroup, payload_bytes: Array) -> Array:
        """Time of one collective inside the domain."""
        if operation == "send":
            return self.latency_s + payload_bytes / self._rate
        ranks = group.ranks
        shared = payload_bytes * ((ranks - 1) / ranks) / self.port_bytes_per_s(ranks)
        if operation != "all_reduce":
            moved: Array = self.latency_s + shared
            return moved
        # two-shot (reduce-scatter, all-gather), or everybody sends everything to everybody
        round_s = self.latency_s * (1.0 + self._rank_wait * (min(ranks, 8) - 2))
        ways = [2 * (round_s + shared), round_s + shared * ranks]
        if self._reducing_rate:
            # The switch reads every chip's whole buffer, its own shard included, and writes one
            # shard back; then each chip writes its shard once and receives the whole.
            crossed = payload_bytes * ((ranks + 1) / ranks)
            ways.append(2 * round_s + crossed / self._reducing_rate)
        fastest: Array = np.minimum.reduce(ways)
        return fastest


class Fabric:
    """All networks of a system: inside its domains and between them.

    Parameters
    ----------
    system : System
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self._inside: _Domain | None = None
        network = system.scale_up
        if isinstance(network, Torus):
            self._inside = TorusDomain(network, WIRES["torus"].efficiency)
        elif network is not None and not isinstance(network, Wafer):
            self._inside = _Switch(network)

    def ranks_inside(self, group: ChipGroup, replica_chips: int) -> int:
        """Members of a group that share a domain.

        A replica of more than one domain begins at the first chip of one. Members beyond a domain
        are spread evenly: twelve ranks on domains of eight are two times six.

        >>> from sim.catalog import open_catalog
        >>> host = Fabric(open_catalog().system("h100_sxm_x8"))
        >>> host.ranks_inside(ChipGroup(8, 1), 16), host.ranks_inside(ChipGroup(16, 1), 16)
        (8, 8)
        >>> host.ranks_inside(ChipGroup(4, 4), 16), host.ranks_inside(ChipGroup(2, 8), 16)
        (2, 1)
        """
        domain = self.system.domain_chips
        span = group.ranks * group.stride
        if replica_chips <= domain or (span <= domain and domain % span == 0):
            return group.ranks
        held = max(domain // group.stride, 1)
        return math.ceil(group.ranks / math.ceil(group.ranks / held))

    def crosses(self, group: ChipGroup, replica_chips: int) -> bool:
        """Whether a group has members in more than one domain."""
        return self.ranks_inside(group, replica_chips) < group.ranks

    def seconds(
        self,
        operation: CollectiveOperation,
        group: ChipGroup,
        replica_chips: int,
        payload_bytes: Number,
    ) -> Array:
        """Time of one collective; nothing for a group of one.

        Parameters
        ----------
        operation : str
        group : ChipGroup
        replica_chips : int
            Chips of the whole replica.
        payload_bytes : float or array

        Raises
        ------
        InputError
            If the group has chips in several domains and the system has no scale-out network.
        InfeasibleError
            If a group on a torus is no box of it.
        """
        payload = np.asarray(payload_bytes, dtype=np.float64)
        if group.ranks == 1:
            return np.zeros_like(payload)
        if operation == "all_to_all":
            inside = payload * (self.ranks_inside(group, replica_chips) / group.ranks)
            start_s = self.start_s(operation, group, replica_chips)
            return start_s + self.exchange_s(group, replica_chips, inside, payload - inside)
        start_s = self.start_s(operation, group, replica_chips)
        if not self.crosses(group, replica_chips):
            return start_s + self._domain().seconds(operation, group, payload)
        if operation == "send":
            return start_s + self._out_latency_s + payload / self._out_bytes_per_s
        return start_s + self._hierarchical_s(operation, group, replica_chips, payload)

    def exchange_s(
        self, group: ChipGroup, replica_chips: int, inside_bytes: Array, outside_bytes: Array
    ) -> Array:
        """Time of an all-to-all, split into what stays in the domain and what leaves it.

        Both go on at the same time, each over a network of its own.

        Parameters
        ----------
        group : ChipGroup
        replica_chips : int
        inside_bytes : array
            What a rank sends to the members in its domain, its own share included.
        outside_bytes : array
            What it sends to members elsewhere.
        """
        members = self.ranks_inside(group, replica_chips)
        time_s = np.zeros_like(inside_bytes)
        if members > 1:
            within = ChipGroup(members, group.stride)
            time_s = self._domain().seconds("all_to_all", within, inside_bytes)
        if members < group.ranks:
            outside_s = self._out_latency_s + outside_bytes / self._out_bytes_per_s
            time_s = np.maximum(time_s, outside_s)
        return time_s

    def start_s(
        self, operation: CollectiveOperation, group: ChipGroup, replica_chips: int
    ) -> float:
        """Give the fixed cost of a call, seconds; see `LIBRARY_CALL_S`."""
        network = self.system.scale_up
        ranks = 2 if operation == "send" else group.ranks
        if self.crosses(group, replica_chips):
            return library_start_s(ranks)
        if isinstance(network, Torus | Dragonfly):
            return 0.0
        own_kernel = operation == "all_reduce" and not _over_pcie(network)
        return 0.0 if own_kernel else library_start_s(ranks)

    def source(self, group: ChipGroup, replica_chips: int) -> str:
        """Say which networks a group was priced on, and what was assumed of them.

        >>> from sim.catalog import open_catalog
        >>> print(Fabric(open_catalog().system("tpu_v5e_256")).source(ChipGroup(16, 1), 256))
        alpha-beta over 16 chips of a 16x16 torus (0.9 of line rate: 45 of 50 GB/s on a TPU link)
        """
        members = self.ranks_inside(group, replica_chips)
        parts = []
        network = self.system.scale_up
        if members > 1 and network is not None:
            wire = _wire(network)
            parts.append(
                f"{members} chips of {_words(network)} "
                f"({wire.efficiency:g} of line rate: {wire.source})"
            )
        if members < group.ranks:
            domains = math.ceil(group.ranks / members)
            wire = WIRES["scale_out"]
            kind = "" if self.system.scale_out is None else self.system.scale_out.kind
            parts.append(
                f"{domains} domains on {kind} ({wire.efficiency:g} of line rate: {wire.source})"
            )
        return f"alpha-beta over {' and '.join(parts)}"

    def _domain(self) -> _Domain:
        if self._inside is None:
            raise self._no_network()
        return self._inside

    @property
    def _out_bytes_per_s(self) -> float:
        if self.system.scale_out is None:
            raise self._no_network()
        rate = self.system.scale_out.bandwidth_bytes_per_s.value
        return rate * WIRES["scale_out"].efficiency

    @property
    def _out_latency_s(self) -> float:
        if self.system.scale_out is None:
            raise self._no_network()
        return self.system.scale_out.latency_s.value

    def _hierarchical_s(
        self, operation: CollectiveOperation, group: ChipGroup, replica_chips: int, payload: Array
    ) -> Array:
        """Reduce inside the domains, exchange between them, gather inside; or one ring over all."""
        members = self.ranks_inside(group, replica_chips)
        domains = math.ceil(group.ranks / members)
        passes = 2 if operation == "all_reduce" else 1
        between_s = passes * (
            math.ceil(math.log2(domains)) * self._out_latency_s
            + payload * ((domains - 1) / (domains * members) / self._out_bytes_per_s)
        )
        if members == 1:
            return between_s
        within = ChipGroup(members, group.stride)
        inside_s = passes * self._domain().seconds("all_gather", within, payload)
        layered: Array = inside_s + between_s
        if not isinstance(self._inside, _Switch):
            return layered
        # rings over all ranks, one for each card, cross every link and every card alike
        moved = payload * (passes * (group.ranks - 1) / group.ranks)
        cards_s = moved / (members * self._out_bytes_per_s)
        ports_s = moved / self._inside.port_bytes_per_s(members)
        steps_s = passes * (group.ranks - 1) * max(self._out_latency_s, self._inside.latency_s)
        ring: Array = np.minimum(layered, steps_s + np.maximum(cards_s, ports_s))
        return ring

    def _no_network(self) -> InputError:
        name, domain = self.system.name, self.system.domain_chips
        return InputError(
            f"{name}: a group of chips reaches beyond its domain of {domain}, and the system has "
            f"no scale_out; keep the replica within {domain} chips or give the system a scale_out",
            key="parallelism",
        )


def _over_pcie(network: ScaleUp | None) -> bool:
    return isinstance(network, Switched) and network.over_pcie


def _wire(network: ScaleUp) -> Wire:
    """Give what is assumed of a scale-up network."""
    return WIRES["pcie" if _over_pcie(network) else network.topology]


def _words(network: ScaleUp) -> str:
    """Say what joins the chips of a domain, as in "8 chips of a full mesh of 8"."""
    if isinstance(network, Torus):
        return f"a {'x'.join(str(axis.chips) for axis in network.axes)} torus"
    if _over_pcie(network):
        return f"a PCIe host of {network.domain_chips}"
    kinds = {"switched": "switched domain", "dragonfly": "dragonfly", "mesh": "full mesh"}
    return f"a {kinds.get(network.topology, network.topology)} of {network.domain_chips}"
