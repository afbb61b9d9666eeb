"""Waiting lines: who is let in next."""

from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Protocol

from sim.engine.requests import Request


class WaitingLine(Protocol):
    """Requests that wait, in the order in which they are served."""

    def push(self, request: Request) -> None:
        """Let a request join."""
        ...

    def push_front(self, request: Request) -> None:
        """Let a request that was preempted join again, before its equals."""
        ...

    def head(self) -> Request | None:
        """Give the next one, if there is any."""
        ...

    def known_head(self, tick: int) -> Request | None:
        """Give the next one of those that had joined at a tick, if there is any."""
        ...

    def take(self, request: Request) -> None:
        """Take one out that `head` or `known_head` gave."""
        ...

    def remove(self, request: Request) -> bool:
        """Take a request out, wherever it stands; False if it does not."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class FcfsLine(deque[Request]):
    """First come, first served."""

    push = deque.append
    push_front = deque.appendleft

    def head(self) -> Request | None:
        """Give the next one, if there is any."""
        return self[0] if self else None

    def known_head(self, tick: int) -> Request | None:
        """Give the next one of those that had joined at a tick: others came after it."""
        return self[0] if self and self[0].queued_tick <= tick else None

    def take(self, request: Request) -> None:
        """Take the next one out."""
        del request
        self.popleft()

    def remove(self, request: Request) -> bool:  # type: ignore[override]
        """Take a request out, wherever it stands; False if it does not."""
        if request not in self:
            return False
        super().remove(request)
        return True


class PriorityLine:
    """By priority, then by arrival; those that were preempted before their equals."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], int, Request]] = []
        self._members: dict[Request, int] = {}
        self._count = 0
        self._front = 0

    def push(self, request: Request) -> None:
        """Let a request join."""
        self._count += 1
        key = (request.priority, 1, request.arrival_tick, request.request_id)
        self._enter(request, key)

    def push_front(self, request: Request) -> None:
        """Let a request that was preempted join again, before its equals."""
        self._front -= 1
        self._enter(request, (request.priority, 0, self._front))

    def head(self) -> Request | None:
        """Give the next one, if there is any."""
        heap = self._heap
        while heap and self._members.get(heap[0][2]) != heap[0][1]:
            heappop(heap)  # it has left since
        return heap[0][2] if heap else None

    def known_head(self, tick: int) -> Request | None:
        """Give the next one of those that had joined at a tick, if there is any."""
        late = []
        while (request := self.head()) is not None and request.queued_tick > tick:
            late.append(heappop(self._heap))
        for row in late:  # seldom many: those that came while one step ran
            heappush(self._heap, row)
        return request

    def take(self, request: Request) -> None:
        """Take one out that `head` or `known_head` gave."""
        del self._members[request]

    def remove(self, request: Request) -> bool:
        """Take a request out, wherever it stands; False if it does not."""
        return self._members.pop(request, None) is not None

    def __len__(self) -> int:
        """Count them."""
        return len(self._members)

    def __iter__(self) -> Iterator[Request]:
        members = self._members
        return (row[2] for row in sorted(self._heap) if members.get(row[2]) == row[1])

    def _enter(self, request: Request, key: tuple[float, ...]) -> None:
        self._count += 1
        self._members[request] = self._count
        heappush(self._heap, (key, self._count, request))


class FairLine(PriorityLine):
    """Weighted shares of the prompt tokens for tenants that wait at the same time.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996, doi:10.1145/248157.248171): a request
    starts, in virtual time, when the one before it of its tenant ends or now, whichever is later;
    it lasts as long as its tokens over the weight of its tenant; the earliest start is served.

    Parameters
    ----------
    weights : sequence of float
        By index of the tenant.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self._weights = weights
        self._now = 0.0
        self._starts: dict[Request, float] = {}
        self._ends = [0.0] * len(weights)

    def push(self, request: Request) -> None:
        """Let a request join."""
        tenant = request.tenant
        start = max(self._now, self._ends[tenant])
        self._ends[tenant] = start + request.input_tokens / self._weights[tenant]
        self._starts[request] = start
        self._enter(request, (1, start, request.request_id))

    def push_front(self, request: Request) -> None:
        """Let a request that was preempted join again, before all that wait."""
        self._front -= 1
        self._enter(request, (0, self._front))

    def take(self, request: Request) -> None:
        """Take one out that `head` or `known_head` gave."""
        super().take(request)
        self._now = max(self._now, self._starts.pop(request, 0.0))

    def remove(self, request: Request) -> bool:
        """Take a request out, wherever it stands; what its tenant was charged is not given back."""
        self._starts.pop(request, None)
        return super().remove(request)
