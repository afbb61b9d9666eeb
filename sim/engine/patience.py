"""Clients that give up, and try again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sim.engine.clock import to_ticks
from sim.engine.cluster import Cluster
from sim.engine.requests import NEVER, Request


@dataclass(frozen=True)
class PatiencePlan:
    """How long clients wait, and how often they try."""

    timeout_s: float | None = None
    """Time of one attempt; none: they wait for ever."""
    until: Literal["first_token", "completion"] = "first_token"
    """What they wait for."""
    max_retries: int = 0
    """Attempts after the first, if that was given up or turned away at the door."""
    backoff_s: Callable[[Request], float] = lambda _: 0.0
    """Time before the next attempt."""


class Patience:
    """Watches over the requests of a cluster for their clients.

    Parameters
    ----------
    plans : sequence of PatiencePlan
        By tenant.
    """

    def __init__(self, plans: Sequence[PatiencePlan]) -> None:
        self._plans = plans

    def attach(self, cluster: Cluster) -> None:
        """Begin to watch."""
        self._cluster = cluster
        cluster.when_sent = self._sent
        cluster.second_chance = self._try_again

    def _sent(self, request: Request) -> None:
        plan = self._plans[request.tenant]
        if plan.timeout_s is None:
            return
        attempt = request.attempts
        alarm = self._cluster.env.timeout(to_ticks(plan.timeout_s))
        if alarm.callbacks is not None:
            alarm.callbacks.append(lambda _: self._look(request, attempt, plan))

    def _look(self, request: Request, attempt: int, plan: PatiencePlan) -> None:
        """Give an attempt up that has not come as far as its client expected."""
        if request.outcome != "unfinished" or request.attempts != attempt:
            return
        if plan.until == "first_token" and request.first_token_tick >= 0:
            return
        self._cluster.abort(request, "timed_out")

    def _try_again(self, request: Request) -> bool:
        """Send a request once more, if its client still wants to."""
        plan = self._plans[request.tenant]
        if request.outcome == "rejected" or request.attempts > plan.max_retries:
            return False
        request.attempts += 1
        start_again(request)
        wait = self._cluster.env.timeout(to_ticks(plan.backoff_s(request)))
        if wait.callbacks is not None:
            wait.callbacks.append(lambda _: self._cluster.send(request))
        return True


def start_again(request: Request) -> None:
    """Make a request as it was before its first attempt, but for what it has been through."""
    request.outcome = "unfinished"
    request.stage = request.given_up = None
    request.remote = None
    request.replica = -1
    request.forget_work()
    request.admit_tick = request.left_batch_tick = NEVER
