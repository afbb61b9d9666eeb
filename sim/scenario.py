"""A scenario: one question as a YAML file, and the cases that it compares.

The keys at the top of the file are shared by all cases; each entry of ``cases`` names itself and
overrides what differs. A file without ``cases`` has one case.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sim.economics import Charge
from sim.errors import InfeasibleError, InputError, Problem, RackcastError, worst
from sim.pools import KvTransfer, Pool, Pools, Role, lay_out_pools
from sim.routing_policy import ClientPatience, ServiceClass, Slo
from sim.schema import (
    KeyPath,
    Located,
    Position,
    StrictModel,
    json_schema,
    load_yaml,
    merge,
    problem_line,
    set_path,
    validate,
)
from sim.units import Fraction, NonNegativeInt, PositiveInt
from sim.workload.kinds import (
    MixWorkload,
    SessionsWorkload,
    TraceWorkload,
    Workload,
    programs_of,
)

Claimed = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PriceChoice(StrictModel):
    """Which prices of which book apply."""

    book: str
    """Id of a file in ``hardware/prices``."""
    mode: Literal["own", "rent"] = "own"
    """Buy and run it, or rent it by the hour."""
    rent: str = "on_demand"
    """Kind of rent, when renting."""
    charge: Charge = "systems"
    """Pay for whole systems, or only for the chips in use."""


class Measure(StrictModel):
    """Which part of a run counts."""

    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Leading share of the arrivals that fills the system and does not count; of a closed loop,
    whose clients all start at once, at least two requests of each are left out."""


class Curve(StrictModel):
    """Closed-loop runs at several loads, for interactivity against cost."""

    concurrency_per_replica: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Clients per replica at each point."""
    requests_per_client: PositiveInt = 12
    """Requests that each client sends at each point; the first two do not count."""
    min_requests: PositiveInt = 240
    """Requests at each point at least, however few the clients."""


class Claims(StrictModel):
    """What somebody claims of a case, in columns of the summary: shown beside the forecast."""

    source: str
    """Who claims it, and where."""
    accuracy_fraction: Fraction | None = None
    compute_multiplier: Claimed | None = None
    compute_multiplier_chip_s: Claimed | None = None
    latency_multiplier: Claimed | None = None
    task_s_mean: Claimed | None = None
    task_s_p50: Claimed | None = None
    usd_per_task: Claimed | None = None
    usd_per_solved_task: Claimed | None = None
    energy_j_per_task: Claimed | None = None

    def by_column(self) -> dict[str, float]:
        """Give the claimed numbers by their columns."""
        given = self.model_dump(exclude={"source"}, exclude_none=True)
        return {column: float(value) for column, value in given.items()}


class Case(Pool):
    """One service under one workload; its own pool keys hold where a pool does not give its own."""

    name: str
    systems: PositiveInt = 1
    """How many systems."""
    pools: Pools | None = None
    """Parts of the work in pools of their own; one pool that does everything unless given."""
    kv_transfer: KvTransfer = KvTransfer()
    """How keys and values get from pool to pool."""
    other_models: Mapping[str, Pool] = {}
    """Models beside the one that the case is about, by the names that strategies of test-time
    compute give them (``verifier``); each has a pool of its own, in the keys in which it differs
    from the case."""
    workload: Workload
    slo: Slo
    tenants: Mapping[str, ServiceClass] = {}
    """How the requests of each tenant are treated, by its name in the workload; those that are
    not named are treated by the defaults."""
    patience: ClientPatience | None = None
    """Of the clients; they wait for ever unless given."""
    max_outstanding_requests: PositiveInt | None = None
    """Requests that may be in the system at once; further ones are turned away."""
    prices: PriceChoice
    measure: Measure = Measure()
    curve: Curve | None = None
    baseline: str | None = None
    """Name of the case whose tasks those of this one are compared with; found by
    `sim.metrics.baselines` unless given."""
    claims: Claims | None = None
    """What somebody claims of its tasks."""

    @model_validator(mode="after")
    def _pools_hand_over_what_they_understand(self) -> Self:
        if self.pools is None:
            return self
        pools = self.pools.by_role()
        encode, decode = pools.get("encode"), pools.get("decode")
        prompts = pools.get("prefill") or pools["serve"]
        if encode is not None and encode.model != prompts.model:
            msg = (
                f"the encode pool runs the encoder of {encode.model}, whose embeddings mean "
                f"nothing to {prompts.model}, which computes the prompts: give both the same model"
            )
            raise ValueError(msg)
        if decode is not None and prompts.model != decode.model:
            msg = (
                f"the prefill pool runs {prompts.model} and the decode pool {decode.model}, which "
                "cannot read its keys and values: give both the same model"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _targets_of_tasks_need_tasks(self) -> Self:
        asked = [self.slo, *(each.slo for each in self.tenants.values() if each.slo is not None)]
        given = any(slo.task_s is not None or slo.usd_per_task is not None for slo in asked)
        if given and not programs_of(self.workload):
            msg = (
                "slo.task_s and slo.usd_per_task are for tasks of test-time compute, and this "
                f"workload of kind {self.workload.kind} has none: leave them out, or give kind: "
                "programs, or a mix with a part of that kind"
            )
            raise ValueError(msg)
        for key, value in (("baseline", self.baseline), ("claims", self.claims)):
            if value is not None and not programs_of(self.workload):
                raise ValueError(
                    f"{key} is for tasks of test-time compute, and this workload of kind "
                    f"{self.workload.kind} has none: leave it out, or give kind: programs"
                )
        return self

    @model_validator(mode="after")
    def _other_models_are_not_taken_for_parts(self) -> Self:
        taken = sorted(set(self.other_models) & set(Pools.model_fields))
        if taken:
            raise ValueError(
                f"other_models cannot have the name {taken[0]!r}: it is that of a pool"
            )
        return self

    def place_of(self, role: Role) -> KeyPath:
        """Say where the keys of a pool stand in the case: at its top where one pool does all."""
        if role in self.other_models:
            return ("other_models", role)
        return () if self.pools is None else ("pools", role)

    def of_pool(self, role: Role) -> "Case":
        """Give the case of one pool: that pool alone, named after its role."""
        if self.pools is None and not self.other_models:
            return self
        pool = self._pools[role]
        own: dict[str, object] = {key: getattr(pool, key) for key in Pool.model_fields}
        if pool.systems is None:
            own["systems"] = self.systems if pool.system == self.system else 1
        alone: dict[str, object] = {
            "pools": None,
            "other_models": {},
            "name": f"{self.name}, {role}",
        }
        return self.model_copy(update=own | alone)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles of its pools, in the order in which a request meets them."""
        return tuple(self._pools)

    @property
    def _pools(self) -> Mapping[Role, Pool]:
        """All pools by role; of one that does everything for the model, the case itself."""
        parts: Mapping[Role, Pool] = {"serve": self} if self.pools is None else self.pools.by_role()
        return {**parts, **self.other_models}

    @property
    def sharing_roles(self) -> tuple[Role, ...]:
        """Roles of the pools that stand on the systems of the case, together."""
        return tuple(
            role
            for role, pool in self._pools.items()
            if pool is self or (pool.systems is None and pool.system == self.system)
        )


