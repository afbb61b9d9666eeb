"""Fitting a law of traffic: planted laws come back, the file says where it comes from."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sim.schema import load_yaml, validate
from sim.workload import fitting
from sim.workload.arrivals import ModulatedArrivals
from sim.workload.lengths import SampledTokens
from sim.workload.traces import read_trace
from sim.workload.traffic import TrafficLaw

PROJECT = Path(__file__).parents[2]
AZURE = PROJECT / "workloads" / "lengths" / "azure_2023_conversation.yaml"


def planted_tokens(n: int) -> SampledTokens:
    """Two templates: short prompts with answers near 400, long ones with answers of 10 to 60."""
    rng = np.random.default_rng(5)
    is_short = rng.random(n) < 0.4
    inputs = np.where(is_short, rng.integers(150, 250, n), rng.integers(1000, 4000, n))
    outputs = np.where(is_short, 400, rng.integers(10, 61, n))
    return SampledTokens(inputs, outputs)


def test_margin_keeps_quantiles_mean_and_cap() -> None:
    rng = np.random.default_rng(0)
    tokens = np.minimum(np.rint(rng.lognormal(6.0, 1.0, 20_000)), 2048).astype(np.int64)
    table = fitting.fit_margin(tokens, 40)
    assert len(table.knots) == 40
    assert table.mean_tokens == pytest.approx(tokens.mean(), rel=0.002)
    drawn = table.tokens(np.linspace(0, 1, 20_001))
    assert stats.ks_2samp(tokens, drawn).statistic < 0.01
    assert np.mean(drawn == 2048) == pytest.approx(np.mean(tokens == 2048), abs=0.002)


def test_margin_of_few_values_is_exact() -> None:
    tokens = np.array([3, 3, 9])
    assert fitting.fit_margin(tokens, 40).mean_tokens == pytest.approx(5.0, abs=1e-5)


def test_lengths_find_planted_templates() -> None:
    law = fitting.fit_lengths(planted_tokens(5000))
    drawn = law.sample(np.random.default_rng(1), 20_000)
    short = drawn.input_tokens < 500
    # 40 % of requests are short, with a standard error of 0.7 % in the fitted 5,000.
    assert short.mean() == pytest.approx(0.4, abs=0.03)
    assert np.all(drawn.output_tokens[short] == 400)
    assert np.all(drawn.output_tokens[~short] <= 60)


def test_lengths_of_one_kind_of_request() -> None:
    tokens = SampledTokens(np.full(10, 7), np.full(10, 3))
    drawn = fitting.fit_lengths(tokens).sample(np.random.default_rng(0), 50)
    assert set(drawn.input_tokens.tolist()) == {7}
    assert set(drawn.output_tokens.tolist()) == {3}


def test_arrivals_find_a_planted_profile_and_burstiness() -> None:
    planted = ModulatedArrivals(
        rate_requests_per_s=10.0,
        cv=1.5,
        period_s=3600.0,
        relative_rates=(0.5, 1.5, 1.0, 2.0, 0.4, 0.6),
    )
    fitted = fitting.fit_arrivals(planted.sample_duration(np.random.default_rng(2), 3600.0))
    assert fitted.rate_requests_per_s == pytest.approx(10.0, rel=0.03)
    assert fitted.cv == pytest.approx(1.5, rel=0.05)
    thirds = np.array([1200.0, 2400.0, 3600.0])
    # A third of the hour expects 1200 * 10 * (its mean relative rate): 12000, 18000, 6000.
    np.testing.assert_allclose(
        np.diff(fitted.expected_arrivals(thirds), prepend=0.0), [12000, 18000, 6000], rtol=0.06
    )


def test_constant_rate_gets_the_fewest_bins() -> None:
    arrival_s = np.sort(np.random.default_rng(3).random(5000) * 1000)
    assert fitting.best_profile_bins(arrival_s, 1000.0) == min(fitting.PROFILE_BINS)


@pytest.fixture
def trace_csv(tmp_path: Path) -> Path:
    tokens = planted_tokens(3000)
    arrival_s = np.random.default_rng(4).exponential(0.2, 3000).cumsum()
    frame = pd.DataFrame({"arrival_s": arrival_s - arrival_s[0], **tokens._asdict()})
    frame.to_csv(tmp_path / "trace.csv", index=False)
    return tmp_path / "trace.csv"


def test_command_writes_a_law_and_refits_it_with_its_provenance(trace_csv: Path) -> None:
    out = trace_csv.with_name("law.yaml")
    first = ["--source", "a made-up trace: two templates", "--licence", "CC0-1.0"]
    assert fitting.main([str(trace_csv), "--out", str(out), *first]) == 0
    law = validate(TrafficLaw, load_yaml(out))
    assert (law.source, law.licence, law.rows) == (first[1], first[3], 3000)
    assert law.lengths == fitting.fit_lengths(SampledTokens(*_columns(trace_csv)))
    date = ["--fitted-on", law.fitted_on]
    text = out.read_text()
    assert fitting.main([str(trace_csv), "--out", str(out), *date]) == 0
    assert out.read_text() == text


def test_command_refuses_a_law_without_provenance(
    trace_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trace_csv.with_name("law.yaml")
    assert fitting.main([str(trace_csv), "--out", str(out)]) == 2
    assert "needs --source and --licence" in capsys.readouterr().err
    assert not out.exists()


def _columns(trace_csv: Path) -> list[np.ndarray]:
    trace = read_trace(trace_csv, "plain")
    return [trace[name].to_numpy() for name in SampledTokens._fields]


def shared_trace() -> Path:
    shared = Path(os.environ.get("RACKCAST_SHARED", PROJECT.parent / "shared"))
    return shared / "traces" / "azure_2023_conv.csv"


@pytest.fixture(scope="module")
def trace() -> pd.DataFrame:
    return read_trace(shared_trace(), "plain")


@pytest.fixture(scope="module")
def law() -> TrafficLaw:
    return validate(TrafficLaw, load_yaml(AZURE))


@pytest.mark.shared_data
@pytest.mark.skipif(
    not shared_trace().exists(),
    reason=f"needs the Azure 2023 conversation trace at {shared_trace()} (set RACKCAST_SHARED)",
)
class TestAgainstTheAzureTrace:
    """The embedded law against the trace itself."""

    def test_reported_figures_are_those_of_the_trace(
        self, trace: pd.DataFrame, law: TrafficLaw
    ) -> None:
        inputs, outputs = trace.input_tokens, trace.output_tokens
        gaps = np.diff(trace.arrival_s)
        assert law.rows == len(trace) == 19_366
        assert law.fit_quality["spearman_trace"] == pytest.approx(
            stats.spearmanr(inputs, outputs).statistic, abs=1e-5
        )
        assert law.fit_quality["gap_cv_trace"] == pytest.approx(gaps.std() / gaps.mean(), abs=1e-5)

    def test_margins_total_and_work(self, trace: pd.DataFrame, law: TrafficLaw) -> None:
        drawn = law.lengths.sample(np.random.default_rng(11), 200_000)
        recorded = SampledTokens(*(trace[name].to_numpy() for name in SampledTokens._fields))
        for mine, theirs in zip((*drawn, sum(drawn)), (*recorded, sum(recorded)), strict=True):
            assert stats.ks_2samp(np.asarray(mine), np.asarray(theirs)).statistic < 0.012
            assert np.mean(mine) == pytest.approx(np.mean(theirs), rel=0.01)
        work = [np.mean(pair.input_tokens * pair.output_tokens) for pair in (drawn, recorded)]
        assert work[0] == pytest.approx(work[1], rel=0.02)

    def test_answers_given_the_length_of_the_prompt(
        self, trace: pd.DataFrame, law: TrafficLaw
    ) -> None:
        drawn = law.lengths.sample(np.random.default_rng(12), 200_000)
        for low, high in ((1, 190), (190, 300), (380, 450), (1000, 1300), (4000, 4200)):
            means = [
                np.mean(outputs[(inputs > low) & (inputs <= high)])
                for inputs, outputs in (drawn, (trace.input_tokens, trace.output_tokens))
            ]
            assert means[0] == pytest.approx(means[1], rel=0.1), (low, high)

    def test_refitting_gives_the_embedded_law(self, trace: pd.DataFrame, law: TrafficLaw) -> None:
        columns = (trace[name].to_numpy() for name in SampledTokens._fields)
        assert fitting.fit_lengths(SampledTokens(*columns)) == law.lengths
        assert fitting.fit_arrivals(trace.arrival_s.to_numpy()) == law.arrivals
