"""Laws that hold for every configuration of lengths and arrivals."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sim.workload.arrivals import (
    ArrivalState,
    GammaArrivals,
    MarkovModulatedArrivals,
    ModulatedArrivals,
    PoissonArrivals,
    WeibullArrivals,
)
from sim.workload.content import first_tokens, in_part, joined, tokens_of
from sim.workload.lengths import (
    ClippedLognormal,
    JointQuantileLengths,
    LognormalLengths,
    QuantileTable,
    UniformRangeLengths,
)
from sim.workload.traces import TraceOptions, read_trace

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(0, 300)
rates = st.floats(1e-3, 1e3)
cvs = st.floats(0.1, 5.0)
EVEN = QuantileTable(knots=((0.0, 0), (1.0, 10_000)))


@st.composite
def quantile_tables(draw: st.DrawFn) -> QuantileTable:
    steps = draw(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 500)), min_size=1))
    weights = [weight for weight, _ in steps]
    weights[-1] += 1
    fractions = [0.0, *(np.cumsum(weights) / sum(weights)).tolist()]
    tokens = np.cumsum([draw(st.integers(0, 20)), *(step for _, step in steps)]).tolist()
    return QuantileTable(knots=tuple(zip(fractions, tokens, strict=True)))


@st.composite
def rank_weights(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = draw(st.lists(st.integers(0, 9), min_size=rows * columns, max_size=rows * columns))
    table = np.array(cells).reshape(rows, columns)
    # One request in the diagonal of every band keeps rows and columns from being empty.
    table[np.arange(rows), np.arange(rows) % columns] += 1
    table[np.arange(columns) % rows, np.arange(columns)] += 1
    return tuple(tuple(row) for row in table.tolist())


@st.composite
def modulated_laws(draw: st.DrawFn) -> ModulatedArrivals:
    profile = draw(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12))
    profile[draw(st.integers(0, len(profile) - 1))] += 0.1
    return ModulatedArrivals(
        rate_requests_per_s=draw(rates),
        cv=draw(cvs),
        period_s=draw(st.floats(1e-2, 1e4)),
        relative_rates=tuple(profile),
    )


renewal_laws = st.one_of(
    st.builds(PoissonArrivals, rate_requests_per_s=rates),
    st.builds(GammaArrivals, rate_requests_per_s=rates, cv=cvs),
    modulated_laws(),
)


@given(quantile_tables(), st.lists(st.floats(0, 1), min_size=1))
def test_quantiles_rise_within_the_table(table: QuantileTable, ranks: list[float]) -> None:
    tokens = table.tokens(np.sort(ranks))
    assert np.all(np.diff(tokens) >= 0)
    assert tokens.min() >= table.knots[0][1] + 1
    assert tokens.max() <= table.knots[-1][1]


@given(quantile_tables(), st.lists(st.floats(1e-6, 1), min_size=1))
def test_quantile_and_cumulative_fraction_are_inverse(
    table: QuantileTable, ranks: list[float]
) -> None:
    # The quantile is the shortest length that at least the rank's fraction of requests is within.
    rank = np.array(ranks)
    tokens = table.tokens(rank)
    assert np.all(table.cumulative_fraction(tokens) >= rank - 1e-9)
    assert np.all(table.cumulative_fraction(tokens - 1) <= rank + 1e-9)


@given(quantile_tables())
def test_mean_is_the_sum_of_survival(table: QuantileTable) -> None:
    # For a length of at least 0, the mean is the sum over k >= 0 of P(length > k).
    steps = np.arange(table.knots[-1][1])
    survival = 1 - table.cumulative_fraction(steps)
    assert np.isclose(table.mean_tokens, survival.sum(), rtol=1e-9, atol=1e-6)


@settings(max_examples=30)
@given(rank_weights(), seeds)
def test_no_dependence_moves_the_margins(weights: tuple[tuple[int, ...], ...], seed: int) -> None:
    law = JointQuantileLengths(input_tokens=EVEN, output_tokens=EVEN, rank_weights=weights)
    drawn = law.sample(np.random.default_rng(seed), 5000)
    for column in drawn:
        # The distance of n draws from their law exceeds 3 / sqrt(n) less than once in 10^7 times.
        distance = stats.kstest(column / 10_000, "uniform").statistic
        assert distance < 3 / np.sqrt(5000) + 1e-4


@given(rank_weights(), seeds, counts)
def test_joint_samples_are_prefixes(
    weights: tuple[tuple[int, ...], ...], seed: int, n: int
) -> None:
    law = JointQuantileLengths(input_tokens=EVEN, output_tokens=EVEN, rank_weights=weights)
    short = law.sample(np.random.default_rng(seed), n)
    long = law.sample(np.random.default_rng(seed), n + 50)
    for few, many in zip(short, long, strict=True):
        np.testing.assert_array_equal(few, many[:n])


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.floats(0, 1), seeds)
def test_uniform_range_stays_in_its_range(
    input_tokens: int, output_tokens: int, low_fraction: float, seed: int
) -> None:
    law = UniformRangeLengths(
        input_tokens=input_tokens, output_tokens=output_tokens, low_fraction=low_fraction
    )
    drawn = law.sample(np.random.default_rng(seed), 200)
    for column, nominal in zip(drawn, (input_tokens, output_tokens), strict=True):
        assert column.min() >= max(1, int(nominal * low_fraction))
        assert column.max() <= nominal


@given(st.floats(1.0, 1e5), st.floats(0.01, 3.0), st.integers(1, 1000), st.integers(0, 10**6))
def test_lognormal_stays_in_its_range_and_so_does_its_mean(
    median: float, sigma: float, low: int, width: int
) -> None:
    side = ClippedLognormal(
        median_tokens=median, sigma=sigma, min_tokens=low, max_tokens=low + width
    )
    law = LognormalLengths(input_tokens=side, output_tokens=side)
    for column in law.sample(np.random.default_rng(0), 200):
        assert column.min() >= low
        assert column.max() <= low + width
    assert low * (1 - 1e-9) <= side.mean_tokens <= (low + width) * (1 + 1e-9)


@given(renewal_laws, seeds, counts)
def test_arrivals_never_go_back(law: PoissonArrivals, seed: int, n: int) -> None:
    arrival_s = law.sample_count(np.random.default_rng(seed), n)
    assert len(arrival_s) == n
    assert np.all(np.isfinite(arrival_s))
    assert np.all(np.diff(arrival_s, prepend=0.0) >= 0)


@given(renewal_laws, seeds, counts)
def test_a_span_holds_the_first_arrivals(law: PoissonArrivals, seed: int, n: int) -> None:
    by_count = law.sample_count(np.random.default_rng(seed), n + 1)
    end_s = float(by_count[-1])
    by_span = law.sample_duration(np.random.default_rng(seed), end_s)
    # The span is open at its end, so it holds exactly the arrivals before the last one.
    np.testing.assert_array_equal(by_span, by_count[by_count < end_s])


@given(modulated_laws(), st.integers(0, 50))
def test_whole_periods_expect_the_mean_rate(law: ModulatedArrivals, periods: int) -> None:
    expected = law.expected_arrivals(np.array([periods * law.period_s]))[0]
    mean = law.rate_requests_per_s * law.period_s
    assert np.isclose(expected, periods * mean, rtol=1e-9, atol=1e-9 * mean)


@given(modulated_laws(), rates, seeds)
def test_rate_only_scales_the_profile(law: ModulatedArrivals, rate: float, seed: int) -> None:
    times = np.random.default_rng(seed).random(20) * law.period_s * 3
    ratio = rate / law.rate_requests_per_s
    np.testing.assert_allclose(
        law.at_rate(rate).expected_arrivals(times), law.expected_arrivals(times) * ratio, rtol=1e-9
    )


requests = st.tuples(
    st.floats(0, 1e6, allow_subnormal=False), st.integers(1, 10**6), st.integers(1, 10**6)
)


@settings(max_examples=30)
@given(st.lists(requests, min_size=1), st.floats(1e-3, 1e3))
def test_a_written_trace_reads_back(rows: list[tuple[float, int, int]], scale: float) -> None:
    columns = ["arrival_s", "input_tokens", "output_tokens"]
    written = pd.DataFrame(rows, columns=columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        written.to_csv(path, index=False)
        trace = read_trace(path, "plain", TraceOptions(unsorted="sort", time_scale=scale))
    expected = written.sort_values("arrival_s", kind="stable", ignore_index=True)
    np.testing.assert_allclose(trace["arrival_s"], expected["arrival_s"] * scale, rtol=1e-12)
    assert trace["input_tokens"].tolist() == expected["input_tokens"].tolist()
    assert trace["output_tokens"].tolist() == expected["output_tokens"].tolist()


@given(rates, st.floats(0.05, 5.0), st.lists(st.floats(0.1, 100.0), min_size=2, max_size=4), seeds)
def test_markov_arrivals_of_a_span_are_the_first_of_any(
    rate: float, low: float, durations: list[float], seed: int
) -> None:
    states = tuple(
        ArrivalState(relative_rate=low * index, mean_duration_s=duration)
        for index, duration in enumerate(durations)
    )
    law = MarkovModulatedArrivals(rate_requests_per_s=rate, states=states)
    by_count = law.sample_count(np.random.default_rng(seed), 50)
    assert np.all(np.diff(by_count, prepend=0.0) >= 0)
    by_span = law.sample_duration(np.random.default_rng(seed), float(by_count[-1]))
    np.testing.assert_array_equal(by_span, by_count[by_count < by_count[-1]])
    assert np.isclose(law.time_fractions @ law.state_rates_requests_per_s, rate)


@given(st.floats(0.2, 5.0))
def test_a_weibull_law_has_the_variation_it_was_asked_for(cv: float) -> None:
    shape = WeibullArrivals(rate_requests_per_s=1.0, cv=cv).gap_shape
    assert np.isclose(np.sqrt(stats.weibull_min(shape).var()) / stats.weibull_min(shape).mean(), cv)


runs = st.lists(st.tuples(st.integers(-3, 5), st.integers(0, 50), st.integers(1, 60)), max_size=6)


@given(runs, st.integers(0, 200), st.integers(0, 3))
def test_contents_are_cut_and_moved_without_losing_tokens(
    content: list[tuple[int, int, int]], tokens: int, part: int
) -> None:
    whole = tuple(content)
    cut = first_tokens(whole, tokens)
    assert tokens_of(cut) == min(tokens, tokens_of(whole))
    assert in_part(cut, part) == first_tokens(in_part(whole, part), tokens)
    assert tokens_of(joined(cut, (9, 0, 4))) == tokens_of(cut) + 4
