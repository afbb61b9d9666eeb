"""Which replica a request goes to."""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

import numpy as np

from sim.engine.kv import blocks_for
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.workload.content import Content


class Candidate(Protocol):
    """What a router may see of a replica."""

    @property
    def index(self) -> int:
        """Position in the cluster."""
        ...

    @property
    def outstanding_requests(self) -> int:
        """Accepted and not done."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Prompts and longest answers of those."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens that a KV block holds."""
        ...

    def cached_tokens(self, content: Content) -> int:
        """Tokens of a prompt that its prefix cache holds."""
        ...


Load = Callable[[Candidate], int]
"""What is to be least."""


def requests_of(replica: Candidate) -> int:
    """Count the requests of a replica."""
    return replica.outstanding_requests


def tokens_of(replica: Candidate) -> int:
    """Count the tokens of its requests."""
    return replica.outstanding_tokens


class Router(Protocol):
    """Chooses a replica for each request, from what can be seen now.

    Each choice is followed by one departure from that replica, whatever became of the request; one
    that is turned away leaves before anything else is chosen, and `Request.outcome` says so.
    """

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the replica that shall serve the request, which is sent there at once."""
        ...

    def left(self, request: Request, replica: Replica) -> None:
        """Hear that a request has left a replica, before its outcome has any consequence."""
        ...

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Hear that other replicas take requests now."""
        ...


class Books:
    """What a router has sent to each replica and has not seen leave."""

    def __init__(self) -> None:
        self._loads: dict[int, int] = {}
        self._shares: dict[Request, int] = {}

    def load(self, replica: Candidate) -> int:
        """Sum the loads of the requests that are there."""
        return self._loads.get(replica.index, 0)

    def sent(self, request: Request, replica: Candidate, load: int) -> None:
        """Enter a request."""
        self._shares[request] = load
        self._loads[replica.index] = self._loads.get(replica.index, 0) + load

    def left(self, request: Request, replica: Candidate) -> None:
        """Strike a request off."""
        self._loads[replica.index] -= self._shares.pop(request)


class Indifferent:
    """A router that need not hear what becomes of requests."""

    def left(self, request: Request, replica: Replica) -> None:
        """Take no note."""

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Take no note."""


class RoundRobin(Indifferent):
    """Each replica in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the next replica in turn."""
        del request
        chosen = replicas[self._next % len(replicas)]
        self._next += 1
        return chosen


class AnyReplica(Indifferent):
    """Any replica, all with equal chances.

    Parameters
    ----------
    rng : numpy.random.Generator
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return some replica."""
        del request
        return replicas[int(self._rng.integers(len(replicas)))]


class PowerOfTwo(Indifferent):
    """The least loaded of a few replicas drawn at random, with repetition; the first of equals.

    Parameters
    ----------
    rng : numpy.random.Generator
    choices : int
    load : callable
    """

    def __init__(
        self, rng: np.random.Generator, choices: int = 2, load: Load = requests_of
    ) -> None:
        self._rng = rng
        self._choices = choices
        self._load = load

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the best of the draw."""
        del request
        drawn: list[int] = self._rng.integers(len(replicas), size=self._choices).tolist()
        candidates = [replicas[place] for place in drawn]
        return min(candidates, key=self._load)


SPARE_ENTRIES = 8
"""Entries of a heap for each of its replicas, those that were undercut included, until they are
cleared away: those above the least load never come to the top by themselves."""


class LeastOutstanding:
    """The replica with the least load; the first of equals.

    A heap of loads, of which only the lowest of each replica matters: one that turns out too low
    is put right when it comes to the top, one that a departure made too high is undercut at once.
    So a choice costs O(log replicas), and fleets of thousands of replicas can be asked about.
    Loads may fall only when a request leaves.

    Parameters
    ----------
    load : callable
    """

    def __init__(self, load: Load = requests_of) -> None:
        self._load = load
        self._heap: list[tuple[int, int]] = []
        """Loads and places, an order in which equals are told apart by their place."""
        self._lowest: dict[int, int] = {}
        """Lowest entry of each replica, by its place."""
        self._places: dict[Replica, int] = {}
        self._replicas: Sequence[Replica] = ()

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the least loaded replica."""
        del request
        if not self._places:
            self._replicas = replicas
            self._places = {replica: place for place, replica in enumerate(replicas)}
            for place in range(len(replicas)):
                self._enter(place)
        heap = self._heap
        while True:
            load, place = heap[0]
            if load == self._lowest[place]:
                replica = self._replicas[place]
                if load == self._load(replica):
                    return replica
                heappop(heap)
                self._enter(place)
            else:
                heappop(heap)  # undercut since

    def left(self, request: Request, replica: Replica) -> None:
        """Undercut the load of a replica that a request has left."""
        del request
        place = self._places.get(replica)
        if place is not None and self._load(replica) < self._lowest[place]:
            self._enter(place)

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Begin anew with those that are there."""
        del replicas
        self._heap.clear()
        self._lowest.clear()
        self._places = {}

    def _enter(self, place: int) -> None:
        self._lowest[place] = load = self._load(self._replicas[place])
        heap = self._heap
        heappush(heap, (load, place))
        if len(heap) > SPARE_ENTRIES * len(self._places):
            heap[:] = [(lowest, place) for place, lowest in self._lowest.items()]
            heapify(heap)


