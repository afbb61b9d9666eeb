"""Attention ranks that take every step together, each with requests of its own.

With data-parallel attention a replica has as many schedulers as ranks: a rank has a waiting line,
a KV cache and a batch, and shares nothing but the experts with the others. The experts of a layer
need the tokens of all ranks, so no rank can be a step ahead of another:

1. A request is dealt to a rank when it arrives and stays there, also when it is preempted.
2. As long as any rank has something to do, all take part; one that has nothing runs a dummy step
   and sees what is new when that ends (vLLM: ``DPEngineCoreProc.run_busy_loop`` in
   ``vllm/v1/engine/core.py``, ``docs/serving/data_parallel_deployment.md``; SGLang: idle batches
   under ``--enable-dp-attention``).
3. A step lasts as long as on the slowest rank (`sim.engine.ticks.LockstepPace`).

A stretch of the replica ends when the batch of any rank changes. A rank whose own stretch goes on
is not asked again: its decision holds, as it does when a scheduler alone jumps. Work per stretch
grows with the ranks, not with what is in their batches.
"""

from collections import ChainMap
from collections.abc import Collection, Container, Sequence, Sized
from typing import Literal, Protocol

from sim.engine.lookup import KvTransport
from sim.engine.prefix import PrefixCache
from sim.engine.requests import Request
from sim.engine.scheduler import Scheduler
from sim.engine.stretch import Stretch
from sim.engine.ticks import Line
from sim.errors import InternalError
from sim.workload.content import Content

RankChoice = Literal["fewest_waiting", "fewest_requests", "round_robin"]
"""How requests are dealt to ranks, the first rank among equals.

- ``fewest_waiting``: the fewest requests, where one that waits counts as `WAITING_WEIGHT` (vLLM:
  ``DPLBAsyncMPClient.get_core_engine_for_request`` in ``vllm/v1/engine/core_client.py``).
- ``fewest_requests``: the fewest requests (SGLang: ``--load-balance-method shortest_queue``).
- ``round_robin``: in turn (SGLang: ``round_robin``; both in
  ``python/sglang/srt/managers/data_parallel_controller.py``).

Those engines hear of the ranks' counts every so often (vLLM: every 100 ms) and count what they
have sent since; here the counts are those of the moment.
"""

WAITING_WEIGHT = 4
"""Running requests that one in the waiting line counts as."""


class PoolCounts(Protocol):
    """How much KV cache there is."""

    @property
    def used_blocks(self) -> int:
        """Blocks that belong to sequences."""
        ...

    @property
    def total_blocks(self) -> int:
        """All of them."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens that a block holds."""
        ...


class ReplicaScheduler(Protocol):
    """What a replica needs of its scheduler; `Scheduler` says more of each."""

    transport: KvTransport | None
    """The way to keys and values that lie elsewhere."""

    @property
    def pool(self) -> PoolCounts:
        """The KV cache."""
        ...

    @property
    def line(self) -> Sized:
        """Those who wait."""
        ...

    @property
    def fetching(self) -> Container[Request]:
        """Those whose keys and values are on the way."""
        ...

    @property
    def kept(self) -> Collection[Request]:
        """Those who are done, and whose blocks somebody will fetch."""
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
    def waiting_requests(self) -> int:
        """Accepted and not admitted, or preempted."""
        ...

    def can_ever_run(self, request: Request) -> bool:
        """Tell at the door whether a request fits at all."""
        ...

    def add(self, request: Request, tick: int) -> None:
        """Let a request wait."""
        ...

    def admits_at_once(self, request: Request) -> bool:
        """Tell whether one that has just joined may come in at the next step."""
        ...

    def cached_tokens(self, content: Content) -> int:
        """Tokens of a prompt that are cached."""
        ...

    def plan(self, tick: int, known_tick: int | None = None) -> Stretch | None:
        """Decide the next steps; None when nothing can run."""
        ...

    def finish(self, stretch: Stretch, steps: int, tick: int) -> list[Request]:
        """Account for steps that have ended and return the requests that completed."""
        ...

    def take_blocks(self, stretch: Stretch, steps: int) -> None:
        """Take the KV blocks of the first steps, as far as it has not been done."""
        ...

    def fetched(self, request: Request) -> None:
        """Take note that the keys and values of a request have come."""
        ...

    def free_kept(self, request: Request) -> None:
        """Free the blocks of a request that was done before."""
        ...

    def drop_waiting(self, request: Request) -> bool:
        """Take a request out of the line, if it is there."""
        ...

    def drop(self, request: Request) -> None:
        """Take a request out between two steps, wherever it is."""
        ...

    def clear(self) -> list[Request]:
        """Forget everything and return the requests that were here."""
        ...


