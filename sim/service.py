"""What a case puts into service: its pools on their systems, and the way from one to the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from sim.catalog import Catalog
from sim.cost.fabric import Fabric
from sim.deployment import Deployment, deploy
from sim.errors import InfeasibleError, InputError, KeyPath, under
from sim.hardware import System
from sim.image_encoding import encoding_of_pool
from sim.parallelism import ChipGroup
from sim.pools import KvTransfer, Role
from sim.scenario import Case
from sim.units import GB

PROBE_BYTES = GB
"""Message at which the rate of a link is read off."""


@dataclass(frozen=True)
class Fleet:
    """Systems of one kind, and the pools that stand on them."""

    pools: tuple[Deployment, ...]
    places: tuple[int, ...]
    """Place of each of them among the pools of the service."""

    @property
    def system(self) -> System:
        """One of its systems."""
        return self.pools[0].system

    @property
    def system_id(self) -> str:
        """Id of the kind of system."""
        return self.pools[0].case.system

    @property
    def systems(self) -> int:
        """How many systems it has."""
        return self.pools[0].case.systems

    @property
    def installed_chips(self) -> int:
        """Chips of its systems, those of no replica included."""
        return self.system.chips * self.systems

    @property
    def chips(self) -> int:
        """Chips that belong to a replica."""
        return sum(pool.chips for pool in self.pools)


@dataclass(frozen=True)
class Port:
    """Where keys and values leave or enter a replica."""

    bytes_per_s: float
    """Of all chips of the replica together."""
    latency_s: float
    source: str
    """Which network it is, and how its rate is known."""


@dataclass(frozen=True)
class KvPath:
    """How keys and values of a request get from a prefill to a decode replica."""

    overlap: Literal["none", "layerwise"]
    layers: int
    """Parts that a layerwise transfer consists of."""
    bytes_per_token: float
    """Of the layers that keep the whole context."""
    window_bytes_per_token: float
    """Of the layers that keep the last ``window_tokens``."""
    window_tokens: int | None
    fixed_bytes: float
    """States that do not grow with the context."""
    out_port: Port
    """Of a prefill replica."""
    in_port: Port
    """Of a decode replica."""

    @property
    def overlap_fraction(self) -> float:
        """Share of the bytes that can be sent while the prompt is still being computed.

        The last layer's are not there before the prompt is done.
        """
        return 0.0 if self.overlap == "none" else (self.layers - 1) / self.layers

    def request_bytes(self, tokens: int) -> float:
        """Bytes of a context of so many tokens.

        >>> port = Port(1e9, 0.0, "given")
        >>> path = KvPath("none", 1, 100.0, 10.0, 8, 5.0, port, port)
        >>> path.request_bytes(20)  # 20 x 100, the last 8 x 10, and 5
        2085.0
        """
        windowed = tokens if self.window_tokens is None else min(tokens, self.window_tokens)
        growing = tokens * self.bytes_per_token
        return growing + windowed * self.window_bytes_per_token + self.fixed_bytes


@dataclass(frozen=True)
class Service:
    """A case resolved against the catalogue: pools of equal replicas, in the order of the work."""

    case: Case
    pools: tuple[Deployment, ...]
    kv_path: KvPath | None = None
    """From the prefill to the decode pool; none where one pool does everything."""
    other_models: int = 0
    """Pools at the end that serve other models than the one that the case is about."""

    @property
    def chips(self) -> int:
        """Chips that belong to a replica of any pool."""
        return sum(pool.chips for pool in self.pools)

    @property
    def replicas(self) -> int:
        """Replicas of all pools."""
        return sum(pool.replicas for pool in self.pools)

    @property
    def prompt_pool(self) -> Deployment:
        """The pool that computes prompts."""
        return next(pool for pool in self.pools if pool.role in ("serve", "prefill"))

    @property
    def answer_pool(self) -> Deployment:
        """The pool that computes answers."""
        return self.pools[len(self.pools) - self.other_models - 1]

    @property
    def places(self) -> int:
        """Sequences that can be answered at the same time."""
        pool = self.answer_pool
        return pool.replicas * pool.schedulers * pool.rules.max_num_seqs

    @property
    def longest_tokens(self) -> dict[str, int]:
        """Prompt and completion together that each model takes, by its name in the case."""
        main = self.pools[: len(self.pools) - self.other_models]
        others = self.pools[len(main) :]
        longest = {str(pool.role): pool.max_model_len for pool in others}
        return longest | {"": min(pool.max_model_len for pool in main if pool.role != "encode")}

    @property
    def frontend_s(self) -> float:
        """Time that the tokens of a request spend outside the engine."""
        return self.answer_pool.timer.overhead.frontend_s

    @property
    def first_replicas(self) -> tuple[int, ...]:
        """Index of the first replica of each pool; they count through all pools."""
        counts = np.cumsum([0, *(pool.replicas for pool in self.pools)])
        return tuple(int(count) for count in counts[:-1])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of any forecast must know of any pool."""
        return tuple(dict.fromkeys(note for pool in self.pools for note in pool.notes))

    @cached_property
    def fleets(self) -> tuple[Fleet, ...]:
        """Systems and the pools on them: those that share systems together, others each alone."""
        sharing = self.case.sharing_roles
        places = range(len(self.pools))
        shared = tuple(place for place in places if self.pools[place].role in sharing)
        groups = [shared] if shared else []
        groups += [(place,) for place in places if place not in shared]
        return tuple(Fleet(tuple(self.pools[place] for place in group), group) for group in groups)