class Header(StrictModel):
    """What belongs to the whole scenario and not to a case."""

    schema_version: Literal[1] = 1
    name: str
    question: str
    """What the scenario is to answer, for its readers."""
    seed: NonNegativeInt = 1
    """All random streams derive from it."""


@dataclass(frozen=True)
class Scenario:
    """A validated scenario."""

    header: Header
    cases: tuple[Case, ...]
    written: Mapping[str, Located] = field(default_factory=dict, repr=False, compare=False)
    """Where each key of a case, by its name, was written: in the case, or above all cases."""

    def error_of(self, found: Sequence[tuple[Case, InputError | InfeasibleError]]) -> RackcastError:
        """Make one error of those of some cases, a line for each problem.

        Each says where it is: file, line and key; and which cases have it, unless all do. They
        stand in the order of the file. Bad input outranks what cannot be done.
        """
        cases_of: dict[tuple[Position | None, KeyPath, str], dict[str, None]] = {}
        for case, error in found:
            for problem in error.problems:
                where, key = self._place(case, problem)
                who = cases_of.setdefault((where, key, problem.message), {})
                who[case.name] = None
        placed = sorted(cases_of.items(), key=lambda item: _order(item[0][0]))
        lines = [
            line
            for (where, key, message), names in placed
            for line in _lines(where, key, message, self._who(tuple(names)))
        ]
        return worst([error for _, error in found])("\n".join(dict.fromkeys(lines)))

    @contextmanager
    def locating(self, case: Case) -> Iterator[None]:
        """Say of errors that are raised inside, of a case, where what is wrong was written."""
        try:
            yield
        except (InputError, InfeasibleError) as error:
            raise self.error_of([(case, error)]) from error

    def _place(self, case: Case, problem: Problem) -> tuple[Position | None, KeyPath]:
        """Find where the first key of a problem that is written down stands."""
        located = self.written.get(case.name)
        if located is None:
            return None, problem.keys[0]
        keys = [_as_written(located, key) for key in problem.keys]
        key = next((key for key in keys if key in located.positions), keys[0])
        return located.position(key), key

    def _who(self, names: Sequence[str]) -> str:
        """Name the cases that have a problem; nobody where all have it."""
        if len(names) == len(self.cases):
            return ""
        *others, last = [repr(name) for name in names]
        if len(others) > 3:
            others, last = others[:3], f"{len(names) - 3} more"
        return f"cases {', '.join(others)} and {last}: " if others else f"case {last}: "


