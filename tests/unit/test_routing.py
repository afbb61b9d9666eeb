"""Routers by the laws of probability, by drawing tokens, and against what others computed."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from sim.routing import (
    BALANCED,
    FITTED_SKEW,
    LOAD_UNIT,
    POWER_LAW_DEEPSEEK,
    POWER_LAW_QWEN3_235B,
    ExpertLayout,
    Imbalance,
    Routing,
    fullest_loads,
    inclusion_probabilities,
    power_law_inclusion,
    rank_loads,
    sampling_imbalance,
)


def gumbel_picks(weights: np.ndarray, picks: int, tokens: int, seed: int = 3) -> np.ndarray:
    """Draw the experts of tokens one by one without replacement: Gumbel top-k."""
    noise = np.random.default_rng(seed).gumbel(size=(tokens, weights.size))
    return np.argpartition(-(np.log(weights) + noise), picks, axis=1)[:, :picks]


class TestUnlessGiven:
    """What serving runs are met best with, and what is given takes its place."""

    def test_experts_are_uneven_and_ranks_have_luck(self) -> None:
        assert (Routing().skew, Routing().sampling_noise) == (FITTED_SKEW, True)
        assert not Routing().uniform
        assert Routing().source.startswith("fitted: ")

    def test_replicas_do_not_change_the_popularity(self) -> None:
        replicated = Routing(redundant_experts=32)
        assert replicated.inclusion(64, 4).tolist() == Routing().inclusion(64, 4).tolist()

    def test_what_is_given_says_so(self) -> None:
        assert Routing(skew=FITTED_SKEW).source == Routing(power_law=1.2).source == "given"

    def test_a_power_law_takes_the_place_of_the_skew(self) -> None:
        ours = Routing(power_law=1.2).inclusion(64, 4)
        assert ours.tolist() == power_law_inclusion(64, 4, 1.2).tolist()


class TestBalanced:
    @pytest.mark.parametrize(("experts", "picks"), [(8, 2), (128, 4), (256, 8)])
    @pytest.mark.parametrize("ranks", [1, 4])
    def test_is_uniform_independent_routing_to_the_last_bit(
        self, experts: int, picks: int, ranks: int
    ) -> None:
        tokens = np.array([0.0, 1.0, 8.0, 32.0, 128.0, 512.0])
        held = experts // ranks
        expected = held * (1 - (1 - picks / experts) ** tokens)
        assert (
            np.asarray(BALANCED.touched(tokens, experts, picks, ranks)).tolist()
            == expected.tolist()
        )
        expected = tokens * (picks * held / experts)
        assert (
            np.asarray(BALANCED.visits(tokens, experts, picks, ranks)).tolist() == expected.tolist()
        )

    def test_every_rank_is_the_mean_rank(self) -> None:
        assert BALANCED.hottest_over_mean(256, 8, 32) == pytest.approx(1.0, rel=1e-12)

    def test_a_vanishing_skew_is_none(self) -> None:
        faint = Routing(skew=1e-9, sampling_noise=False)
        for tokens in (1, 8, 512):
            ours, theirs = (r.touched(tokens, 256, 8, 8) for r in (faint, BALANCED))
            # experts that are not alike are interpolated in a table of tokens
            assert ours == pytest.approx(theirs, rel=1e-4)
            ours, theirs = (r.visits(tokens, 256, 8, 8) for r in (faint, BALANCED))
            assert ours == pytest.approx(theirs, rel=1e-6)


class TestInclusion:
    @pytest.mark.parametrize("skew", [0.0, 0.3, 1.0, 3.0])
    @pytest.mark.parametrize(("experts", "picks"), [(8, 2), (128, 8), (4, 4)])
    def test_probabilities_add_up_to_the_picks(self, experts: int, picks: int, skew: float) -> None:
        chances = Routing(skew=skew).inclusion(experts, picks)
        assert chances.sum() == pytest.approx(picks, rel=1e-9)
        assert chances.max() <= 1.0
        assert (np.diff(chances) <= 0).all()

    @pytest.mark.parametrize("skew", [0.5, 1.0])
    def test_draws_one_by_one_without_replacement(self, skew: float) -> None:
        weights = np.arange(1, 65, dtype=float) ** -skew
        drawn = gumbel_picks(weights, 4, 40_000)
        shares = np.bincount(drawn.ravel(), minlength=64) / 40_000
        # the approximation within 3 %, the draws within four standard deviations
        allowed = 0.03 * shares + 4 * np.sqrt(shares / 40_000)
        assert (np.abs(inclusion_probabilities(weights, 4) - shares) <= allowed).all()

    def test_two_of_three_by_hand(self) -> None:
        """Exact: an expert of weight 2 beside two of weight 1 is missed in 2 * 1/4 * 1/3."""
        chances = inclusion_probabilities(np.array([2.0, 1.0, 1.0]), 2)
        assert chances[0] == pytest.approx(1 - 2 * (1 / 4) * (1 / 3), rel=0.02)

    def test_an_expert_is_never_picked_twice(self) -> None:
        chances = power_law_inclusion(8, 6, POWER_LAW_QWEN3_235B)
        assert chances.max() == 1.0
        assert chances.sum() == pytest.approx(6.0, rel=1e-12)

    def test_all_experts_picked(self) -> None:
        assert power_law_inclusion(4, 4, 1.2).tolist() == [1.0] * 4


class TestTouched:
    @pytest.mark.parametrize(
        ("experts", "skew", "expected"),
        [
            (256, 0.0, (57.4, 163, 252, 256)),
            (256, 0.5, (54.6, 148, 243, 256)),
            (256, 1.0, (41.8, 106, 202, 253)),
            (128, 0.5, (48.0, 104, 128, 128)),
            (128, 1.0, (37.8, 82, 122, 128)),
        ],
    )
    def test_as_simulated_with_gumbel_top_k(
        self, experts: int, skew: float, expected: tuple[float, ...]
    ) -> None:
        """Top 8 with weights ``i^-skew``, 8 to 512 tokens: simulated elsewhere, within 1.5 %."""
        touched = Routing(skew=skew).touched(np.array([8.0, 32.0, 128.0, 512.0]), experts, 8, 1)
        assert touched == pytest.approx(expected, rel=0.015)

    def test_as_drawn(self) -> None:
        weights = np.arange(1, 65, dtype=float) ** -0.8
        drawn = gumbel_picks(weights, 4, 16 * 2000).reshape(2000, -1)
        distinct = np.mean([np.unique(row).size for row in drawn])
        assert Routing(skew=0.8).touched(16, 64, 4, 1) == pytest.approx(distinct, rel=0.01)

    def test_skew_touches_fewer(self) -> None:
        tokens = np.arange(1.0, 300.0)
        by_skew = [Routing(skew=s).touched(tokens, 128, 8, 1) for s in (0.0, 0.4, 0.8, 1.6)]
        for less, more in itertools.pairwise(by_skew):
            # a single token always touches its 8 picks, and nobody touches more than there are
            assert np.all(more <= less * (1 + 1e-9))

    def test_one_token_touches_its_picks(self) -> None:
        assert Routing(skew=1.0).touched(1, 128, 8, 1) == pytest.approx(8.0, rel=1e-9)

    def test_no_token_touches_nothing(self) -> None:
        for routing in (Routing(skew=1.0), Routing(power_law=1.2, redundant_experts=8)):
            assert routing.touched(0, 128, 8, 8) == 0.0
            assert routing.visits(0, 128, 8, 8) == 0.0


NAIVE = {
    (256, POWER_LAW_DEEPSEEK): (1.19, 1.42, 1.76, 2.36, 3.35),
    (256, POWER_LAW_QWEN3_235B): (1.28, 1.54, 2.05, 2.89, 4.39),
    (128, POWER_LAW_DEEPSEEK): (1.28, 1.58, 2.09, 3.09, 4.45),
    (128, POWER_LAW_QWEN3_235B): (1.38, 1.80, 2.51, 3.80, 6.14),
}
"""Busiest over mean of 4 to 64 ranks, top 8, loads drawn by AIConfigurator's sampler."""


