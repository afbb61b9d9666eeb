"""Long-run availability of parts, replicas and fleets against renewal theory and Markov chains.

Each comparison uses a 99 % confidence interval over independent replications, and shows that it
would see an error of 10 % of the unavailability: a formula off by that much lies outside of it.

Formulas: R. Barlow, F. Proschan, Mathematical Theory of Reliability (Wiley, 1965), chapters 3 and
5; alternating renewal processes also in S. Ross, Stochastic Processes (Wiley, 1996), section 3.4.
"""

from math import exp, sqrt

import numpy as np
import numpy.typing as npt
import pytest
import simpy
from scipy import stats

from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.elasticity import BootTicks, ReplicaSet, State
from sim.engine.faults import Breakdowns, Placement
from sim.reliability import PartKind, PartLaw

Floats = npt.NDArray[np.float64]

HORIZON_S = 50_000.0
WARM_UP_S = 2_000.0
REPLICATIONS = 100


class Machine:
    """A replica that is only up or not, and counts the time."""

    def __init__(self, env: simpy.Environment, index: int) -> None:
        self.env = env
        self.index = index
        self.state: State = "up"
        self.outstanding_requests = 0
        self.waiting_requests = 0
        self.log: list[tuple[int, bool]] = [(0, True)]

    def kv_used_fraction(self) -> float:
        return 0.0

    def set_state(self, state: State) -> None:
        self.state = state
        self.log.append((int(self.env.now), state == "up"))

    def drain(self) -> None:
        self.set_state("off")

    def fail(self) -> None:
        self.set_state("down")


def run(
    law: PartLaw,
    seed: int,
    *,
    machines: int,
    wanted: int,
    boot_s: float = 0.0,
    spares: int = 0,
    kind: PartKind = "engine",
    chips: int = 1,
) -> Floats:
    """Share of the time, after the warm-up, in which 0, 1, 2, ... machines are up."""
    env = simpy.Environment()
    units = [Machine(env, index) for index in range(machines)]
    boot = to_ticks(boot_s)
    replica_set = ReplicaSet(env, units, wanted, BootTicks(boot, boot, boot), spares=spares)
    parts = Placement(machines, chips, chips).failing({kind: law})
    Breakdowns(env, replica_set, parts, streams=(seed, "serve"), active=lambda: True)
    env.run(until=to_ticks(HORIZON_S))
    changes = sorted((tick, index, up) for index, unit in enumerate(units) for tick, up in unit.log)
    up = [False] * machines
    share, last = np.zeros(machines + 1), 0
    first = to_ticks(WARM_UP_S)
    for tick, index, now_up in [*changes, (to_ticks(HORIZON_S), 0, False)]:
        share[sum(up)] += max(0, tick - max(last, first))
        last, up[index] = tick, now_up
    return share / (HORIZON_S - WARM_UP_S) / TICKS_PER_S


def interval(samples: Floats) -> tuple[float, float]:
    """Interval that holds the mean of independent samples with 99 % confidence."""
    half = stats.t.ppf(0.995, samples.size - 1) * samples.std(ddof=1) / sqrt(samples.size)
    return float(samples.mean() - half), float(samples.mean() + half)


def assert_unavailability(samples: Floats, expected: float) -> None:
    """Demand that the interval contains the expected mean, and would not if it were 10 % off."""
    low, high = interval(samples)
    assert low < expected < high
    assert high < 1.1 * expected
    assert low > 0.9 * expected


LAWS = {
    "exponential": PartLaw(100.0, 20.0),
    "late": PartLaw(100.0, 20.0, shape=2.0, repair="fixed"),
    "early": PartLaw(100.0, 20.0, shape=0.7, repair="lognormal", repair_sigma=0.7),
}


@pytest.mark.parametrize("name", LAWS)
def test_availability_is_mtbf_over_mtbf_and_repair_whatever_the_laws(name: str) -> None:
    """Alternating renewal: the share of the time up depends on the two means alone."""
    law = LAWS[name]
    down = np.array([run(law, seed, machines=1, wanted=1)[0] for seed in range(REPLICATIONS)])
    assert law.availability == pytest.approx(100 / 120)
    assert_unavailability(down, 20 / 120)


def test_a_boot_after_every_repair_costs_what_is_left_of_the_life() -> None:
    """The part lives on while its replica boots for b: up for max(life - b, 0) of each cycle.

    Of an exponential life of mean m that is ``m exp(-b / m)`` on the average, so the availability
    is ``m exp(-b / m) / (m + r)``.
    """
    law, boot_s = PartLaw(100.0, 20.0), 30.0
    down = np.array(
        [run(law, seed, machines=1, wanted=1, boot_s=boot_s)[0] for seed in range(REPLICATIONS)]
    )
    assert_unavailability(down, 1 - 100 * exp(-0.3) / 120)


def test_a_replica_needs_all_its_chips() -> None:
    """Series system: each of four chips works with 100/120 of the time, independently."""
    law = PartLaw(100.0, 5.0)
    down = np.array(
        [
            run(law, seed, machines=1, wanted=1, kind="chip", chips=4)[0]
            for seed in range(REPLICATIONS)
        ]
    )
    assert_unavailability(down, 1 - (100 / 105) ** 4)


def birth_death(up_rates: list[float], down_rates: list[float]) -> Floats:
    """Stationary law of a chain whose state i goes up with up_rates[i] and down with down_rates[i].

    Solved from the balance equations ``pi Q = 0``, ``sum pi = 1``.
    """
    size = len(up_rates)
    generator = np.zeros((size, size))
    for state in range(size):
        if state + 1 < size:
            generator[state, state + 1] = up_rates[state]
        if state:
            generator[state, state - 1] = down_rates[state]
        generator[state, state] = -generator[state].sum()
    equations = np.vstack([generator.T, np.ones(size)])
    solution = np.linalg.lstsq(equations, np.r_[np.zeros(size), 1.0], rcond=None)[0]
    return np.asarray(solution, dtype=np.float64)


def test_hot_spares_against_a_markov_chain() -> None:
    """3 of 5 wanted, all 5 age, each has a repair crew: the number of able machines is a chain.

    From i able machines to i + 1 with rate (5 - i) / repair, to i - 1 with rate i / mtbf. Of i able
    ones min(i, 3) serve.
    """
    law = PartLaw(100.0, 50.0)
    able = birth_death([(5 - i) / 50 for i in range(6)], [i / 100 for i in range(6)])
    assert able == pytest.approx(stats.binom(5, 100 / 150).pmf(range(6)))  # the other way to it
    serving = np.array([*able[:3], able[3:].sum()])
    shares = np.array(
        [run(law, seed, machines=5, wanted=3, spares=2) for seed in range(REPLICATIONS)]
    )
    assert shares[:, 4:].max() == 0  # never more than wanted
    short = 1 - shares[:, 3]
    assert_unavailability(short, 1 - serving[3])
    assert_unavailability(3 - shares @ np.arange(6.0), 3 - float(serving @ np.arange(4.0)))


def test_without_spares_the_chain_is_another() -> None:
    """The same five machines without spares: the test above would see the difference."""
    law = PartLaw(100.0, 50.0)
    shares = np.array([run(law, seed, machines=3, wanted=3) for seed in range(REPLICATIONS)])
    all_up = (100 / 150) ** 3
    assert_unavailability(1 - shares[:, 3], 1 - all_up)
    with_spares = 1 - stats.binom(5, 100 / 150).cdf(2)
    assert with_spares > 2 * all_up