def service_of(case: Case, catalog: Catalog) -> Service:
    """Resolve all pools of a case.

    Raises
    ------
    InputError
        A name that no catalogue knows, pools that do not say how they share their systems, or no
        known network between them.
    InfeasibleError
        A pool that cannot be cut or does not fit, or too few chips for all; the message names the
        pool.
    """
    encodes = "encode" not in case.roles
    pools = tuple(
        _deployed(case, role, part, catalog, encodes=encodes)
        for role, part in _pool_cases(case, catalog)
    )
    others = len(case.other_models)
    main = pools[: len(pools) - others]
    path = None
    if main[-1].role == "decode":
        together = _in_one_domain(case, pools, main[-2:])
        path = kv_path(case.kv_transfer, *main[-2:], together=together)
    if not encodes:
        pools = (_handing_over(case, pools), *pools[1:])
    return Service(case, pools, path, others)


def _deployed(case: Case, role: Role, part: Case, catalog: Catalog, *, encodes: bool) -> Deployment:
    """Resolve one pool; what is wrong with it is wrong with its keys."""
    with under(*case.place_of(role)):
        return deploy(part, catalog, role, encodes=encodes)


def _pool_cases(case: Case, catalog: Catalog) -> Iterator[tuple[Role, Case]]:
    """Give the case of each pool, with its replicas where it shares the systems with others."""
    sharing = case.sharing_roles
    parts = {role: case.of_pool(role) for role in case.roles}
    if len(sharing) > 1:
        parts |= _dealt_out(case, {role: parts[role] for role in sharing}, catalog)
    yield from parts.items()


