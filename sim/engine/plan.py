"""What the engine must know of a deployment, and how a replica's scheduler is made of it."""

from collections.abc import Callable
from dataclasses import dataclass

from sim.engine.admission import AnswerEstimate, EstimatedAnswer, Reservation, WholeAnswer
from sim.engine.batch import DecodeBatch
from sim.engine.kv import WHOLE_CONTEXT, BlockPool, SequenceBlocks
from sim.engine.lockstep import LockstepScheduler, RankChoice, ReplicaScheduler
from sim.engine.prefix import PrefixCache
from sim.engine.rules import SchedulerRules
from sim.engine.scheduler import Scheduler
from sim.engine.ticks import Pace
from sim.engine.waiting import FcfsLine, WaitingLine


@dataclass(frozen=True)
class ReplicaPlan:
    """What all replicas of a pool have in common."""

    rules: SchedulerRules
    """Of each attention rank that has a scheduler of its own."""
    kv_blocks: int
    """Of such a rank."""
    block_tokens: int
    pace: Pace
    """Of the first replica, and of all unless there is a `pace_of`."""
    max_model_len: int
    """Longest prompt plus answer that is accepted."""
    sequence_blocks: SequenceBlocks = WHOLE_CONTEXT
    """KV blocks that each sequence holds."""
    prefix_caching: bool = False
    by_priority: bool = False
    """Preempt sequences of the last priority first."""
    whole_answers: bool = False
    """Set the longest answer of each request aside (``no_evict``)."""
    estimate: AnswerEstimate | None = None
    """Set an estimate of the answers aside (``estimated``)."""
    new_line: Callable[[], WaitingLine] = FcfsLine
    """Makes the waiting line."""
    new_batch: Callable[[], DecodeBatch] | None = None
    """Makes the batch of decoding sequences; one token for each in every step unless given."""
    max_queue_requests: int | None = None
    """Requests that may wait at each replica; further ones are turned away."""
    kv_bytes_per_token: float = 0.0
    """What moves between replicas and tiers for each token of context."""
    pace_of: Callable[[int], Pace] | None = None
    """Gives a replica with a number a pace of its own."""
    ranks: int = 1
    """Attention ranks that have schedulers of their own."""
    rank_choice: RankChoice = "fewest_waiting"
    """How requests are dealt to them."""

    def replica_pace(self, number: int) -> Pace:
        """Give the pace of a replica, counted from 0 in its pool."""
        return self.pace if self.pace_of is None else self.pace_of(number)

    def new_scheduler(self) -> ReplicaScheduler:
        """Make the scheduler of an empty replica."""
        if self.ranks == 1:
            return self._rank_scheduler()
        ranks = [self._rank_scheduler() for _ in range(self.ranks)]
        return LockstepScheduler(ranks, self.rank_choice)

    def _rank_scheduler(self) -> Scheduler:
        new_pool = PrefixCache if self.prefix_caching else BlockPool
        pool = new_pool(self.kv_blocks, self.block_tokens)
        batch = self._new_batch()
        return Scheduler(
            self.rules,
            pool,
            batch,
            self.new_line(),
            self.sequence_blocks,
            self._reservation(pool, batch),
        )

    def _new_batch(self) -> DecodeBatch:
        if self.new_batch is not None:
            return self.new_batch()
        return DecodeBatch(
            self.block_tokens,
            self.rules.window_tokens,
            self.sequence_blocks,
            by_priority=self.by_priority,
        )

    def _reservation(self, pool: BlockPool, batch: DecodeBatch) -> Reservation | None:
        if self.whole_answers:
            return WholeAnswer(pool, self.sequence_blocks, self.rules.window_tokens)
        if self.estimate is not None:
            return EstimatedAnswer(pool, batch, self.estimate)
        return None
