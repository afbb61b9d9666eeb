"""One engine instance of one model: plan a stretch, let it pass, account for it, repeat."""

from collections.abc import Callable, Generator
from math import sqrt

import simpy

from sim.engine.clock import TICKS_PER_S
from sim.engine.records import Recorder
from sim.engine.requests import Request
from sim.engine.scheduler import Scheduler, Stretch
from sim.engine.ticks import Pace

AFTER_ARRIVALS = 2
"""Priority of step boundaries: whatever else happens at the same tick happens before."""


class Alarm(simpy.Event):
    """Fires at a tick, after all arrivals of that tick and in the order of the replicas.

    Ties are settled by the replica's index, never by the order in which events were scheduled,
    which differs between a jump over many steps and the same steps one by one.
    """

    def __init__(self, env: simpy.Environment, delay: int, replica_index: int) -> None:
        # like simpy.Timeout, it is triggered at birth; the base class would set it pending
        self.env = env
        self.callbacks = []
        self._value = None
        self._ok = True
        env.schedule(self, AFTER_ARRIVALS + replica_index, delay)  # type: ignore[arg-type]


def _hand_over(waited_for: simpy.Event, earlier: simpy.Event) -> None:
    """Let an earlier event wake up whoever waits for another one."""
    if waited_for.callbacks is not None and earlier.callbacks is not None:
        earlier.callbacks.extend(waited_for.callbacks)
        waited_for.callbacks.clear()


class Replica:
    """One engine instance of one model.

    Parameters
    ----------
    env : simpy.Environment
        Its clock counts ticks.
    index : int
        Position in the cluster.
    scheduler : Scheduler
    pace : Pace
        How long steps take.
    recorder : Recorder
    every_step : bool
        Walk every step instead of jumping over stretches: the oracle of the jumps.
    """

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        scheduler: Scheduler,
        pace: Pace,
        recorder: Recorder,
        *,
        every_step: bool = False,
    ) -> None:
        self.env = env
        self.index = index
        self.scheduler = scheduler
        self.pace = pace
        self.recorder = recorder
        self.on_leave: Callable[[Replica], None] | None = None
        """Hears of every request that leaves, done or rejected."""
        self.every_step = every_step
        self._start_tick = 0
        self._steps = 0
        self._line = (0, 0)
        self._bell = env.event()
        self._alarm: Alarm | None = None
        """Wakes the process at the end of the stretch, or out of its idle time."""
        self._idle = True
        env.process(self._run())

    @property
    def outstanding_requests(self) -> int:
        """Accepted and not done, as of now: completions only happen at the ends of stretches."""
        return self.scheduler.outstanding_requests

    def submit(self, request: Request) -> None:
        """Accept a request, or reject it when the whole KV cache could not hold it."""
        request.replica = self.index
        if not self.scheduler.can_ever_run(request):
            request.outcome = "rejected"
            self._leave(request)
            return
        self.scheduler.add(request)
        if self._idle:
            self._wake()
        elif self._steps > 1 and self.scheduler.admits_at_once():
            # boundaries of one tick come in the order of the replicas: ours may be over
            self._cut_short(boundary_is_over=request.sent_at_boundary_of > self.index)

    def _run(self) -> Generator[simpy.Event, None, None]:
        env, scheduler = self.env, self.scheduler
        while True:
            if not scheduler.outstanding_requests:
                self._idle, self._alarm, self._bell = True, None, env.event()
                yield self._bell
                self._idle = False
            now = int(env.now)
            stretch = scheduler.plan(now)
            self._start_tick = now
            self._steps = 1 if self.every_step else stretch.max_steps
            self._line = self.pace.line(stretch)
            self._alarm = Alarm(env, self._ticks(self._steps), self.index)
            yield self._alarm
            self._account(stretch, self._steps)

    def _ticks(self, steps: int) -> int:
        """Duration of the current stretch's first steps."""
        start, growth = self._line
        return start * steps + growth * (steps * (steps + 1) // 2)

    def _wake(self) -> None:
        """End the idle time once all arrivals of this tick are in."""
        if self._alarm is None:
            self._alarm = Alarm(self.env, 0, self.index)
            _hand_over(self._bell, self._alarm)

    def _cut_short(self, *, boundary_is_over: bool) -> None:
        """End the stretch with the step in progress, so that the next one admits a newcomer."""
        elapsed = int(self.env.now) - self._start_tick
        steps = self._steps_until(elapsed + boundary_is_over)
        if steps < self._steps and self._alarm is not None:
            self._steps = steps
            earlier = Alarm(self.env, self._ticks(steps) - elapsed, self.index)
            _hand_over(self._alarm, earlier)
            self._alarm = earlier

    def _steps_until(self, elapsed: int) -> int:
        """Fewest steps, at least one, of the current stretch that take ``elapsed`` ticks or more.

        The duration is the quadratic ``growth/2 k^2 + (start + growth/2) k``; its root in floating
        point is next to the answer, and the loops settle the rest in whole ticks.
        """
        start, growth = self._line
        half = growth / 2
        linear = start + half
        steps = int(2 * elapsed / (linear + sqrt(linear * linear + 4 * half * elapsed)))
        steps = max(1, steps)
        while self._ticks(steps) < elapsed:
            steps += 1
        while steps > 1 and self._ticks(steps - 1) >= elapsed:
            steps -= 1
        return steps

    def _account(self, stretch: Stretch, steps: int) -> None:
        """Settle the stretch that has just ended."""
        now = int(self.env.now)
        scheduler = self.scheduler
        done = scheduler.finish(stretch, steps, now)
        self.recorder.stretches.append(
            (
                self.index,
                self._start_tick / TICKS_PER_S,
                now / TICKS_PER_S,
                steps,
                stretch.decode_sequences,
                stretch.context_sum(steps),
                stretch.window_sum(steps),
                len(stretch.chunks),
                stretch.prefill_tokens,
                stretch.prefill_pairs,
                stretch.prefill_window_pairs,
                stretch.first_tokens,
                stretch.used_blocks,
                len(scheduler.waiting),
            )
        )
        for request in done:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        self.recorder.request(request)
        if self.on_leave is not None:
            self.on_leave(self)
        if request.on_done is not None:
            request.on_done.request_done(request)
