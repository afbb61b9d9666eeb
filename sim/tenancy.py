"""How the requests of each tenant are treated: who waits, who is let in, who gives up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from sim.engine.door import Door, TenantDoor, TokenBucket
from sim.engine.patience import Patience, PatiencePlan
from sim.engine.requests import Request
from sim.engine.waiting import FairLine, FcfsLine, PriorityLine, WaitingLine
from sim.errors import InputError, Problem, with_problems
from sim.routing_policy import Backoff, ClientPatience, ServiceClass, Slo
from sim.scenario import Case
from sim.schema import did_you_mean
from sim.seeds import stream
from sim.serving import Order
from sim.workload.kinds import MixWorkload, TraceWorkload, Workload

_NOT_NAMED = ServiceClass()
ONE_TENANT = "all"
"""Name of the tenant of a workload that tells none apart."""


@dataclass(frozen=True)
class Tenancy:
    """The tenants of a run, by their index in its traffic."""

    case: Case
    names: tuple[str, ...]

    @property
    def classes(self) -> list[ServiceClass]:
        """How each of them is treated."""
        return [self.case.tenants.get(name, _NOT_NAMED) for name in self.names]

    @property
    def slos(self) -> list[Slo]:
        """What the requests of each must meet."""
        return [each.slo or self.case.slo for each in self.classes]

    @property
    def priorities(self) -> tuple[int | None, ...]:
        """Priority of each; none: that of its requests in the trace."""
        given = self.case.tenants
        return tuple(given[name].priority if name in given else None for name in self.names)

    def new_line(self, order: Order) -> Callable[[], WaitingLine]:
        """Give what makes the waiting line of a replica."""
        if order == "priority":
            return PriorityLine
        if order == "fair":
            return partial(FairLine, [each.weight for each in self.classes])
        return FcfsLine

    def patience(self, seed: int) -> Patience | None:
        """Make what watches over requests for their clients; none where all wait for ever."""
        wishes = [each.patience or self.case.patience for each in self.classes]
        if all(wish is None for wish in wishes):
            return None
        return Patience([_patience_plan(wish, seed) for wish in wishes])

    def door(self) -> Door | None:
        """Make what turns requests away; none where everybody is let in."""
        limited = {
            index: TenantDoor(_bucket(each), each.max_outstanding_requests)
            for index, each in enumerate(self.classes)
            if each.rate_limit is not None or each.max_outstanding_requests is not None
        }
        most = self.case.max_outstanding_requests
        return Door(limited, most) if limited or most is not None else None


def tenancy_of(case: Case, names: Sequence[str]) -> Tenancy:
    """Lay the tenants of a case over those of its traffic.

    Raises
    ------
    InputError
        The case names a tenant that the traffic does not have.
    """
    unknown = [name for name in case.tenants if name not in names]
    if unknown:
        raise with_problems(InputError, [_unknown(name, names) for name in unknown])
    return Tenancy(case, tuple(names))


def check_tenants(case: Case) -> None:
    """Find names of tenants that the workload of a case cannot have, before it is drawn.

    Raises
    ------
    InputError
    """
    known = list(_names_of(case.workload))
    open_ended = tuple(each[:-1] for each in known if each.endswith("*"))
    unknown = [name for name in case.tenants if name not in known]
    unknown = [name for name in unknown if not name.startswith(open_ended)]
    if unknown:
        raise with_problems(InputError, [_unknown(name, known) for name in unknown])


def _unknown(name: str, names: Sequence[str]) -> Problem:
    hint = did_you_mean(name, names) or "."
    return Problem(
        f"tenants names {name!r}, which the workload does not have{hint} Its tenants: "
        f"{', '.join(names)}",
        (("tenants", name),),
    )


def _names_of(workload: Workload) -> Iterator[str]:
    """Name the tenants that a workload may have; a star stands for any name of a trace."""
    if isinstance(workload, MixWorkload):
        for name, part in workload.parts.items():
            yield name
            if isinstance(part, TraceWorkload):
                yield f"{name}/*"
    elif isinstance(workload, TraceWorkload):
        yield "*"
    else:
        yield ONE_TENANT


def _bucket(tenant: ServiceClass) -> TokenBucket | None:
    limit = tenant.rate_limit
    return None if limit is None else TokenBucket(limit.requests_per_s, limit.burst_requests)


def _patience_plan(wish: ClientPatience | None, seed: int) -> PatiencePlan:
    if wish is None:
        return PatiencePlan()
    return PatiencePlan(
        timeout_s=wish.timeout_s,
        until=wish.until,
        max_retries=wish.max_retries,
        backoff_s=partial(backoff_s, wish.backoff, seed),
    )


def backoff_s(law: Backoff, seed: int, request: Request) -> float:
    """Give the time before the attempt that a request is about to make.

    Examples
    --------
    The second attempt comes after a second, the third after two, the fourth after four:

    >>> request = Request(0, 0, 1, 1)
    >>> for request.attempts in (2, 3, 4, 9):
    ...     print(backoff_s(Backoff(longest_s=60), 1, request))
    1.0
    2.0
    4.0
    60.0
    """
    wait_s = min(law.first_s * law.factor ** (request.attempts - 2), law.longest_s)
    if law.jitter_fraction:
        draw = stream(seed, "backoff", request.request_id, request.attempts).uniform(-1, 1)
        wait_s *= 1 + law.jitter_fraction * draw
    return wait_s
