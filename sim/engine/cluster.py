"""All replicas of one case behind their router, run to the end."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import simpy

from sim.engine.clients import ClosedLoop, OpenLoop
from sim.engine.kv import WHOLE_CONTEXT, BlockPool, SequenceBlocks
from sim.engine.records import Columns, Recorder
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.router import ROUTERS, RouterKind
from sim.engine.scheduler import BatchLimits, Scheduler
from sim.engine.ticks import Pace


@dataclass(frozen=True)
class ReplicaPlan:
    """What all replicas of a cluster have in common."""

    limits: BatchLimits
    kv_blocks: int
    block_tokens: int
    window_tokens: int | None
    pace: Pace
    max_model_len: int
    """Longest prompt plus answer that is accepted."""
    answer_ticks: int = 0
    """Time from the end of a request in the engine until its client has seen it."""
    sequence_blocks: SequenceBlocks = WHOLE_CONTEXT
    """KV blocks that each sequence holds."""


@dataclass(frozen=True)
class RunRecord:
    """The raw columns of a finished run."""

    requests: Columns
    stretches: Columns


class Cluster:
    """Equal replicas behind a router, on a clock of their own.

    Parameters
    ----------
    plan : ReplicaPlan
    replicas : int
    router : RouterKind
    every_step : bool
        Walk every step instead of jumping over stretches.
    """

    def __init__(
        self,
        plan: ReplicaPlan,
        replicas: int,
        router: RouterKind = "round_robin",
        *,
        every_step: bool = False,
    ) -> None:
        self.env = simpy.Environment()
        self.plan = plan
        self.recorder = Recorder()
        self.router = ROUTERS[router]()
        self.replicas = [
            Replica(
                self.env,
                index,
                Scheduler(
                    plan.limits,
                    BlockPool(plan.kv_blocks, plan.block_tokens),
                    plan.window_tokens,
                    plan.sequence_blocks,
                ),
                plan.pace,
                self.recorder,
                every_step=every_step,
            )
            for index in range(replicas)
        ]
        for replica in self.replicas:
            replica.on_leave = self.router.left

    def submit(self, request: Request) -> None:
        """Hand a request to the replica that the router chooses."""
        if request.input_tokens + request.output_tokens > self.plan.max_model_len:
            request.outcome = "rejected"
            self.recorder.request(request)
            if request.on_done is not None:
                request.on_done.request_done(request)
            return
        self.router.choose(request, self.replicas).submit(request)

    def report_progress(self, listener: Callable[[int, int], None], total: int) -> None:
        """Tell a listener from time to time how many of the requests have left."""
        self.recorder.listen(lambda left: listener(left, total))

    def run_open(self, requests: Iterator[Request]) -> RunRecord:
        """Serve requests that arrive by the clock, until the last one has left."""
        OpenLoop(self.env, requests, self.submit)
        return self._finish()

    def run_closed(self, lengths: Sequence[tuple[int, int]], clients: int) -> RunRecord:
        """Serve clients that wait for their answers, until the supply of requests ends."""
        ClosedLoop(self.env, lengths, clients, self.submit, self.plan.answer_ticks)
        return self._finish()

    def _finish(self) -> RunRecord:
        with _no_garbage_collection():
            self.env.run()
        return RunRecord(self.recorder.requests.columns(), self.recorder.stretches.columns())


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spare the collector its walks over millions of rows: a run makes no reference cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