def _dealt_out(case: Case, parts: dict[Role, Case], catalog: Catalog) -> dict[Role, Case]:
    """Deal the chips of the case's systems out to the pools that share them.

    One pool may leave its replicas open and gets what the others leave.
    """
    system = catalog.system(case.system)
    total = system.chips * case.systems
    has = f"{case.systems} x {case.system} has {total}"
    unsaid = [role for role, part in parts.items() if part.built_replicas is None]
    if len(unsaid) > 1:
        raise InputError(
            f"the pools {' and '.join(unsaid)} share {case.systems} x {case.system}, and none says "
            "how many replicas it has: give all but one of them replicas, or systems of their own",
            key="pools",
        )
    taken = {
        role: part.built_replicas * part.parallelism.chips
        for role, part in parts.items()
        if part.built_replicas is not None
    }
    said = ", ".join(f"{role} {chips}" for role, chips in taken.items())
    largest = max(taken, key=lambda role: taken[role], default=unsaid[0] if unsaid else "serve")
    keys: list[KeyPath] = [(*case.place_of(largest), "replicas"), ("systems",), ("pools",)]
    more = -(-sum(taken.values()) // system.chips)
    if sum(taken.values()) > total:
        raise InfeasibleError(
            f"the pools need {sum(taken.values())} chips ({said}), {has}: systems >= {more} or "
            "fewer replicas",
            key=keys,
        )
    if not unsaid:
        return parts
    rest = parts[unsaid[0]]
    replicas = (total - sum(taken.values())) // rest.parallelism.chips - rest.spares
    if replicas <= 0:
        each = rest.parallelism.chips * (1 + rest.spares)
        more = -(-(sum(taken.values()) + each) // system.chips)
        raise InfeasibleError(
            f"a replica of the {unsaid[0]} pool{_and_spares(rest)} needs {each} chips, {has} and "
            f"the other pools take {sum(taken.values())} ({said}): systems >= {more} or fewer "
            "replicas",
            key=keys,
        )
    return parts | {unsaid[0]: rest.model_copy(update={"replicas": replicas})}


def _and_spares(part: Case) -> str:
    """Name the spares of a pool, if it has any."""
    return f" with its {part.spares} spares" if part.spares else ""


def _in_one_domain(case: Case, pools: Sequence[Deployment], joined: Sequence[Deployment]) -> bool:
    """Tell whether all chips of some of the pools are joined by one scale-up network."""
    sharing = case.sharing_roles
    together = {pool.role for pool in joined} <= set(sharing)
    chips = sum(pool.chips for pool in pools if pool.role in sharing)
    return together and case.systems == 1 and chips <= joined[-1].system.domain_chips


def kv_path(
    transfer: KvTransfer, prefill: Deployment, decode: Deployment, *, together: bool
) -> KvPath:
    """Find the way of keys and values from one pool to another.

    Parameters
    ----------
    transfer : KvTransfer
    prefill, decode : Deployment
    together : bool
        Whether both stand in one domain of a scale-up network.

    Raises
    ------
    InputError
        Nothing is known of the network that is to carry them, or it does not join the pools.
    """
    link = transfer.link or ("scale_up" if together else "scale_out")
    if link == "scale_up" and not together:
        raise InputError(
            "the link is scale_up, but the prefill and the decode pool do not stand in one "
            "scale-up domain; set kv_transfer.link to scale_out, or let them share one system",
            key="kv_transfer.link",
        )
    cut, cache = decode.case.parallelism, decode.memory.cache
    copies = cut.tp * cut.pp  # of the shares that the chips of an attention rank keep
    return KvPath(
        overlap=transfer.overlap,
        layers=decode.model.layers,
        bytes_per_token=cache.growing_bytes * copies,
        window_bytes_per_token=cache.windowed_bytes * copies,
        window_tokens=cache.window_tokens,
        fixed_bytes=cache.state_bytes * copies * cut.cp,
        out_port=_port(transfer, prefill, link),
        in_port=_port(transfer, decode, link),
    )


def _handing_over(case: Case, pools: Sequence[Deployment]) -> Deployment:
    """Let the encode pool send what it has computed to the pool that computes prompts.

    Over the network that joins the two, at the rate of the slower side. What the case says of the
    transfer of keys and values holds for embeddings too, but for its ``link``, which another pair
    of pools may not have.
    """
    encode, prompts = pools[0], pools[1]
    together = _in_one_domain(case, pools, pools[:2]) and case.kv_transfer.link != "scale_out"
    link: Literal["scale_up", "scale_out"] = "scale_up" if together else "scale_out"
    sides = [_port(case.kv_transfer, pool, link) for pool in (encode, prompts)]
    slower = min(sides, key=lambda port: port.bytes_per_s)
    latency_s = max(port.latency_s for port in sides)
    encoding = encoding_of_pool(encode.case, encode.model, encode.system)
    sent = encoding.handover(slower.bytes_per_s, latency_s, slower.source)
    return replace(encode, timer=encode.timer.with_operator(sent))


def _port(transfer: KvTransfer, pool: Deployment, link: Literal["scale_up", "scale_out"]) -> Port:
    """Find what the replicas of a pool send or receive through."""
    given_s, given_rate = transfer.latency_s, transfer.bandwidth_bytes_per_s
    chips = pool.chips_per_replica
    if given_s is not None and given_rate is not None:
        return Port(given_rate * chips, given_s, "given")
    system = pool.system
    if (system.scale_up if link == "scale_up" else system.scale_out) is None:
        raise InputError(
            f"nothing is known of the {link} network of {pool.case.system}, between the pools; "
            "give kv_transfer.bandwidth_bytes_per_s and kv_transfer.latency_s",
            key=["kv_transfer.link", "kv_transfer", "pools"],
        )
    domain = system.domain_chips
    group, span = (ChipGroup(2, domain), 2 * domain) if link == "scale_out" else (_TWINS, domain)
    fabric = Fabric(system)
    nothing, probe = fabric.seconds("send", group, span, np.array([0.0, PROBE_BYTES]))
    latency_s = float(nothing) if given_s is None else given_s
    rate = PROBE_BYTES / float(probe - nothing) if given_rate is None else given_rate
    return Port(rate * chips, latency_s, f"assumed: {link}, {fabric.source(group, span)}")


_TWINS = ChipGroup(2, 1)
