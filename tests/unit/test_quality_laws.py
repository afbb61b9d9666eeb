"""Laws of accuracy by hand, by numerical integration, and against simulated questions."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from sim.errors import InputError
from sim.quality import RIGHT, Benchmark, MissingLawError, Unknown
from sim.quality.benchmark import Laws, TokensSpread
from sim.quality.expected import _exact_wins, _independent_wins, vote
from sim.quality.laws import (
    Difficulty,
    GateLaw,
    LogitEffort,
    PowerEffort,
    RevisionLaw,
    SearchLaw,
    VerifierLaw,
    WrongAnswers,
    all_ranks,
    shift_to,
    shifted,
)
from sim.quality.selection import best_of
from sim.workload.strategies.voting import majority

BETA = Difficulty(a=0.6, b=0.9)
WRONG = WrongAnswers(mean_top_share=0.35, strength=2.0)
QUESTIONS = 4_000
# Four standard errors of a share of QUESTIONS questions, at most.
NOISE = 4 * math.sqrt(0.25 / QUESTIONS)


def tokens(median: float) -> TokensSpread:
    return TokensSpread(median=median, sigma=0.0, source="here", confidence="estimate")


def benchmark(**laws: object) -> Benchmark:
    return Benchmark(
        benchmark="ours",
        model="a model",
        description="made up",
        question_tokens=tokens(10),
        answer_tokens=tokens(100),
        laws=Laws.model_validate({"difficulty": BETA, "wrong_answers": WRONG, **laws}),
    )


@pytest.mark.parametrize("samples", [1, 4, 30])
def test_coverage_is_the_integral_over_chances(samples: int) -> None:
    # Substituting p = u^(1/a) takes the pole of the density at 0 away.
    law = Difficulty(a=0.6, b=1.5)
    scale = 1 / (0.6 * math.exp(math.lgamma(0.6) + math.lgamma(1.5) - math.lgamma(2.1)))

    def density(u: float) -> float:
        p = u ** (1 / 0.6)
        return float(scale * (1 - p) ** 0.5 * (1 - (1 - p) ** samples))

    assert law.coverage(samples) == pytest.approx(integrate.quad(density, 0, 1)[0], rel=1e-6)


def test_shares_never_and_always_solved_bound_coverage() -> None:
    law = Difficulty(a=1, b=1, never_fraction=0.3, always_fraction=0.1)
    # 0.1 + 0.6 (1 - 1 / (1 + 1)) for one sample of a uniform chance.
    assert law.coverage(1) == pytest.approx(0.4)
    assert law.mean == pytest.approx(0.4)
    assert law.coverage(1e9) == pytest.approx(0.7)
    assert law.chances(np.array([0.2, 0.6, 0.95])) == pytest.approx([0.0, 0.5, 1.0])


def test_vote_of_three_by_hand() -> None:
    # One question type, p = 1/2 (a, b huge), wrong answers all equal (c -> 1): a vote of three is
    # right if two or three are: p^3 + 3 p^2 q = 1/2. All different (c -> 0): also with one right
    # vote, one time in three: 1/8 + 3/8 + 3/8 / 3 = 5/8.
    sure = Difficulty(a=5e5, b=5e5)
    same = WrongAnswers(mean_top_share=0.999, strength=1e6)
    different = WrongAnswers(mean_top_share=0.001, strength=1e6)
    # Cells of the top share are 1/24 wide: 0.5 - 3/8 share-of-others effects stay below 0.02.
    assert vote(sure, same, 3) == pytest.approx(0.5, abs=0.01)
    assert vote(sure, different, 3) == pytest.approx(0.625, abs=0.01)


def by_enumeration(p: float, share: float, samples: int) -> float:
    """Chance that the right answer wins, over all counts of right, two wrong classes, others."""
    total = 0.0
    q1, q2 = (1 - p) * share, (1 - p) * share * (1 - share)
    rest = 1 - p - q1 - q2
    for m in range(1, samples + 1):
        for i in range(samples - m + 1):
            for j in range(samples - m - i + 1):
                n = samples - m - i - j
                chance = stats.multinomial.pmf([m, i, j, n], samples, [p, q1, q2, rest])
                counts = [i, j] + [1] * n
                if max(counts) <= m:
                    total += float(chance) / (1 + counts.count(m))
    return total


def test_exact_wins_equal_enumeration() -> None:
    # With share 0.9 the third class and those after it hold 0.01 of the wrong answers, so that
    # telling them all apart, as the enumeration does, changes less than 1e-3.
    wins = _exact_wins(5, 0.9)
    for p in (0.2, 0.5):
        law = float(stats.binom.pmf(np.arange(6), 5, p) @ wins)
        assert law == pytest.approx(by_enumeration(p, 0.9, 5), abs=1e-3)


def test_both_ways_to_count_votes_meet() -> None:
    for share in (0.1, 0.4, 0.8):
        exact, near = _exact_wins(40, share), _independent_wins(40, share)
        weights = stats.betabinom.pmf(np.arange(41), 40, 0.6, 0.9)
        assert float(weights @ near) == pytest.approx(float(weights @ exact), abs=0.005)


@pytest.mark.parametrize("votes", [3, 16, 64])
def test_simulated_votes_average_to_the_expected(votes: int) -> None:
    rng = np.random.default_rng(1)
    questions = benchmark().questions(rng, QUESTIONS)
    right = [majority(one.answers(rng, votes).tolist()) == RIGHT for one in questions]
    assert float(np.mean(right)) == pytest.approx(vote(BETA, WRONG, votes), abs=NOISE)


def test_simulated_coverage_averages_to_the_expected() -> None:
    rng = np.random.default_rng(2)
    questions = benchmark().questions(rng, QUESTIONS)
    covered = [bool((one.answers(rng, 20) == RIGHT).any()) for one in questions]
    assert float(np.mean(covered)) == pytest.approx(BETA.coverage(20), abs=NOISE)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("samples", [1, 3, 8, 100])
def test_simulated_best_of_averages_to_the_expected(samples: int, shared: float) -> None:
    law = VerifierLaw(separation=1.2, shared_fraction=shared)
    rng = np.random.default_rng(3)
    questions = benchmark(verifiers={"prm": law}).questions(rng, QUESTIONS)
    right = []
    for one in questions:
        answers = one.answers(rng, samples)
        scores = one.scores(rng, answers, verifier="prm")
        right.append(answers[np.argmax(scores)] == RIGHT)
    expected = best_of(BETA, WRONG, law, samples)
    # Poisson numbers of samples, which shared noise is reckoned with, are 0.005 off at most.
    assert float(np.mean(right)) == pytest.approx(expected, abs=NOISE + 0.005)


def test_of_answers_that_a_verifier_gives_a_chance_so_many_are_right() -> None:
    """Half of the answers are right; 20,000 in ten bins: a standard error of 0.011 each."""
    sure = Difficulty(a=5e5, b=5e5)
    law = VerifierLaw(separation=1.5)
    rng = np.random.default_rng(5)
    (one,) = benchmark(difficulty=sure, verifiers={"prm": law}).questions(rng, 1)
    answers = one.answers(rng, 20_000)
    scores = one.scores(rng, answers, verifier="prm")
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (scores >= low) & (scores < low + 0.1)
        right = float((answers[inside] == RIGHT).mean())
        assert right == pytest.approx(float(scores[inside].mean()), abs=0.05)


def test_best_of_two_by_hand() -> None:
    # p = 1/2: both right 1/4; one right 1/2, chosen with chance Phi(d / sqrt 2).
    sure = Difficulty(a=5e5, b=5e5)
    expected = 0.25 + 0.5 * stats.norm.cdf(1.2 / math.sqrt(2))
    law = VerifierLaw(separation=1.2)
    assert best_of(sure, WRONG, law, 2) == pytest.approx(expected, abs=1e-5)
    # Of two that differ nothing is shared.
    liar = VerifierLaw(separation=1.2, shared_fraction=0.9)
    assert best_of(sure, WRONG, liar, 2) == best_of(sure, WRONG, law, 2)


def test_what_is_believed_of_one_wrong_answer_bounds_the_best_of_many() -> None:
    # All wrong answers agree and all noise is shared: two scores, d + B and B', however many
    # samples. The right one wins with chance Phi(d / sqrt 2) where both kinds were drawn.
    even, same = Difficulty(a=5e5, b=5e5), WrongAnswers(mean_top_share=0.999, strength=1e6)
    law = VerifierLaw(separation=1.2, shared_fraction=1.0)
    expected = float(stats.norm.cdf(1.2 / math.sqrt(2)))
    independent = VerifierLaw(separation=1.2)
    for samples in (8, 14):
        # Cells of the top share are 1/24 wide, the last with its middle at 47/48: another wrong
        # answer is among 7 in 1 - (47/48)^7 = 0.14 of cases, and takes then 0.12 at most.
        assert best_of(even, same, law, samples) == pytest.approx(expected, abs=0.14 * 0.12 + 0.005)
        assert best_of(even, same, independent, samples) > expected + 0.05


def test_all_wrong_answers_different_share_nothing() -> None:
    # Then only right answers share noise; with one right answer in a great many none does.
    different = WrongAnswers(mean_top_share=0.001, strength=1e6)
    rare = Difficulty(a=1e3, b=1e6)
    alone, shared = VerifierLaw(separation=2.0), VerifierLaw(separation=2.0, shared_fraction=0.8)
    assert best_of(rare, different, shared, 40) == pytest.approx(
        best_of(rare, different, alone, 40), abs=0.004
    )


def test_little_shared_noise_is_near_none() -> None:
    alone, little = VerifierLaw(separation=1.5), VerifierLaw(separation=1.5, shared_fraction=1e-6)
    for samples in (4, 30, 400):
        assert best_of(BETA, WRONG, little, samples) == pytest.approx(
            best_of(BETA, WRONG, alone, samples), abs=1e-3
        )


def test_the_more_is_shared_the_earlier_more_samples_hurt() -> None:
    """At 400 samples, where Cobbe et al. saw it, with 0.7 of the noise shared."""
    third, wrong = Difficulty(a=0.33, b=0.67), WrongAnswers(mean_top_share=0.3, strength=2.0)
    samples = [25, 100, 400, 1600]

    def best(shared: float) -> int:
        law = VerifierLaw(separation=1.5, shared_fraction=shared)
        return samples[int(np.argmax([best_of(third, wrong, law, each) for each in samples]))]

    assert [best(shared) for shared in (0.0, 0.67, 0.75, 1.0)] == [1600, 400, 100, 25]


def test_always_and_never_solved_questions_leave_no_choice() -> None:
    law = VerifierLaw(separation=1.0, shared_fraction=0.6)
    inner = best_of(BETA, WRONG, law, 20)
    mixed = Difficulty(a=BETA.a, b=BETA.b, never_fraction=0.3, always_fraction=0.1)
    assert best_of(mixed, WRONG, law, 20) == pytest.approx(0.1 + 0.6 * inner, abs=1e-6)


def test_a_verifier_that_believes_alike_of_equal_answers_saturates() -> None:
    # All noise shared, so the choice is between classes: with all of them seen, more samples of
    # the same answers change nothing, while independent scores go on to gain.
    def accuracy(shared: float, samples: int) -> float:
        law = VerifierLaw(separation=1.0, shared_fraction=shared)
        rng = np.random.default_rng(4)
        questions = benchmark(verifiers={"": law}).questions(rng, 1_500)
        right = []
        for one in questions:
            answers = one.answers(rng, samples)
            scores = one.scores(rng, answers, verifier="")
            right.append(answers[np.argmax(scores)] == RIGHT)
        return float(np.mean(right))

    assert accuracy(1.0, 300) < accuracy(1.0, 30) + 0.01
    assert accuracy(0.0, 300) > accuracy(1.0, 300) + 0.1


@pytest.mark.parametrize("target", [0.05, 0.4, 0.9])
def test_shifts_make_the_mean(target: float) -> None:
    chances = shifted(BETA.chances(all_ranks()), shift_to(BETA, target))
    assert float(chances.mean()) == pytest.approx(target, abs=1e-6)
    assert (np.diff(chances) >= 0).all()


def test_unreachable_accuracy_is_the_nearest() -> None:
    law = Difficulty(a=1, b=1, never_fraction=0.25)
    chances = shifted(law.chances(all_ranks()), shift_to(law, 0.9))
    assert float(chances.mean()) == pytest.approx(0.75, abs=1e-3)


def test_longer_answers_follow_the_law_of_length() -> None:
    law = LogitEffort(x_min_tokens=100, x_max_tokens=800, intercept=0.0, slope=0.5)
    questions = benchmark(effort=law).questions(np.random.default_rng(5), QUESTIONS)
    # Three doublings of log-odds 0.5: 1 / (1 + e^-1.5) = 0.8176.
    longer = np.mean([one.chance_of(8.0) for one in questions])
    assert longer == pytest.approx(0.8176, abs=NOISE)
    assert not questions.notes
    assert benchmark(effort=law).direct_accuracy == pytest.approx(0.5)
    far = np.mean([one.chance_of(64.0) for one in questions])
    assert far == longer
    assert len(questions.notes) == 1
    note = questions.notes[0]
    assert "6400 tokens" in note
    assert "100 to 800" in note


def test_length_without_a_law_changes_nothing_and_says_so() -> None:
    questions = benchmark().questions(np.random.default_rng(5), 3)
    assert questions[0].chance_of(8.0) == questions[0].chance
    assert "nothing is known" in questions.notes[0]


def test_power_law_of_length_by_hand() -> None:
    law = PowerEffort(x_min_tokens=100, x_max_tokens=6400, top=0.9, span=0.8, rate=0.5)
    assert law.accuracy(100) == pytest.approx(0.1)
    assert law.accuracy(400) == pytest.approx(0.9 - 0.8 / 2)
    assert law.accuracy(1) == law.accuracy(100)
    assert law.accuracy(1e9) == law.accuracy(6400)


def test_revisions_follow_the_two_state_chain() -> None:
    law = RevisionLaw(fixed=0.2, broken=0.1, decay=0.8, max_rounds=6)
    rng = np.random.default_rng(6)
    answers = [int(one.answers(rng, 1)[0]) for one in benchmark().questions(rng, QUESTIONS)]
    questions = benchmark(revision=law).questions(rng, QUESTIONS)
    share = float(np.mean([one == RIGHT for one in answers]))
    for done in range(6):
        answers = [
            one.revised(rng, each, rounds_before=done)
            for one, each in zip(questions, answers, strict=True)
        ]
        share += (1 - share) * 0.2 * 0.8**done - share * 0.1 * 0.8**done
    assert float(np.mean([one == RIGHT for one in answers])) == pytest.approx(share, abs=NOISE)
    assert law.accuracy(0.5, 6) == law.accuracy(0.5, 60)
    before = list(answers)
    after = [q.revised(rng, a, rounds_before=6) for q, a in zip(questions, before, strict=True)]
    assert after == before
    assert "6 rounds" in questions.notes[0]


def test_searches_find_as_much_as_the_law_says() -> None:
    law = SearchLaw(intercept=-1.0, slope=1.0, min_nodes=2, max_nodes=15)
    rng = np.random.default_rng(7)
    questions = benchmark(search=law).questions(rng, QUESTIONS)
    found = [one.searched(rng, breadth=5, depth=3) == RIGHT for one in questions]
    # Odds of e^-1 times 15.
    odds = 15 / math.e
    assert float(np.mean(found)) == pytest.approx(odds / (1 + odds), abs=NOISE)
    assert not questions.notes
    questions[0].searched(rng, breadth=50, depth=3)
    assert "breadth 50" in questions.notes[0]


@pytest.mark.parametrize("correlation", [0.0, 0.7, 1.0])
def test_a_gate_knows_as_much_as_its_correlation(correlation: float) -> None:
    law = GateLaw(correlation=correlation, source="here", confidence="measured")
    rng = np.random.default_rng(8)
    questions = benchmark(gate=law).questions(rng, QUESTIONS)
    pairs = np.array([(one.chance, one.estimate(rng)) for one in questions])
    # Spearman's coefficient of a Gaussian copula: 6 / pi asin(rho / 2).
    rank = stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic
    assert rank == pytest.approx(6 / math.pi * math.asin(correlation / 2), abs=0.05)
    assert float(pairs[:, 1].mean()) == pytest.approx(BETA.mean, abs=NOISE)
    assert not questions.notes


def test_hard_for_one_model_is_hard_for_all() -> None:
    large = Difficulty(a=3.0, b=0.5)
    questions = benchmark(models={"large": large}).questions(np.random.default_rng(9), 500)
    pairs = sorted((one.chance_of(1.0), one.chance_of(1.0, "large")) for one in questions)
    assert all(small < big for small, big in pairs)
    assert [big for _, big in pairs] == sorted(big for _, big in pairs)
    with pytest.raises(InputError, match="did you mean large"):
        questions[0].chance_of(1.0, "lareg")


def test_what_nobody_measured_is_refused() -> None:
    rng = np.random.default_rng(0)
    one = benchmark().questions(rng, 1)[0]
    for ask, word in (
        (lambda: one.scores(rng, np.array([0]), verifier="x"), "laws.verifiers"),
        (lambda: one.revised(rng, 0, rounds_before=0), "laws.revision"),
        (lambda: one.searched(rng, breadth=1, depth=1), "laws.search"),
        (lambda: one.estimate(rng), "laws.gate"),
        (lambda: Unknown().answers(rng, 1), "give a benchmark"),
    ):
        with pytest.raises(InputError, match=word):
            ask()
    with pytest.raises(MissingLawError) as caught:
        one.answers(rng, 1, model="small")
    assert (caught.value.law, caught.value.entry) == ("models", "small")


def test_same_seed_same_questions() -> None:
    first, again = (benchmark().questions(np.random.default_rng(3), 5) for _ in range(2))
    assert [one.chance for one in first] == [one.chance for one in again]
    assert len({one.chance for one in first}) == 5