class LockstepStretch(Stretch):
    """Steps of all ranks together: counts are sums over the ranks."""

    def __init__(self, grain: int = 1) -> None:
        super().__init__(0, 0, 0, 0, 0, 0)
        self.grain = grain
        self.ranks: list[Stretch] = []
        """Of each rank; an empty one where a rank has nothing to do."""

    def add(self, part: Stretch) -> None:
        """Count what another rank does."""
        self.ranks.append(part)
        self.decode_sequences += part.decode_sequences
        self.context_tokens += part.context_tokens
        self.context_growing += part.context_growing
        self.window_tokens += part.window_tokens
        self.window_growing += part.window_growing
        self.taken_blocks += part.taken_blocks
        if part.chunks:
            self.chunks += part.chunks
            self.prefill_tokens += part.prefill_tokens
            self.prefill_context_tokens += part.prefill_context_tokens
            self.prefill_pairs += part.prefill_pairs
            self.prefill_window_pairs += part.prefill_window_pairs


IDLE = Stretch(0, 0, 0, 0, 0, 0)
"""Of a rank that has nothing to do; all share it, and nobody changes it."""


class _PoolSums:
    """The KV caches of all ranks."""

    def __init__(self, ranks: Sequence[Scheduler]) -> None:
        self._pools = [rank.pool for rank in ranks]
        self.block_tokens = self._pools[0].block_tokens
        self.total_blocks = sum(pool.total_blocks for pool in self._pools)

    @property
    def used_blocks(self) -> int:
        return sum(pool.used_blocks for pool in self._pools)


class _Lines:
    """The waiting lines of all ranks."""

    def __init__(self, ranks: Sequence[Scheduler]) -> None:
        self._lines = [rank.line for rank in ranks]

    def __len__(self) -> int:
        return sum(map(len, self._lines))