def _order(where: Position | None) -> tuple[str, int]:
    return ("", 0) if where is None else (where.source, where.line or 0)


def _lines(where: Position | None, key: KeyPath, message: str, who: str) -> Iterator[str]:
    """Write a problem; what it says of another file, a line for each problem there."""
    for line in message.splitlines():
        yield f"{who}{line}" if where is None else problem_line(where, key, f"{who}{line}")


def _as_written(located: Located, key: KeyPath) -> KeyPath:
    """Say which key of a case gives that of a pool its value, if the pool does not."""
    if len(key) < 2 or key[0] not in ("pools", "other_models"):
        return key
    shared = key[2:]
    own_depth = _depth(located, key) - 2
    return shared if _depth(located, shared) > own_depth else key


def _depth(located: Located, key: KeyPath) -> int:
    """Count the keys of a path that are written down."""
    lengths: Iterable[int] = range(len(key), 0, -1)
    return next((length for length in lengths if key[:length] in located.positions), 0)


_HEADER_KEYS = frozenset(Header.model_fields)


def load_scenario(path: Path, settings: Sequence[tuple[str, str]] = ()) -> Scenario:
    """Read and validate a scenario file.

    Parameters
    ----------
    path : Path
    settings : sequence of (str, str)
        Dotted paths and YAML values of ``--set``, applied in order. A setting of a shared key
        also wins over the same key of the cases.

    Raises
    ------
    InputError
        With one line for each problem of the file.
    """
    located = load_yaml(path)
    for dotted, value in settings:
        located = _set_in_cases(set_path(located, dotted, value), dotted, value)
    return scenario_of(located, path.parent)


def scenario_of(located: Located, folder: Path) -> Scenario:
    """Validate a scenario that has been read.

    Parameters
    ----------
    located : Located
    folder : Path
        What relative paths in the file start from.
    """
    problems: dict[str, None] = {}  # ordered and without repetition: cases share their base
    header_part = _only(located, _HEADER_KEYS)
    base = _only(located, set(located.data) - _HEADER_KEYS - {"cases"})
    header = _collect(Header, header_part, problems)
    written = _cases_over(located, base)
    laid_out = [lay_out_pools(case) for case in written]
    cases = [_collect(Case, merged, problems) for merged in laid_out]
    names = [case.name for case in cases if case is not None]
    problems.update(dict.fromkeys(_repeated(names, located)))
    problems.update(dict.fromkeys(_unknown_baselines(cases, written)))
    if problems or header is None:
        raise InputError("\n".join(problems))
    placed = [
        _place(case, merged, folder)
        for case, merged in zip(cases, laid_out, strict=True)
        if case is not None
    ]
    return Scenario(header, tuple(placed), dict(zip(names, written, strict=True)))