class PredictedLength(LeastOutstanding):
    """The replica with the least work to come: prompts, and answers as they are predicted.

    Parameters
    ----------
    predict : callable
        Gives the predicted tokens of a request's answer.
    """

    def __init__(self, predict: Callable[[Request], int]) -> None:
        self._predict = predict
        self._books = Books()
        super().__init__(self._books.load)

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the replica with the least work, and count that of the request."""
        replica = super().choose(request, replicas)
        self._books.sent(request, replica, request.input_tokens + self._predict(request))
        return replica

    def left(self, request: Request, replica: Replica) -> None:
        """Count it no more."""
        self._books.left(request, replica)
        super().left(request, replica)


class _WithFallback:
    """A router that leaves some choices to another one.

    Parameters
    ----------
    others : Router
        One that looks at the replicas: in books of its own the choices of this one would miss.
    """

    def __init__(self, others: Router) -> None:
        self._others = others

    def left(self, request: Request, replica: Replica) -> None:
        """Pass it on."""
        self._others.left(request, replica)

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Pass it on."""
        self._others.changed(replicas)


class SessionSticky(_WithFallback):
    """The replica that served the session before.

    The other router chooses for new sessions, for requests of none, and where that replica takes
    no more.
    """

    def __init__(self, others: Router) -> None:
        super().__init__(others)
        self._homes: dict[int, Replica] = {}

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the session's replica."""
        home = self._homes.get(request.session) if request.session >= 0 else None
        if home is None or not home.accepts:
            home = self._others.choose(request, replicas)
            if request.session >= 0:
                self._homes[request.session] = home
        return home


class PrefixAware(_WithFallback):
    """The replica with the best match in its prefix cache, unless loads are uneven.

    Asks every replica, so a choice costs O(replicas).

    Parameters
    ----------
    least_match_fraction : float
        Share of the prompt that a match must cover.
    uneven_requests : int
    uneven_ratio : float
        Loads are uneven if they differ by more than both.
    """

    def __init__(
        self, least_match_fraction: float, uneven_requests: int, uneven_ratio: float
    ) -> None:
        super().__init__(LeastOutstanding())
        self._least_match_fraction = least_match_fraction
        self._uneven_requests = uneven_requests
        self._uneven_ratio = uneven_ratio

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the best match, or the least loaded."""
        if request.content is None or self._uneven(replicas):
            return self._others.choose(request, replicas)
        content = request.content
        matches = [replica.cached_tokens(content) for replica in replicas]
        most = max(matches)
        if most > self._least_match_fraction * request.input_tokens:
            return replicas[matches.index(most)]
        return self._others.choose(request, replicas)

    def _uneven(self, replicas: Sequence[Replica]) -> bool:
        loads = [replica.outstanding_requests for replica in replicas]
        most, least = max(loads), min(loads)
        return most - least > self._uneven_requests and most > self._uneven_ratio * least


class KvAware(Indifferent):
    """The replica where the prompt costs least beside those under way; the first of equals.

    Keeps books of the KV blocks of the prompts that it has sent and that have not left, less what
    was cached of each when it was sent. So it knows of those that wait; it does not follow answers.

    Asks every replica, so a choice costs O(replicas).

    Parameters
    ----------
    overlap_weight : float
        What a block of this prompt costs beside a block of those under way.
    """

    def __init__(self, overlap_weight: float) -> None:
        self._overlap_weight = overlap_weight
        self._books = Books()

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the cheapest, and count the prompt there."""
        missing = [self._missing_tokens(request, replica) for replica in replicas]
        costs = [
            self._overlap_weight * tokens / replica.block_tokens + self._books.load(replica)
            for tokens, replica in zip(missing, replicas, strict=True)
        ]
        place = costs.index(min(costs))
        chosen = replicas[place]
        self._books.sent(request, chosen, blocks_for(missing[place], chosen.block_tokens))
        return chosen

    def left(self, request: Request, replica: Replica) -> None:
        """Count it no more."""
        self._books.left(request, replica)

    def _missing_tokens(self, request: Request, replica: Candidate) -> int:
        cached = 0 if request.content is None else replica.cached_tokens(request.content)
        return request.input_tokens - cached