class TestHottestRank:
    @pytest.mark.parametrize(("experts", "alpha"), NAIVE)
    def test_naive_placement_as_simulated(self, experts: int, alpha: float) -> None:
        """Loads are drawn there and quantiles here: within 5 %."""
        routing = Routing(power_law=alpha)
        ours = [routing.hottest_over_mean(experts, 8, ranks) for ranks in (4, 8, 16, 32, 64)]
        assert ours == pytest.approx(NAIVE[experts, alpha], rel=0.05)

    @pytest.mark.parametrize(
        ("experts", "expected"),
        [(256, (1.00, 1.00, 1.00, 1.00, 1.02)), (128, (1.00, 1.00, 1.00, 1.03, 1.17))],
    )
    def test_replicas_packed_by_exact_loads(
        self, experts: int, expected: tuple[float, ...]
    ) -> None:
        """Alpha 1.2, 64 replicas: as simulated elsewhere with 32 to 64, within 0.03."""
        routing = Routing(power_law=POWER_LAW_QWEN3_235B, redundant_experts=64)
        ours = [routing.hottest_over_mean(experts, 8, ranks) for ranks in (4, 8, 16, 32, 64)]
        assert ours == pytest.approx(expected, abs=0.03)

    def test_typical_of_random_placements(self) -> None:
        """The placement that stands for all is as hot as others drawn at random, on the mean."""
        chances = Routing(skew=0.7).inclusion(128, 8)
        random = np.random.default_rng(11)
        hottest = [rank_loads(random.permutation(chances), 16).max() for _ in range(2000)]
        expected = np.mean(hottest) * 16 / 8
        assert Routing(skew=0.7).hottest_over_mean(128, 8, 16) == pytest.approx(expected, rel=0.03)

    def test_all_tokens_are_computed_somewhere(self) -> None:
        """With one rank nothing can be uneven: all visits are its own."""
        for routing in (Routing(skew=1.0), Routing(power_law=1.2, redundant_experts=7)):
            assert routing.visits(100, 128, 8, 1) == pytest.approx(800)

    def test_a_rank_computes_a_token_at_most_once_per_expert(self) -> None:
        hot = Routing(skew=6.0)  # nearly every token picks the same experts
        assert hot.visits(100, 16, 4, 8) <= 100 * 2
        # a rank with two experts that everybody picks
        assert hot.hottest_over_mean(16, 4, 8) <= 2 * 8 / 4

    def test_replicas_never_make_it_worse(self) -> None:
        for replicas in (32, 64, 128):
            balanced = Routing(skew=1.0, redundant_experts=replicas)
            naive = Routing(skew=1.0)
            assert balanced.hottest_over_mean(256, 8, 32) < naive.hottest_over_mean(256, 8, 32)

    def test_deepseek_holds_nine_experts_per_chip(self) -> None:
        """256 experts and 32 replicas: 9 on each of 32 chips, 2 on each of 144."""
        routing = Routing(redundant_experts=32)
        assert (routing.slots(256, 32), routing.slots(256, 144)) == (9, 2)


