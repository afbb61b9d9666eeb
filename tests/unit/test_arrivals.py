"""Laws of arrivals against the theory of renewal and Poisson processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import special, stats

from sim.errors import InputError
from sim.schema import load_yaml, validate
from sim.workload.arrivals import (
    ArrivalLaw,
    ArrivalState,
    BurstArrivals,
    DiurnalArrivals,
    GammaArrivals,
    MarkovModulatedArrivals,
    ModulatedArrivals,
    PoissonArrivals,
    RandomSurges,
    Surge,
    SurgingArrivals,
    UniformArrivals,
    WeeklyArrivals,
    WeibullArrivals,
)
from sim.workload.traffic import TrafficLaw

AZURE = Path(__file__).parents[2] / "workloads" / "lengths" / "azure_2023_conversation.yaml"
ARRIVALS: TypeAdapter[Any] = TypeAdapter(ArrivalLaw)
SPAN_S = 20_000.0


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def modulated(**changes: Any) -> ModulatedArrivals:
    fields: dict[str, Any] = {
        "rate_requests_per_s": 5.0,
        "cv": 1.0,
        "period_s": 100.0,
        "relative_rates": (1.0, 0.0, 4.0, 3.0),
    }
    return ModulatedArrivals(**(fields | changes))


def markov(**changes: Any) -> MarkovModulatedArrivals:
    states = (
        ArrivalState(relative_rate=1.0, mean_duration_s=3.0),
        ArrivalState(relative_rate=5.0, mean_duration_s=1.0),
    )
    fields: dict[str, Any] = {"rate_requests_per_s": 5.0, "states": states}
    return MarkovModulatedArrivals(**(fields | changes))


def weekly(**changes: Any) -> WeeklyArrivals:
    fields: dict[str, Any] = {
        "rate_requests_per_s": 5.0,
        "day_s": 20.0,
        "peak_over_mean": 1.8,
        "peak_hour": 15.0,
        "daily_rates": (5.0, 5.0, 5.0, 5.0, 5.0, 2.0, 1.0),
        "start_day": "friday",
        "start_hour": 9.0,
    }
    return WeeklyArrivals(**(fields | changes))


def laws() -> list[Any]:
    return [
        WeibullArrivals(rate_requests_per_s=5.0, cv=2.0),
        WeibullArrivals(rate_requests_per_s=5.0, shape=3.0),
        markov(),
        weekly(),
        DiurnalArrivals(
            rate_requests_per_s=5.0, day_s=50.0, hourly_rates=(1.0, 3.0) * 12, start_hour=7.5
        ),
        # A surge that changes nothing leaves the law what it is.
        SurgingArrivals(
            base=GammaArrivals(rate_requests_per_s=5.0, cv=1.5),
            surges=(Surge(start_s=5.0, duration_s=9.0, factor=1.0),),
        ),
        PoissonArrivals(rate_requests_per_s=5.0),
        GammaArrivals(rate_requests_per_s=5.0, cv=2.0),
        GammaArrivals(rate_requests_per_s=5.0, cv=0.3),
        modulated(),
        UniformArrivals(rate_requests_per_s=5.0),
    ]


def dispersion(arrival_s: np.ndarray, window_s: float) -> float:
    """Variance over mean of the counts in windows."""
    counts = np.histogram(arrival_s, np.arange(0.0, SPAN_S + window_s / 2, window_s))[0]
    return float(counts.var(ddof=1) / counts.mean())


@pytest.mark.parametrize("law", laws(), ids=repr)
class TestEveryRatedLaw:
    def test_duration_sample_rises_inside_the_span(self, law: Any) -> None:
        arrival_s = law.sample_duration(generator(), 300.0)
        assert arrival_s.dtype == np.float64
        assert arrival_s[0] >= 0
        assert arrival_s[-1] < 300.0
        assert np.all(np.diff(arrival_s) >= 0)

    def test_count_sample_has_that_many(self, law: Any) -> None:
        assert [len(law.sample_count(generator(), n)) for n in (0, 1, 1000)] == [0, 1, 1000]

    def test_a_longer_run_only_adds_requests(self, law: Any) -> None:
        short, long = (law.sample_duration(generator(3), span_s) for span_s in (50.0, 500.0))
        np.testing.assert_array_equal(short, long[: len(short)])
        np.testing.assert_array_equal(law.sample_count(generator(3), len(long)), long)

    def test_equal_generators_give_equal_bytes(self, law: Any) -> None:
        runs = [law.sample_duration(generator(5), 100.0).tobytes() for _ in range(2)]
        assert runs[0] == runs[1]

    def test_mean_rate(self, law: Any) -> None:
        # Counts over a long span have a variance of cv^2 <= 4 per arrival: five standard errors.
        count = len(law.sample_duration(generator(), SPAN_S))
        assert count == pytest.approx(5.0 * SPAN_S, abs=5 * np.sqrt(4 * 5.0 * SPAN_S))

    def test_another_rate_is_the_same_law_on_another_clock(self, law: Any) -> None:
        faster = law.at_rate(10.0)
        assert faster.rate_requests_per_s == 10.0
        assert len(faster.sample_duration(generator(), SPAN_S)) == pytest.approx(
            10.0 * SPAN_S, rel=0.03
        )

    def test_no_time_no_requests(self, law: Any) -> None:
        assert len(law.sample_duration(generator(), 0.0)) == 0

    @pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
    def test_impossible_spans_are_refused(self, law: Any, bad: float) -> None:
        with pytest.raises(InputError, match="must be finite and at least 0"):
            law.sample_duration(generator(), bad)
        with pytest.raises(InputError, match="at least 0"):
            law.sample_count(generator(), -1)

    def test_law_survives_its_own_data(self, law: Any) -> None:
        assert ARRIVALS.validate_python(law.model_dump(mode="json")) == law


def test_poisson_gaps_are_exponential_and_counts_have_equal_mean_and_variance() -> None:
    arrival_s = PoissonArrivals(rate_requests_per_s=5.0).sample_duration(generator(), SPAN_S)
    # The distance of n draws from their own law exceeds 2 / sqrt(n) once in 1,500 times.
    gaps = np.diff(arrival_s, prepend=0.0)
    assert stats.kstest(gaps * 5.0, "expon").statistic < 2 / np.sqrt(len(gaps))
    # The standard error of a dispersion over n windows is sqrt(2 / n).
    assert dispersion(arrival_s, 1.0) == pytest.approx(1.0, abs=5 * np.sqrt(2 / SPAN_S))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 4.0])
def test_gamma_gaps_have_the_given_variation(cv: float) -> None:
    gaps = np.diff(GammaArrivals(rate_requests_per_s=2.0, cv=cv).sample_count(generator(), 400_000))
    assert gaps.mean() == pytest.approx(0.5, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize("cv", [0.5, 2.0])
def test_gamma_counts_disperse_as_renewal_theory_says(cv: float) -> None:
    # Var N(t) / E N(t) tends to cv^2 (Cox, Renewal Theory, 1962, chapter 4).
    arrival_s = GammaArrivals(rate_requests_per_s=5.0, cv=cv).sample_duration(generator(), SPAN_S)
    assert dispersion(arrival_s, 20.0) == pytest.approx(cv**2, rel=0.2)


def test_bursty_arrivals_are_stationary_from_the_first_second() -> None:
    # A renewal process that started with an arrival at time 0 would expect up to
    # (cv^2 - 1) / 2 = 4 arrivals more; the stationary one expects exactly rate * t = 2.
    law = GammaArrivals(rate_requests_per_s=1.0, cv=3.0)
    rng = generator()
    counts = [len(law.sample_duration(rng, 2.0)) for _ in range(10_000)]
    assert np.mean(counts) == pytest.approx(2.0, abs=float(5 * np.std(counts) / 100))


def test_modulated_rates_follow_the_profile() -> None:
    # The quarters of a period have 1, 0, 4 and 3 of 8 parts of its 500 arrivals.
    arrival_s = modulated().sample_duration(generator(), SPAN_S)
    quarters = np.histogram(arrival_s % 100.0, bins=4, range=(0.0, 100.0))[0] / (SPAN_S / 100.0)
    np.testing.assert_allclose(quarters, [62.5, 0.0, 250.0, 187.5], rtol=0.05)
    assert quarters[1] == 0


def test_modulated_poisson_is_poisson_within_a_quarter() -> None:
    arrival_s = modulated().sample_duration(generator(), SPAN_S)
    third_quarters = arrival_s[(arrival_s % 100.0 >= 50.0) & (arrival_s % 100.0 < 75.0)]
    counts = np.histogram(third_quarters, np.arange(0.0, SPAN_S + 0.5))[0]
    counts = counts[np.arange(len(counts)) % 100 // 25 == 2]
    assert counts.var(ddof=1) / counts.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / len(counts)))


def test_a_flat_profile_changes_nothing() -> None:
    flat = modulated(cv=1.5, relative_rates=(2.0, 2.0, 2.0))
    plain = GammaArrivals(rate_requests_per_s=5.0, cv=1.5)
    np.testing.assert_allclose(
        flat.sample_count(generator(), 5000), plain.sample_count(generator(), 5000), rtol=1e-12
    )


def test_stretching_keeps_the_shape_of_the_profile() -> None:
    stretched = modulated().stretched_to(1000.0)
    np.testing.assert_allclose(
        stretched.expected_arrivals(np.array([250.0, 500.0, 750.0, 1000.0])),
        [625.0, 625.0, 3125.0, 5000.0],
    )


def test_uniform_arrivals_by_hand() -> None:
    law = UniformArrivals(rate_requests_per_s=0.4)
    assert law.sample_duration(generator(), 6.0).tolist() == [0.0, 2.5, 5.0]
    # The span is open at its end: the arrival at 5.0 is not in [0, 5).
    assert law.sample_duration(generator(), 5.0).tolist() == [0.0, 2.5]


def test_burst_is_all_at_once_and_knows_no_duration() -> None:
    assert BurstArrivals().sample_count(generator(), 4).tolist() == [0.0] * 4
    with pytest.raises(InputError, match="give the number of requests"):
        BurstArrivals().sample_duration(generator(), 10.0)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"kind": "poisson", "rate_requests_per_s": 0}, "greater than 0"),
        ({"kind": "gamma", "rate_requests_per_s": 1, "cv": -1}, "greater than 0"),
        ({"kind": "gamma", "rate_requests_per_s": 1}, "cv"),
        ({"kind": "burst", "rate_requests_per_s": 1}, "Extra inputs"),
        (modulated().model_dump() | {"relative_rates": (0.0, 0.0)}, "all zero"),
        (modulated().model_dump() | {"relative_rates": ()}, "at least 1 item"),
        (modulated().model_dump() | {"period_s": 0}, "greater than 0"),
    ],
)
def test_bad_laws_are_refused(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ARRIVALS.validate_python(data)


def test_at_rate_checks_the_rate() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        PoissonArrivals(rate_requests_per_s=1.0).at_rate(0.0)


@pytest.mark.parametrize("cv", [0.4, 1.0, 2.5])
def test_weibull_gaps_have_the_given_variation(cv: float) -> None:
    law = WeibullArrivals(rate_requests_per_s=2.0, cv=cv)
    gaps = np.diff(law.sample_count(generator(), 400_000))
    assert gaps.mean() == pytest.approx(0.5, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    # The distance of n draws from their own law exceeds 2 / sqrt(n) once in 1,500 times.
    own = stats.weibull_min(law.gap_shape, scale=0.5 / special.gamma(1 + 1 / law.gap_shape))
    assert stats.kstest(gaps, own.cdf).statistic < 2 / np.sqrt(len(gaps))


def test_weibull_shape_of_a_known_variation() -> None:
    # Shape 1/2: the mean is Gamma(3) = 2 and the second moment Gamma(5) = 24, so cv^2 = 5.
    assert WeibullArrivals(rate_requests_per_s=1.0, cv=np.sqrt(5.0)).gap_shape == pytest.approx(0.5)


def test_bursty_weibull_arrivals_are_stationary_from_the_first_second() -> None:
    law = WeibullArrivals(rate_requests_per_s=1.0, cv=3.0)
    rng = generator()
    counts = [len(law.sample_duration(rng, 2.0)) for _ in range(10_000)]
    assert np.mean(counts) == pytest.approx(2.0, abs=float(5 * np.std(counts) / 100))


def test_markov_counts_disperse_as_the_two_state_formula_says() -> None:
    # Two states of rates a > b and rates of leaving r_a, r_b (Fischer and Meier-Hellstern 1993):
    # Var/E = 1 + 2 p q (a-b)^2 / (m s) * (1 - (1 - exp(-s t)) / (s t)), s = r_a + r_b,
    # p, q the shares of time, m the mean rate.
    law = markov()
    busy, quiet = law.state_rates_requests_per_s[1], law.state_rates_requests_per_s[0]
    p, s, m, t = 0.25, 1.0 + 1.0 / 3.0, 5.0, 20.0
    assert p * busy + (1 - p) * quiet == pytest.approx(m)
    growth = 1 - (1 - np.exp(-s * t)) / (s * t)
    expected = 1 + 2 * p * (1 - p) * (busy - quiet) ** 2 / (m * s) * growth
    runs = [dispersion(law.sample_duration(generator(seed), SPAN_S), t) for seed in range(5)]
    assert np.mean(runs) == pytest.approx(expected, rel=0.1)


def test_markov_states_last_as_long_as_they_should() -> None:
    # One state sends nothing: arrivals take place in a fifth of the time, on average.
    silent = (
        ArrivalState(relative_rate=0.0, mean_duration_s=40.0),
        ArrivalState(relative_rate=1.0, mean_duration_s=10.0),
    )
    law = markov(states=silent, rate_requests_per_s=20.0)
    assert law.state_rates_requests_per_s.tolist() == pytest.approx([0.0, 100.0])
    seconds = np.histogram(law.sample_duration(generator(), SPAN_S), np.arange(SPAN_S + 0.5))[0]
    # A second of 100 arrivals is empty only in the silent state; the edges of stays blur it.
    assert np.mean(seconds > 0) == pytest.approx(0.2, abs=0.04)


def test_a_day_starts_at_the_given_hour_and_keeps_its_mean() -> None:
    hours = tuple(float(hour) for hour in range(24))
    law = DiurnalArrivals(rate_requests_per_s=1.0, hourly_rates=hours, start_hour=20.0)
    # From 20:00: hour 20 has 20 parts of 276, then 21, 22, 23, 0, 1.
    parts = np.array([20.0, 21.0, 22.0, 23.0, 0.0, 1.0])
    ends = 3600.0 * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    np.testing.assert_allclose(law.expected_arrivals(ends), np.cumsum(parts) / 276 * 86_400.0)
    assert law.expected_arrivals(np.array([86_400.0]))[0] == pytest.approx(86_400.0)


def test_expected_arrivals_and_their_times_are_inverse() -> None:
    times = np.linspace(10.0, 2_000.0, 50)
    law = weekly()
    np.testing.assert_allclose(law.time_s(law.expected_arrivals(times)), times)


def test_a_week_has_its_days() -> None:
    law = weekly(start_day="saturday", start_hour=0.0, rate_requests_per_s=4.0, day_s=10.0)
    # 2 and 1 of 28 parts of the 280 arrivals of a week, then five days of 5 parts.
    ends = np.array([10.0, 20.0, 30.0, 70.0])
    np.testing.assert_allclose(law.expected_arrivals(ends), [20.0, 30.0, 80.0, 280.0])


def test_surges_multiply_the_rate_while_they_last() -> None:
    law = SurgingArrivals(
        base=PoissonArrivals(rate_requests_per_s=20.0),
        surges=(
            Surge(start_s=1000.0, duration_s=1000.0, factor=3.0),
            Surge(start_s=1500.0, duration_s=1000.0, factor=2.0),
        ),
    )
    counts = np.histogram(law.sample_duration(generator(), 3000.0), np.arange(0, 3001, 500.0))[0]
    # Overlapping surges add: 1 + 2 + 1 = 4 times the rate. Poisson: five standard deviations.
    expected = 500.0 * 20.0 * np.array([1, 1, 3, 4, 2, 1])
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_random_surges_add_their_mean() -> None:
    law = SurgingArrivals(
        base=PoissonArrivals(rate_requests_per_s=5.0),
        random_surges=RandomSurges(mean_interval_s=50.0, mean_duration_s=5.0, factor=6.0),
    )
    # A surge in a tenth of the time at five more times the rate: half as many again.
    counts = [len(law.sample_duration(generator(seed), 10_000.0)) for seed in range(20)]
    assert np.mean(counts) == pytest.approx(75_000.0, rel=0.05)
    assert np.var(counts) > 3 * np.mean(counts)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"kind": "weibull", "rate_requests_per_s": 1}, "cv or shape"),
        ({"kind": "weibull", "rate_requests_per_s": 1, "cv": 1, "shape": 1}, "cv or shape"),
        ({"kind": "weibull", "rate_requests_per_s": 1, "cv": 1e-6}, "outside"),
        ({"kind": "markov_modulated", "rate_requests_per_s": 1, "states": []}, "at least 2"),
        ({"kind": "diurnal", "rate_requests_per_s": 1}, "hourly_rates, or both"),
        ({"kind": "diurnal", "rate_requests_per_s": 1, "peak_hour": 3}, "hourly_rates, or both"),
        ({"kind": "diurnal", "rate_requests_per_s": 1, "hourly_rates": [1, 2]}, "at least 24"),
        ({"kind": "spikes", "base": {"kind": "poisson", "rate_requests_per_s": 1}}, "give surges"),
        ({"kind": "spikes", "base": {"kind": "burst"}}, "burst"),
    ],
)
def test_bad_new_laws_are_refused(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ARRIVALS.validate_python(data)


@pytest.fixture(scope="module")
def runs() -> list[np.ndarray]:
    law = validate(TrafficLaw, load_yaml(AZURE)).arrivals
    assert isinstance(law, ModulatedArrivals)
    rng = generator()
    return [law.sample_duration(rng, law.period_s) for _ in range(20)]


class TestAzureConversation:
    """The embedded law against figures published with the trace."""

    # Published with the trace: 5.53 requests/s, gap cv 1.09, dispersion of 1 s counts 1.4, busiest
    # over mean minute 1.52. One run of an hour scatters, so twenty are averaged.
    def test_rate(self, runs: list[np.ndarray]) -> None:
        assert np.mean([len(run) for run in runs]) / 3501.7 == pytest.approx(5.53, rel=0.01)

    def test_gap_variation(self, runs: list[np.ndarray]) -> None:
        cvs = [np.diff(run).std() / np.diff(run).mean() for run in runs]
        assert np.mean(cvs) == pytest.approx(1.09, abs=0.02)

    def test_dispersion_and_busiest_minute(self, runs: list[np.ndarray]) -> None:
        seconds = [np.histogram(run, np.arange(0.0, 3501.0))[0] for run in runs]
        assert np.mean([c.var(ddof=1) / c.mean() for c in seconds]) == pytest.approx(1.4, abs=0.05)
        minutes = [np.histogram(run, np.arange(0.0, 3481.0, 60.0))[0] for run in runs]
        assert np.mean([c.max() / c.mean() for c in minutes]) == pytest.approx(1.52, abs=0.06)
