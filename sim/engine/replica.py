"""One engine instance of one model: plan a stretch, let it pass, account for it, repeat."""

from collections.abc import Callable
from math import sqrt
from typing import Literal, NamedTuple, Protocol

import simpy

from sim.engine.clock import Alarm, Clock
from sim.engine.lockstep import ReplicaScheduler
from sim.engine.records import Recorder
from sim.engine.requests import Outcome, Request, Turn
from sim.engine.stretch import Stretch
from sim.engine.ticks import Line, Pace
from sim.workload.content import Content

AFTER_ARRIVALS = 2
"""Priority of step boundaries: whatever else happens at the same tick happens before.

Those of one tick come in the order of the replicas and never in that in which they were scheduled,
which differs between a jump over many steps and the same steps one by one.
"""

State = Literal["off", "booting", "up", "draining", "down"]
"""Switched off; on its way up; at work; taking in nothing new; or out of order."""


class ReplicaListener(Protocol):
    """Who stands behind a replica: its pool."""

    def left(self, replica: "Replica", request: Request) -> None:
        """Take note that a request has left, whatever its outcome."""
        ...

    def lost(self, replica: "Replica", request: Request) -> None:
        """Take note that a failure broke a request off; ``computed_tokens`` were in the cache.

        Also of one that was done, if nobody has fetched yet what it computed.
        """
        ...

    def changed(self, replica: "Replica", state: State) -> None:
        """Take note that a replica is about to change its state."""
        ...


class Surroundings(NamedTuple):
    """What all replicas of a cluster share."""

    env: Clock
    """Its clock counts ticks."""
    turn: Turn
    recorder: Recorder
    every_step: bool = False
    """Walk every step instead of jumping over stretches: the oracle of the jumps."""