class LockstepScheduler:
    """The schedulers of a replica's attention ranks, for the replica one scheduler.

    Parameters
    ----------
    ranks : sequence of Scheduler
        At least one, all empty and alike. Limits and blocks are those of one rank.
    choice : RankChoice
        How requests are dealt to them.
    """

    def __init__(self, ranks: Sequence[Scheduler], choice: RankChoice = "fewest_waiting") -> None:
        if not ranks:
            raise InternalError("a replica has one attention rank at least")
        self.ranks = tuple(ranks)
        self.choice = choice
        self.pool = _PoolSums(ranks)
        self.line = _Lines(ranks)
        self.fetching = ChainMap(*(rank.fetching for rank in ranks))
        self.kept = ChainMap(*(rank.kept for rank in ranks))
        self._grain = ranks[0].batch.grain
        self._home: dict[Request, int] = {}
        """Where requests are that have not left, or whose blocks are kept."""
        self._dealt = 0
        self._parts = [IDLE] * len(ranks)
        """What each of them does, or did in the last step."""
        self._going_on = [False] * len(ranks)
        """Whose decision of the last stretch holds for the next one."""
        self._plain = self._grain == 1
        """Whether what is left of a rank's stretch is known without asking it: not with drafts."""
        self._share_tiers = False
        """Whether what one rank forgets may be found by another."""

    @property
    def transport(self) -> KvTransport | None:
        """The way to keys and values that lie elsewhere, the same for all ranks."""
        return self.ranks[0].transport

    @transport.setter
    def transport(self, transport: KvTransport | None) -> None:
        for rank in self.ranks:
            rank.transport = transport
        caches = [rank.pool for rank in self.ranks if isinstance(rank.pool, PrefixCache)]
        heard = any(cache.on_evict or cache.on_release for cache in caches)
        self._share_tiers = heard and len(caches) > 1
        self._going_on = [False] * len(self.ranks)

    @property
    def outstanding_requests(self) -> int:
        """Accepted and not done."""
        return sum(rank.outstanding_requests for rank in self.ranks)

    @property
    def outstanding_tokens(self) -> int:
        """Prompts and longest answers of those."""
        return sum(rank.outstanding_tokens for rank in self.ranks)

    @property
    def waiting_requests(self) -> int:
        """Accepted and not admitted, or preempted."""
        return len(self.line)

    def can_ever_run(self, request: Request) -> bool:
        """Tell whether the cache of one rank could hold the longest answer asked for."""
        return self.ranks[0].can_ever_run(request)

    def cached_tokens(self, content: Content) -> int:
        """Tokens of a prompt that one of the prefix caches holds, at most.

        A request may be dealt to another rank: the engines do not look at the caches.
        """
        return max(rank.cached_tokens(content) for rank in self.ranks)

    def add(self, request: Request, tick: int) -> None:
        """Deal a request to a rank."""
        place = self._choose()
        self._home[request] = place
        self._touched(place).add(request, tick)

    def admits_at_once(self, request: Request) -> bool:
        """Tell whether a request that has just joined may be admitted at the next step."""
        return self.ranks[self._home[request]].admits_at_once(request)

    # -- steps ----------------------------------------------------------------------------------

    def plan(self, tick: int, known_tick: int | None = None) -> LockstepStretch | None:
        """Decide the next step of every rank, and for how many steps all decisions hold.

        Parameters
        ----------
        tick : int
            The clock.
        known_tick : int, optional
            When the last step began, for engines that decide a step ahead. A rank that had nothing
            to do in it starts at once.

        Returns
        -------
        LockstepStretch, optional
            None when no rank has anything to do.
        """
        whole = LockstepStretch(self._grain)
        steps, blocked = 0, False
        for place, rank in enumerate(self.ranks):
            part = self._parts[place]
            if self._going_on[place]:
                blocks = rank.batch.blocks_needed(1)
                rank.pool.take(blocks)
                part.taken_blocks = blocks
            else:
                part = self._parts[place] = self._plan_rank(place, tick, known_tick)
            if part is not IDLE:
                steps = part.max_steps if not steps else min(steps, part.max_steps)
            elif rank.line:
                blocked = True
            whole.add(part)
        if not steps:
            return None
        # who could not come in although nothing of the rank runs may find room at any step, as
        # may who looks for what others forget
        whole.max_steps = 1 if blocked or self._share_tiers else steps
        return whole

    def finish(self, stretch: Stretch, steps: int, tick: int) -> list[Request]:
        """Account for steps that have ended and return the requests that completed.

        Parameters
        ----------
        stretch : LockstepStretch
            What `plan` returned.
        steps : int
            Steps taken by every rank, from 1 to ``stretch.max_steps``.
        tick : int
            The clock at the end of the last step.
        """
        done: list[Request] = []
        for place, part in enumerate(_parts(stretch)):
            rank = self.ranks[place]
            if part is IDLE:
                stretch.used_blocks += rank.pool.used_blocks
                continue
            for request in rank.finish(part, steps, tick):
                done.append(request)
                if request not in rank.kept:
                    del self._home[request]
            stretch.first_tokens += part.first_tokens
            stretch.decoded_tokens += part.decoded_tokens
            stretch.used_blocks += part.used_blocks
            if part.max_steps > steps:
                _shorten(part, steps)
            else:
                self._going_on[place] = False
        return done

    def take_blocks(self, stretch: Stretch, steps: int) -> None:
        """Take the KV blocks of the first steps of a stretch, as far as it has not been done."""
        for rank, part in zip(self.ranks, _parts(stretch), strict=True):
            if part.decode_sequences:
                rank.take_blocks(part, steps)

    # -- what happens from outside, between two steps ---------------------------------------------

    def fetched(self, request: Request) -> None:
        """Take note that the keys and values of a request have come."""
        self._touched(self._home[request]).fetched(request)

    def free_kept(self, request: Request) -> None:
        """Free the blocks of a request that was done before, now that they have been fetched."""
        self._touched(self._home.pop(request)).free_kept(request)

    def drop_waiting(self, request: Request) -> bool:
        """Take a request out of its waiting line, if it is in one."""
        place = self._home.get(request)
        if place is None or not self._touched(place).drop_waiting(request):
            return False
        del self._home[request]
        return True

    def drop(self, request: Request) -> None:
        """Take a request out between two steps, wherever it is; its blocks are free again."""
        self._touched(self._home.pop(request)).drop(request)

    def clear(self) -> list[Request]:
        """Forget everything, as a crash does, and return the requests that were here."""
        return [request for rank in self.ranks for request in rank.clear()]

    def _plan_rank(self, place: int, tick: int, known_tick: int | None) -> Stretch:
        """Ask a rank for its next step; `IDLE` if it has none."""
        rank, worked = self.ranks[place], self._parts[place] is not IDLE
        if not rank.outstanding_requests:
            return IDLE
        part = rank.plan(tick, known_tick if worked else None)
        if part is None and worked and known_tick is not None:
            part = rank.plan(tick)  # nothing of it runs: all that is there counts at once
        self._going_on[place] = part is not None and self._plain and not self._share_tiers
        return part or IDLE

    def _touched(self, place: int) -> Scheduler:
        """Give a rank to which something happens, so that it has to decide anew."""
        self._going_on[place] = False
        return self.ranks[place]

    def _choose(self) -> int:
        if self.choice == "round_robin":
            place = self._dealt % len(self.ranks)
            self._dealt += 1
            return place
        # those whose keys and values are on the way wait as well
        less = WAITING_WEIGHT - 1 if self.choice == "fewest_waiting" else 0
        loads = [
            (less + 1) * rank.outstanding_requests - less * rank.running_requests
            for rank in self.ranks
        ]
        return loads.index(min(loads))


def _shorten(stretch: Stretch, steps: int) -> None:
    """Leave what of a stretch is to come after some of its steps."""
    stretch.context_tokens += steps * stretch.context_growing
    stretch.window_tokens += steps * stretch.window_growing
    stretch.max_steps -= steps


def _parts(stretch: Stretch) -> list[Stretch]:
    """Give the stretches of the ranks."""
    if not isinstance(stretch, LockstepStretch):
        raise InternalError("a stretch of attention ranks in lockstep is asked for")
    return stretch.ranks


class RanksPace(Protocol):
    """What is known about the time that ranks take together."""

    def line(self, stretches: Sequence[Stretch], steps_before: int = 0, /) -> Line:
        """Ticks of the steps of all ranks (`sim.engine.ticks.LockstepPace`)."""
        ...


class RankedPace:
    """The pace of a replica whose ranks keep step.

    Parameters
    ----------
    ranks : RanksPace
    """

    def __init__(self, ranks: RanksPace) -> None:
        self._ranks = ranks

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a `LockstepStretch`."""
        return self._ranks.line(_parts(stretch), steps_before)
