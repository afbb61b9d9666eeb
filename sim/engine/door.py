"""The door of a service: who is let in, and who is turned away."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sim.engine.clock import TICKS_PER_S
from sim.engine.requests import Request


class TokenBucket:
    """Lets requests in at a rate, and some at once after a pause.

    In whole ticks, as the generic cell rate algorithm counts it: what is kept is the tick at which
    the bucket would be full again.

    Parameters
    ----------
    requests_per_s : float
    burst_requests : int

    Examples
    --------
    One request a second, two at once:

    >>> bucket = TokenBucket(1.0, burst_requests=2)
    >>> [bucket.take(0), bucket.take(0), bucket.take(0), bucket.take(TICKS_PER_S)]
    [True, True, False, True]
    """

    def __init__(self, requests_per_s: float, burst_requests: int) -> None:
        self._interval = max(1, round(TICKS_PER_S / requests_per_s))
        self._room = (burst_requests - 1) * self._interval
        self._full_tick = 0

    def take(self, tick: int) -> bool:
        """Let a request in, if the bucket is not empty."""
        full = max(self._full_tick, tick)
        if full - tick > self._room:
            return False
        self._full_tick = full + self._interval
        return True


@dataclass
class TenantDoor:
    """Limits of one tenant."""

    bucket: TokenBucket | None = None
    max_outstanding_requests: int | None = None
    outstanding_requests: int = field(default=0, init=False)

    def admits(self, tick: int) -> bool:
        """Tell whether one more may come in; if so it has taken its place in the bucket."""
        most = self.max_outstanding_requests
        if most is not None and self.outstanding_requests >= most:
            return False
        return self.bucket is None or self.bucket.take(tick)


class Door:
    """Limits in front of all pools.

    Parameters
    ----------
    tenants : mapping
        Limits by index of the tenant; others have none.
    max_outstanding_requests : int, optional
        Of all tenants together.
    """

    def __init__(
        self,
        tenants: Mapping[int, TenantDoor] | None = None,
        max_outstanding_requests: int | None = None,
    ) -> None:
        self._tenants = dict(tenants or {})
        self._most = max_outstanding_requests
        self._outstanding = 0

    def admits(self, request: Request, tick: int) -> bool:
        """Let a request in, or turn it away."""
        if self._most is not None and self._outstanding >= self._most:
            return False
        tenant = self._tenants.get(request.tenant)
        if tenant is not None:
            if not tenant.admits(tick):
                return False
            tenant.outstanding_requests += 1
        self._outstanding += 1
        return True

    def left(self, request: Request) -> None:
        """Take note that an attempt that was let in is over."""
        self._outstanding -= 1
        tenant = self._tenants.get(request.tenant)
        if tenant is not None:
            tenant.outstanding_requests -= 1