def scenario_json_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file: every key of a case may stand at the top or in the case."""
    case, header = _partial(json_schema(Case)), json_schema(Header)
    entry = {key: value for key, value in case.items() if key != "$defs"}
    override = {"CaseOverride": {**entry, "title": "CaseOverride", "required": ["name"]}}
    shared = {key: value for key, value in case["properties"].items() if key != "name"}
    cases = {
        "type": "array",
        "minItems": 1,
        "items": {"$ref": "#/$defs/CaseOverride"},
        "description": "What is compared; each entry overrides the keys at the top.",
    }
    return {
        "$schema": case["$schema"],
        "title": "Rackcast scenario",
        "type": "object",
        "additionalProperties": False,
        "properties": {**header["properties"], **shared, "cases": cases},
        "required": header["required"],
        "$defs": {**case["$defs"], **override},
    }


def _partial(part: Any) -> Any:
    """Let a mapping leave out what the shared keys or a case add, the kind that chooses too."""
    if isinstance(part, list):
        return [_partial(each) for each in part]
    if not isinstance(part, dict):
        return part
    # without what is required, a mapping may be of several kinds: any of them will do
    kept = {key: _partial(value) for key, value in part.items() if key != "required"}
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return kept


def _cases_over(located: Located, base: Located) -> list[Located]:
    """Lay each case over the shared keys."""
    entries = located.data.get("cases")
    if entries is None:
        where = located.position(("name",))
        name = Located({"name": located.data.get("name")}, {(): where, ("name",): where})
        return [merge(base, name)]
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{_at(located, 'cases')}: must be a list of at least one case")
    return [_merged_case(located, base, index) for index in range(len(entries))]


def _merged_case(located: Located, base: Located, index: int) -> Located:
    part = located.at(("cases", index))
    if not isinstance(part.data, dict):
        raise InputError(f"{_at(located, 'cases', index)}: must be a mapping with a name")
    merged = merge(base, part)
    # a missing key of a case is reported at the case, not at the top of the file
    return Located(merged.data, {**merged.positions, (): part.position(())})


def _collect(model: type[Any], located: Located, problems: dict[str, None]) -> Any | None:
    try:
        return validate(model, located)
    except InputError as error:
        problems.update(dict.fromkeys(str(error).splitlines()))
        return None


def _only(located: Located, keys: frozenset[str] | set[str]) -> Located:
    data = {key: value for key, value in located.data.items() if key in keys}
    positions = {
        path: where for path, where in located.positions.items() if not path or path[0] in keys
    }
    return Located(data, positions)


def _set_in_cases(located: Located, dotted: str, value: str) -> Located:
    """Set a shared key also in the cases and pools that have it: they win over what is shared."""
    keys = dotted.split(".")
    if keys[0] in _HEADER_KEYS:
        return located
    for place in _places_of_overrides(located.data):
        part = located.at(place)
        if _names(part.data, keys):
            located = _with_part(located, place, set_path(part, dotted, value))
    return located


def _places_of_overrides(data: Any) -> list[KeyPath]:
    """Say where cases and pools stand: the places whose keys win over those at the top."""
    entries = data.get("cases")
    found: list[KeyPath] = []
    holders: list[tuple[KeyPath, Any]] = [((), data)]
    if isinstance(entries, list):
        holders += [(("cases", index), entry) for index, entry in enumerate(entries)]
    for place, holder in holders:
        found += [place] if place else []
        pools = holder.get("pools") if isinstance(holder, dict) else None
        found += [(*place, "pools", role) for role in pools] if isinstance(pools, dict) else []
    return found


def _names(data: Any, keys: Sequence[str]) -> bool:
    """Tell whether a path of keys leads somewhere in the data."""
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True


def _with_part(located: Located, place: KeyPath, part: Located) -> Located:
    """Put another part in the place of one that is there."""
    positions = {path: at for path, at in located.positions.items() if path[: len(place)] != place}
    positions |= {(*place, *path): at for path, at in part.positions.items()}
    return Located(_replaced(located.data, place, part.data), positions)


def _replaced(data: Any, place: KeyPath, value: Any) -> Any:
    if not place:
        return value
    key, rest = place[0], place[1:]
    if isinstance(data, list):
        return [_replaced(at, rest, value) if index == key else at for index, at in enumerate(data)]
    return {**data, key: _replaced(data[key], rest, value)}


def _repeated(names: list[str], located: Located) -> list[str]:
    seen = {name for name in names if names.count(name) > 1}
    where = _at(located, "cases")
    return [f"{where}: two cases are called {name!r}" for name in sorted(seen)]


def _unknown_baselines(cases: Sequence[Case | None], written: Sequence[Located]) -> Iterator[str]:
    """Say which cases are to be compared with one that is not there."""
    names = [case.name for case in cases if case is not None]
    for case, located in zip(cases, written, strict=True):
        if case is not None and case.baseline is not None and case.baseline not in names:
            where = _at(located, "baseline")
            yield f"{where}: no case is called {case.baseline!r}; there are: {', '.join(names)}"


def _at(located: Located, *path: str | int) -> str:
    """Say where a value stands: its position and its path, which that of a setting says already."""
    where, dotted = str(located.position(path)), ".".join(str(key) for key in path)
    return where if where.endswith(f" {dotted}") else f"{where}: {dotted}"


Recorded = TraceWorkload | SessionsWorkload
"""Workloads that may come from a file."""


def _place(case: Case, merged: Located, folder: Path) -> Case:
    """Resolve the paths of traces that were written in the file."""
    workload = case.workload
    if isinstance(workload, Recorded):
        placed = _placed(workload, merged, ("workload",), folder)
        return case.model_copy(update={"workload": placed})
    if isinstance(workload, MixWorkload):
        parts = {
            name: _placed(part, merged, ("workload", "parts", name), folder)
            if isinstance(part, Recorded)
            else part
            for name, part in workload.parts.items()
        }
        mix = workload.model_copy(update={"parts": parts})
        return case.model_copy(update={"workload": mix})
    return case


def _placed(part: Recorded, merged: Located, at: tuple[str, ...], folder: Path) -> Recorded:
    """Resolve the path of one workload, unless a setting gave it."""
    written_in_file = merged.position((*at, "path")).line is not None
    if part.path is None or not written_in_file or part.path.is_absolute():
        return part
    return part.model_copy(update={"path": folder / part.path})