class TestSamplingNoise:
    @pytest.mark.parametrize(
        ("experts", "picks", "expected"),
        [
            (8, 2, (1.48, 1.23, 1.12)),
            (128, 8, (1.25, 1.12, 1.06)),
            (256, 8, (1.25, 1.12, 1.06)),
        ],
    )
    def test_as_simulated(self, experts: int, picks: int, expected: tuple[float, ...]) -> None:
        """Busiest of 8 ranks over the mean with 32, 128 and 512 tokens, simulated elsewhere."""
        ours = sampling_imbalance(np.array([32.0, 128.0, 512.0]), experts, picks, 8)
        assert ours == pytest.approx(expected, abs=0.02)

    def test_as_drawn(self) -> None:
        drawn = gumbel_picks(np.ones(64), 4, 24 * 2000).reshape(2000, -1) // 16
        busiest = np.mean([np.bincount(row, minlength=4).max() for row in drawn])
        assert sampling_imbalance(24, 64, 4, 4) == pytest.approx(busiest / 24, rel=0.02)

    @pytest.mark.parametrize(("tokens", "skew"), [(4, 0.0), (16, 0.0), (48, 0.0), (16, 0.7)])
    def test_touched_experts_as_drawn(self, tokens: int, skew: float) -> None:
        """Distinct experts of the rank that has most, top 4 of 128 on 8 ranks, over many draws."""
        random = np.random.default_rng(1)
        numbers: list[int] = []
        for _ in range(40):  # placements
            weights = random.permutation(np.arange(1, 129, dtype=float) ** -skew)
            drawn = gumbel_picks(weights, 4, tokens * 50).reshape(50, -1)
            numbers += [np.bincount(np.unique(row) // 16, minlength=8).max() for row in drawn]
        ours = Routing(skew=skew, sampling_noise=True).touched(tokens, 128, 4, 8)
        assert ours == pytest.approx(np.mean(numbers), rel=0.04)

    def test_is_asked_for(self) -> None:
        lucky, real = BALANCED, Routing(skew=0.0, sampling_noise=True)
        assert lucky.visits(32, 256, 8, 8) == 32
        assert real.visits(32, 256, 8, 8) == pytest.approx(32 * 1.25, rel=0.01)

    def test_fades_with_tokens(self) -> None:
        noisy, smooth = (Routing(skew=0.5, sampling_noise=noise) for noise in (True, False))
        many = 1e8
        ours, expected = (r.visits(many, 256, 8, 8) for r in (noisy, smooth))
        assert ours == pytest.approx(expected, rel=1e-3)

    def test_one_rank_has_no_luck(self) -> None:
        assert sampling_imbalance(3, 8, 2, 1) == 1.0


def test_two_laws_are_one_too_many() -> None:
    with pytest.raises(ValidationError, match="give one law"):
        Routing(skew=0.5, power_law=1.2)


def layout(ranks: int, layers: int = 10) -> ExpertLayout:
    return ExpertLayout(experts=64, experts_per_token=4, ranks=ranks, layers=layers)


def middles(points: int) -> npt.NDArray[np.float64]:
    """Standard normal scores in the middle of slices that are equally likely."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / points) for i in range(points)])


class TestFullestLoads:
    """Log-normal loads of single experts, and what the fullest rank makes of them."""

    @pytest.mark.parametrize("cv", [0.01, 0.3, 1.0, 3.0])
    def test_two_experts_on_two_ranks(self, cv: float) -> None:
        """The larger of two over their mean, by integration over one normal variable.

        2 max(X, Y) / (X + Y) = 2 / (1 + exp(-|x - y|)) of the logarithms x and y, whose difference
        is normal with the variance 2 log(1 + cv^2).
        """
        spread = math.sqrt(2 * math.log1p(cv**2))
        expected = (2 / (1 + np.exp(-spread * np.abs(middles(20_000))))).mean()
        loads = fullest_loads(cv, ExpertLayout(2, 1, 2, 40), BALANCED)
        # 500 periods of 40 layers: between 1 and 2, so known to 0.3 / sqrt(20,000)
        assert loads.mean() == pytest.approx(expected, abs=4 * 0.3 / 141)

    def test_three_experts_on_three_ranks(self) -> None:
        """Over two differences of logarithms: only they count in max / mean."""
        cv = 0.6
        x = np.exp(math.sqrt(math.log1p(cv**2)) * middles(150))
        first, second, third = np.meshgrid(x, x, x)
        largest = np.maximum(np.maximum(first, second), third)
        expected = (3 * largest / (first + second + third)).mean()
        loads = fullest_loads(cv, ExpertLayout(3, 1, 3, 40), BALANCED)
        assert loads.mean() == pytest.approx(expected, abs=4 * 0.4 / 141)

    def test_many_experts_on_a_rank_are_nearly_normal(self) -> None:
        """The mean of 32 loads has a 32nd of their variance; the largest of 8 stands at 1.4236.

        (Expected maximum of eight standard normals: H. L. Harter, Biometrika 48, 1961.)
        """
        loads = fullest_loads(0.2, ExpertLayout(256, 8, 8, 40), BALANCED)
        spread = 0.2 / math.sqrt(32)
        assert loads.mean() - 1 == pytest.approx(1.4236 * spread, rel=0.03)

    def test_one_rank_is_never_slowed(self) -> None:
        for routing in (BALANCED, Routing(skew=0.8)):
            assert set(fullest_loads(3.0, layout(1), routing)) == {1.0}

    def test_loads_are_never_below_the_expected_one_and_rise(self) -> None:
        """With the spread of single experts, and with the ranks that they are dealt to."""
        for routing in (BALANCED, Routing(skew=0.5), Routing(power_law=1.2)):
            for ranks in (2, 8, 64):
                loads = [fullest_loads(cv, layout(ranks), routing) for cv in (0.1, 0.5, 1.0, 3.0)]
                assert min(each.min() for each in loads) >= 1.0
                means = [each.mean() for each in loads]
                assert means == sorted(means)
                assert means[0] < means[-1]
        few, some, many = (fullest_loads(0.5, layout(r), BALANCED).mean() for r in (2, 8, 64))
        assert 1.0 < few < some < many

    def test_a_skew_is_not_counted_twice(self) -> None:
        """Held against draws of whole ranks: load of the fullest over the mean, skew and all."""
        skewed, cv, ranks = Routing(skew=0.5), 0.8, 8
        loads = fullest_loads(cv, layout(ranks), skewed)
        fullest = loads.mean() * skewed.hottest_over_mean(64, 4, ranks)
        # in many placements: `Routing` takes one whose hottest rank is as hot as on average
        rng, sigma = np.random.default_rng(3), math.sqrt(math.log1p(cv**2))
        chances, drawn = skewed.inclusion(64, 4), []
        for _ in range(4000):
            of_ranks = rank_loads(
                rng.permutation(chances) * np.exp(sigma * rng.standard_normal(64)), ranks
            )
            drawn.append(of_ranks.max() / of_ranks.mean())
        assert fullest == pytest.approx(np.mean(drawn), rel=0.03)

    def test_no_spread_no_excess(self) -> None:
        assert fullest_loads(1e-9, layout(8), BALANCED) == pytest.approx(1.0)

    def test_layers_even_out(self) -> None:
        """Each draws for itself: the spread of their mean falls with the root of their number."""
        one, hundred = (fullest_loads(0.5, layout(8, layers=n), BALANCED).std() for n in (1, 100))
        assert hundred == pytest.approx(one / 10, rel=0.15)


class TestImbalance:
    def test_a_period_has_the_same_load_whenever_it_is_asked_for(self) -> None:
        first, second = (
            Imbalance.of_experts(0.3, layout(8), BALANCED, 10, seed=4) for _ in range(2)
        )
        periods = [0, 3, 7000, 3, 499, 500]
        forward = [first.sample(period) for period in periods]
        assert forward == [second.sample(period) for period in reversed(periods)][::-1]
        assert forward[1] == forward[3]

    def test_seeds_and_replicas_draw_for_themselves(self) -> None:
        drawn = [
            tuple(
                Imbalance.of_experts(0.5, layout(8), BALANCED, 10, seed, ("serve", replica)).sample(
                    i
                )
                for i in range(20)
            )
            for seed in (1, 2)
            for replica in (0, 1)
        ]
        assert len(set(drawn)) == 4

    def test_loads_of_a_run_follow_the_law(self) -> None:
        experts = Imbalance.of_experts(0.8, layout(8), BALANCED, 10, seed=4)
        law = fullest_loads(0.8, layout(8), BALANCED)
        loads = np.array([experts.sample(period) for period in range(20_000)]) / LOAD_UNIT
        assert experts.mean == pytest.approx(law.mean(), abs=1 / LOAD_UNIT)
        assert loads.mean() == pytest.approx(law.mean(), abs=4 * law.std() / 141)
        assert loads.std() == pytest.approx(law.std(), rel=0.05)