class Replica:
    """One engine instance of one model.

    Parameters
    ----------
    index : int
        Position in the cluster, counted through all pools.
    new_scheduler : callable
        Makes an empty scheduler; again after a crash.
    pace : Pace
        How long steps take.
    surroundings : Surroundings
    """

    def __init__(
        self,
        index: int,
        new_scheduler: Callable[[], ReplicaScheduler],
        pace: Pace,
        surroundings: Surroundings,
    ) -> None:
        self.index = index
        self.pace = pace
        self.env, self.turn, self.recorder, self.every_step = surroundings
        self.listener: ReplicaListener | None = None
        self.state: State = "up"
        self.scheduler: ReplicaScheduler = new_scheduler()
        self._new_scheduler = new_scheduler
        self._stretch: Stretch | None = None
        self._start_tick = 0
        self._steps = 0
        """Steps of the stretch in progress; 0 between two stretches."""
        self._line: Line = (0, 0, None)
        self._steps_taken = 0
        self._alarm: Alarm | None = None
        """Rings at the end of the stretch, or to wake it up; none while idle."""
        self.max_queue_requests: int | None = None
        """Requests that may wait; further ones are turned away."""
        self._next_pace: Pace | None = None
        self._aborts: list[tuple[Request, Outcome]] = []

    # -- what others may see ----------------------------------------------------------------

    @property
    def accepts(self) -> bool:
        """Whether it takes in new requests."""
        return self.state == "up"

    @property
    def outstanding_requests(self) -> int:
        """Accepted and not done, as of now: completions only happen at the ends of stretches."""
        return self.scheduler.outstanding_requests

    @property
    def outstanding_tokens(self) -> int:
        """Prompts and longest answers of those."""
        return self.scheduler.outstanding_tokens

    @property
    def waiting_requests(self) -> int:
        """Accepted and not admitted."""
        return self.scheduler.waiting_requests

    @property
    def block_tokens(self) -> int:
        """Tokens that a KV block holds."""
        return self.scheduler.pool.block_tokens

    def kv_used_fraction(self) -> float:
        """Share of the KV blocks in use, as of now."""
        self._catch_up()
        pool = self.scheduler.pool
        return pool.used_blocks / pool.total_blocks

    def cached_tokens(self, content: Content) -> int:
        """Tokens of a prompt that the prefix cache holds, as of now."""
        self._catch_up()
        return self.scheduler.cached_tokens(content)

    @property
    def last_step_ticks(self) -> int:
        """Duration of the step that has just ended, if it had prompts."""
        return self._ticks(1)

    # -- requests -----------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Accept a request, or reject it when the whole KV cache could not hold it.

        One that finds as many waiting as may wait is turned away.
        """
        request.replica = self.index
        scheduler, most = self.scheduler, self.max_queue_requests
        if not scheduler.can_ever_run(request):
            request.outcome = "rejected"
            self._leave(request)
            return
        if most is not None and scheduler.waiting_requests >= most:
            request.outcome = "shed"
            self._leave(request)
            return
        scheduler.add(request, self.env.tick)
        if self._alarm is None:
            self._wake()
        elif self._steps > 1 and scheduler.admits_at_once(request):
            self._cut_short()

    def abort(self, request: Request, outcome: Outcome) -> None:
        """Drop a request that nobody waits for any more.

        One that waits leaves at once; one that runs, at the end of the step in progress.
        """
        if self.scheduler.drop_waiting(request):
            request.outcome = outcome
            self._leave(request)
        else:
            self._aborts.append((request, outcome))
        self.look_again()

    def fetched(self, request: Request) -> None:
        """Take note that keys and values of a request have come."""
        request.queued_tick = self.env.tick
        self.scheduler.fetched(request)
        self.look_again()

    def free_kept(self, request: Request) -> None:
        """Free the blocks of a request that has been fetched by another replica."""
        self._catch_up()
        self.scheduler.free_kept(request)
        self.look_again()

    def look_again(self) -> None:
        """Decide anew at the end of the step in progress, or at once when idle."""
        if self._alarm is None:
            self._wake()
        elif self._steps > 1:
            self._cut_short()

    # -- state --------------------------------------------------------------------------------

    def set_state(self, state: State) -> None:
        """Change the state; what it has accepted it serves to the end, unless it failed."""
        if state != self.state:
            if self.listener is not None:
                self.listener.changed(self, state)
            self.state = state

    def drain(self) -> None:
        """Take in nothing new, and switch off when all is served."""
        self.set_state("draining")
        self._switch_off_when_drained()

    def fail(self) -> None:
        """Break down at once: all that was accepted is lost, the step in progress too."""
        steps = self._steps_done()
        stretch, scheduler = self._stretch, self.scheduler
        lost = [] if stretch is None else [request for request, _ in stretch.chunks]
        if stretch is not None and steps:
            self._settle(stretch, steps, self._start_tick + self._ticks(steps))
        self._alarm, self._stretch, self._steps = None, None, 0
        lost = list(dict.fromkeys([*lost, *scheduler.clear()]))
        self.scheduler = self._new_scheduler()
        self.scheduler.transport = scheduler.transport
        self.set_state("down")
        self._tell_of_losses(lost, scheduler)

    def _tell_of_losses(self, lost: list[Request], scheduler: ReplicaScheduler) -> None:
        """Let those hear who stand behind the requests of a broken scheduler.

        They may send some again at once, so what was to happen to each is settled before.
        """
        aborts, self._aborts = dict(self._aborts), []
        for request in [*lost, *scheduler.kept]:
            kept = request in scheduler.kept
            if request.outcome != "unfinished" and not kept:
                continue
            if request in aborts:
                request.outcome = aborts[request]
                self._leave(request)
            elif self.listener is not None:
                self.listener.lost(self, request)

    def keep_pace(self, pace: Pace) -> None:
        """Go on at another pace from the end of the step in progress."""
        self._next_pace = pace
        self.look_again()

    # -- steps --------------------------------------------------------------------------------

    def _begin(self, now: int, known_tick: int | None) -> int:
        """Begin a stretch and return how long it lasts; 0 when nothing can run.

        ``known_tick`` is when the last step began, if one has just ended.
        """
        if self._next_pace is not None:
            self.pace, self._next_pace = self._next_pace, None
        stretch = self.scheduler.plan(now, known_tick)
        if stretch is None and known_tick is not None:
            stretch = self.scheduler.plan(now)  # nothing runs: all that is there counts at once
        self._stretch = stretch
        if stretch is None:
            self._alarm = None
            return 0
        self._line = start, growth, valid_steps = self.pace.line(stretch, self._steps_taken)
        self._start_tick = now
        self._steps = steps = stretch.max_steps
        if steps > 1:
            if self.every_step:
                self._steps = steps = 1
            elif valid_steps is not None and valid_steps < steps:
                self._steps = steps = valid_steps
        return start * steps + growth * (steps * (steps + 1) // 2)

    def _boundary(self, alarm: simpy.Event) -> None:
        """Settle the stretch that has just ended and begin the next; go on while alone."""
        mine = self._alarm
        if mine is None or alarm is not mine:
            return  # it was moved to another tick
        clock, self.turn.replica = self.env, self.index
        now = clock.tick
        ticks = self._turn_over(now)
        while ticks and clock.skip_to(now + ticks):
            now += ticks
            ticks = self._turn_over(now)
        if ticks:
            mine.set(ticks)
        self.turn.replica = -1

    def _turn_over(self, now: int) -> int:
        """Settle the stretch that ends now, begin the next and return how long that lasts.

        0 when there is nothing to do.
        """
        stretch, known_tick = self._stretch, None
        if stretch is not None:
            steps, self._stretch, self._steps = self._steps, None, 0
            known_tick = self._start_tick
            if steps > 1:
                known_tick += self._ticks(steps - 1)
            done = self._settle(stretch, steps, now)
            if self.listener is not None:
                left = self.listener.left
                for request in done:
                    left(self, request)
        if self._aborts:
            self._drop_aborted()
        if self.scheduler.outstanding_requests:
            return self._begin(now, known_tick)
        self._alarm = None
        self._switch_off_when_drained()
        return 0

    def _settle(self, stretch: Stretch, steps: int, end: int) -> list[Request]:
        """Account for steps, the last of which has ended at a tick, at this one or before."""
        start, scheduler = self._start_tick, self.scheduler
        done = scheduler.finish(stretch, steps, end)
        self._steps_taken += steps
        context: float = stretch.context_tokens
        window: float = stretch.window_tokens
        if steps > 1 or stretch.grain > 1:
            context = stretch.context_sum(steps) / stretch.grain
            window = stretch.window_sum(steps) / stretch.grain
        else:
            context += stretch.context_growing
            window += stretch.window_growing
        first_tokens = stretch.first_tokens
        self.recorder.stretches.append(
            (
                self.index,
                start,
                end,
                steps,
                stretch.decode_sequences,
                context,
                window,
                len(stretch.chunks),
                stretch.prefill_tokens,
                stretch.prefill_context_tokens,
                stretch.prefill_pairs,
                stretch.prefill_window_pairs,
                stretch.encode_tokens,
                stretch.encode_pairs,
                first_tokens,
                stretch.decoded_tokens + first_tokens,
                stretch.used_blocks,
                len(scheduler.line),
            )
        )
        return done

    def _drop_aborted(self) -> None:
        aborts, self._aborts = self._aborts, []
        for request, outcome in aborts:
            if request.outcome == "unfinished" and request.replica == self.index:
                self.scheduler.drop(request)
                request.outcome = outcome
                self._leave(request)

    def _leave(self, request: Request) -> None:
        if self.listener is not None:
            self.listener.left(self, request)

    def _switch_off_when_drained(self) -> None:
        scheduler = self.scheduler
        if self.state == "draining" and not scheduler.outstanding_requests and not scheduler.kept:
            self.set_state("off")

    # -- time ---------------------------------------------------------------------------------

    def _ticks(self, steps: int) -> int:
        """Duration of the current stretch's first steps."""
        start, growth, _ = self._line
        return start * steps + growth * (steps * (steps + 1) // 2)

    def _wake(self) -> None:
        """End the idle time once all arrivals of this tick are in."""
        self._set_alarm(0)

    def _set_alarm(self, delay: int) -> None:
        self._alarm = Alarm(self.env, AFTER_ARRIVALS + self.index, self._boundary)
        self._alarm.set(delay)

    def _cut_short(self) -> None:
        """End the stretch with the step in progress, so that the next one sees what is new."""
        elapsed = self.env.tick - self._start_tick
        steps = self._steps_until(elapsed + self._boundary_is_over())
        if steps < self._steps:
            self._steps = steps
            self._set_alarm(self._ticks(steps) - elapsed)

    def _boundary_is_over(self) -> bool:
        """Whether a step that ends at this tick has ended: boundaries come in order."""
        return self.turn.replica > self.index

    def _steps_done(self) -> int:
        """Count the steps of the stretch in progress that are over by now."""
        if self._stretch is None or not self._steps:
            return 0
        elapsed = self.env.tick - self._start_tick + self._boundary_is_over()
        return self._steps_until(elapsed) - 1 if elapsed > 0 else 0

    def _catch_up(self) -> None:
        """Take the KV blocks of the steps that have begun by now."""
        if self._stretch is not None and self._steps > 1:
            self.scheduler.take_blocks(self._stretch, min(self._steps_done() + 1, self._steps))

    def _steps_until(self, elapsed: int) -> int:
        """Fewest steps, at least one, of the current stretch that take ``elapsed`` ticks or more.

        The duration is the quadratic ``growth/2 k^2 + (start + growth/2) k``; its root in floating
        point is next to the answer, and the loops settle the rest in whole ticks.
        """
        start, growth, _ = self._line
        half = growth / 2
        linear = start + half
        steps = int(2 * elapsed / (linear + sqrt(linear * linear + 4 * half * elapsed)))
        steps = max(1, steps)
        while self._ticks(steps) < elapsed:
            steps += 1
        while steps > 1 and self._ticks(steps - 1) >= elapsed:
            steps -= 1
        return steps
