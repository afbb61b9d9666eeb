"""The pools of a case: which engines do what, and how keys and values get from one to the next.

A case without ``pools`` is served by one pool, in which every replica computes prompts and
answers. Disaggregated serving has a prefill and a decode pool. Before either there may be an encode
pool, where prompts hold images. Each is written as the keys in which it differs from its case.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.reliability import Autoscaling, Boot, Faults, Maintenance
from sim.routing import Routing
from sim.routing_policy import LEAST_OUTSTANDING, RouterPolicy
from sim.schema import KeyPath, Located, StrictModel, merge
from sim.serving import ServingEngine
from sim.units import BytesPerSecond, PositiveInt, Seconds

Role = str
"""What the replicas of a pool do: for the model that a case is about, everything (``serve``) or one
part of it (``encode``, ``prefill``, ``decode``); or everything for another model, whose name in the
case is the role."""


class Pool(StrictModel):
    """The replicas of one role; the keys of the case hold where a pool does not give its own."""

    system: str
    """Id of a file in ``hardware/systems``."""
    systems: PositiveInt | None = None
    """How many of them the pool has to itself. Without it the pool shares the systems of its case
    with the other pools, or has one of its own where it names another ``system``."""
    model: str
    """Id of a file in ``workloads/models``."""
    parallelism: Parallelism
    precision: Precision
    routing: Routing = Routing()
    """How evenly the router of a mixture loads its experts."""
    replicas: PositiveInt | None = None
    """Engine instances; as many as the chips allow unless given."""
    engine: ServingEngine = ServingEngine()
    router: RouterPolicy = LEAST_OUTSTANDING
    """How requests are dealt to the replicas."""
    faults: Faults | None = None
    """Which parts fail, and what becomes of the requests that they hit; nothing fails unless
    given."""
    maintenance: tuple[Maintenance, ...] = ()
    """Planned work on all replicas in turn."""
    autoscaling: Autoscaling | None = None
    """Starts and drains replicas as the load asks; always the same number unless given."""
    boot: Boot | None = None
    """How long a replica takes to come up; needed where any ever has to."""

    @property
    def spares(self) -> int:
        """Replicas beside those that serve."""
        return 0 if self.faults is None else self.faults.spares

    @property
    def built_replicas(self) -> int | None:
        """All replicas that chips are set aside for, whatever their state; none: as many as fit."""
        most = 0 if self.autoscaling is None else self.autoscaling.max_replicas
        serving = max(self.replicas or 0, most)
        return serving + self.spares if serving else None

    @property
    def changes(self) -> bool:
        """Whether its replicas may come and go."""
        return bool(self.faults or self.maintenance or self.autoscaling)


class Pools(StrictModel):
    """Pools by what they do, in the order in which a request meets them."""

    encode: Pool | None = None
    """Turns images into tokens; none: whoever takes in a prompt does."""
    serve: Pool | None = None
    """Computes prompts and answers, behind an encode pool."""
    prefill: Pool | None = None
    """Computes prompts."""
    decode: Pool | None = None
    """Computes answers."""

    @model_validator(mode="after")
    def _make_up_a_service(self) -> Self:
        if set(self.by_role()) not in _SERVICES:
            raise ValueError(
                "give prefill and decode, with or without encode, or give encode and serve"
            )
        return self

    def by_role(self) -> Mapping[Role, Pool]:
        """Pools that are there, in the order in which a request meets them."""
        pools: Mapping[Role, Pool | None] = {
            "encode": self.encode,
            "serve": self.serve,
            "prefill": self.prefill,
            "decode": self.decode,
        }
        return {role: pool for role, pool in pools.items() if pool is not None}


_SERVICES = ({"prefill", "decode"}, {"encode", "prefill", "decode"}, {"encode", "serve"})
"""Roles that make up a service of several pools."""


class KvTransfer(StrictModel):
    """How keys and values get from the prefill to the decode pool."""

    overlap: Literal["none", "layerwise"] = "none"
    """``none``: the transfer starts when the prompt is computed, as with vLLM's NIXL connector;
    ``layerwise``: each layer is sent while the next one is computed."""
    link: Literal["scale_up", "scale_out"] | None = None
    """Network that carries them. Unless given, the scale-up network where both pools stand in one
    domain of it, else the scale-out network."""
    bandwidth_bytes_per_s: BytesPerSecond | None = None
    """What one chip sends or receives; what its network gives unless given."""
    latency_s: Seconds | None = None
    """From the last byte sent to the last byte there; that of the network unless given."""


_OWN = frozenset({"systems"})
"""Keys that a pool does not take from its case."""
INHERITED = frozenset(Pool.model_fields) - _OWN


def lay_out_pools(case: Located) -> Located:
    """Lay each pool of a case over the keys of the case.

    A key that the case itself lacks is that of its last pool, so that a case whose pools say
    everything need not say it again.

    Parameters
    ----------
    case : Located
        A case with all its keys, not validated yet.

    Examples
    --------
    >>> from sim.schema import load_yaml
    >>> text = "{system: a, engine: {x: 1, y: 1}, pools: {decode: {engine: {y: 2}}}}"
    >>> lay_out_pools(load_yaml(text)).data["pools"]
    {'decode': {'engine': {'y': 2, 'x': 1}, 'system': 'a'}}
    """
    pools, shared = case.data.get("pools"), _only(case, INHERITED & set(case.data))
    whole = case
    for key in ("other_models", "pools"):
        parts = case.data.get(key)
        for role, part in parts.items() if isinstance(parts, dict) else ():
            if isinstance(part, dict):
                whole = merge(whole, _laid_over(shared, case, key, role))
    if not isinstance(pools, dict):
        return Located(whole.data, {**whole.positions, (): case.position(())})
    role = "serve" if "serve" in pools else "decode"
    last = whole.data["pools"].get(role)
    if isinstance(last, dict):
        said_by_pool = _only(whole.at(("pools", role)), (INHERITED & set(last)) - set(case.data))
        whole = merge(said_by_pool, whole)
    return Located(whole.data, {**whole.positions, (): case.position(())})


def _laid_over(shared: Located, case: Located, key: str, role: str) -> Located:
    """Lay one pool over the shared keys; what it lacks is reported where it stands."""
    path: KeyPath = (key, role)
    pool = merge(shared, case.at(path))
    positions = {(*path, *below): where for below, where in pool.positions.items()}
    prefixes: tuple[KeyPath, ...] = ((), (key,), path)
    above = {prefix: case.position(prefix) for prefix in prefixes}
    return Located({key: {role: pool.data}}, {**positions, **above})


def _only(located: Located, keys: Collection[str]) -> Located:
    data: dict[str, Any] = {key: value for key, value in located.data.items() if key in keys}
    positions = {
        path: where for path, where in located.positions.items() if not path or path[0] in keys
    }
    return Located(data, positions)
