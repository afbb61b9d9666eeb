"""The shipped tree of thoughts against the recorded one: Game of 24, GPT-4, problem by problem.

The record: log of 100 problems of the authors of arXiv:2305.10601. Its two halves, even and odd
problems, differ by 15 % in mean prompt tokens and 21 % in mean completion tokens, 1.6 and 2
standard errors of the difference; what is fitted to one half can say no more of the other.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from sim.catalog import open_catalog
from sim.quality import Unknown
from sim.workload.programs import Task, answered_at_once
from sim.workload.single import ConstantTokens
from sim.workload.strategies.entry import read_entry
from sim.workload.strategies.tree import Tree

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("RACKCAST_SHARED", ROOT.parent / "shared"))
LOG = SHARED / "traces" / "tot_game24_gpt4.csv"

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(
        not LOG.is_file(),
        reason=f"recorded traces are not part of the project; none at {LOG} (RACKCAST_SHARED)",
    ),
]

Figure = Callable[[NDArray[np.float64]], float]

PROPOSALS = (1, 5, 5, 5)
STEPS = [f"candidates_step{step}" for step in range(4)]


class Runs(NamedTuple):
    """What simulated problems ask for, one number each, by repetition and problem."""

    prompt_tokens: NDArray[np.float64]
    completion_tokens: NDArray[np.float64]
    proposals: NDArray[np.float64]
    candidates: NDArray[np.float64]
    """Tokens of proposals, over those of a candidate, by stage: last axis."""


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    return pd.read_csv(LOG)


@pytest.fixture(scope="module")
def shipped() -> Tree:
    catalog = open_catalog()
    located = catalog.located("strategies", "tree_of_thoughts_game24")
    strategy = read_entry(located, lambda name: catalog.located("strategies", name)).strategy
    assert isinstance(strategy, Tree)
    return strategy


def simulated(tree: Tree, problems: NDArray[np.int64], repetitions: int) -> Runs:
    """Work on problems by their place in the run, from 0, some times over."""
    rows = []
    for repetition in range(repetitions):
        for number in problems.tolist():
            rng = np.random.default_rng([repetition, number])
            task = Task(number, rng, Unknown(), 10, ConstantTokens(tokens=20), 0)
            calls = answered_at_once(tree.control(task)).calls
            # The log has one request for the three votes of a state, and counts its prompt once.
            requests = {(call.label, call.prompt): call.input_tokens for call in calls}
            proposals = [call.output_tokens for call in calls if call.label == "propose"]
            stages = np.split(np.array(proposals), np.cumsum(PROPOSALS)[:-1])
            rows.append(
                (
                    sum(requests.values()),
                    sum(call.output_tokens for call in calls),
                    len(proposals),
                    *(
                        stage.sum() / law.generate.candidate_tokens.mean_tokens
                        for stage, law in zip(stages, tree.stages, strict=True)
                    ),
                )
            )
    table = np.array(rows, dtype=np.float64).reshape(repetitions, len(problems), -1)
    return Runs(table[..., 0], table[..., 1], table[..., 2], table[..., 3:])


def test_calls_candidates_and_tokens_of_the_log(log: pd.DataFrame, shipped: Tree) -> None:
    runs = simulated(shipped, np.arange(100), 20)
    assert np.all(runs.proposals == 16)
    assert set(log["propose_calls"]) == {16}
    means = runs.candidates.mean(axis=(0, 1))
    assert means == pytest.approx(log[STEPS].mean().to_numpy(), rel=0.05)
    for ours, theirs in (
        (runs.prompt_tokens, log["tot_prompt_tokens"]),
        (runs.completion_tokens, log["tot_completion_tokens"]),
    ):
        assert ours.mean() == pytest.approx(theirs.mean(), rel=0.05)
        assert np.percentile(ours, 95) == pytest.approx(np.percentile(theirs, 95), rel=0.10)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.15)


def test_the_cache_of_values_warms_up_as_in_the_log(log: pd.DataFrame, shipped: Tree) -> None:
    # Prompt tokens per problem in the first, second and last quarter of the run.
    ours = simulated(shipped, np.arange(100), 20).prompt_tokens.mean(axis=0)
    theirs = log["tot_prompt_tokens"].to_numpy(dtype=float)
    for quarter in (slice(0, 25), slice(25, 50), slice(75, 100)):
        error = theirs[quarter].std() / 5
        assert abs(ours[quarter].mean() - theirs[quarter].mean()) < 2.5 * error
    assert ours[:10].mean() > 1.5 * ours[-25:].mean()


# --- Held out.


def fitted(shipped: Tree, half: pd.DataFrame) -> Tree:
    """Fit to some problems: candidates, the common factors of new states and of vote lengths.

    What does not come from rows of the log stays as it is shipped: prompts, exponents, and the
    relative levels of stages.
    """
    data = shipped.model_dump()
    for stage, step, proposals in zip(data["stages"], STEPS, PROPOSALS, strict=True):
        mean = half[step].mean() / proposals
        variance = half[step].var() / proposals
        square = np.log1p(variance / mean**2)
        stage["generate"]["candidates"]["median"] = float(mean / np.exp(square / 2))
        stage["generate"]["candidates"]["sigma"] = float(np.sqrt(square))
    problems = half["problem"].to_numpy() - 900
    for _ in range(4):
        runs = simulated(Tree.model_validate(data), problems, 5)
        # Proposals have their prompts whatever is valued: 3,200 tokens.
        new = (half["tot_prompt_tokens"].mean() - 3200) / (runs.prompt_tokens.mean() - 3200)
        votes = half["tot_completion_tokens"].mean() / runs.completion_tokens.mean() / new
        scale(data, float(new), float(votes))
    return Tree.model_validate(data)


def scale(data: dict[str, Any], new: float, votes: float) -> None:
    for stage in data["stages"]:
        stage["value"]["new_states"]["first_fraction"] *= new
        stage["value"]["vote_tokens"]["median_tokens"] *= votes


def error_of(figure: Figure, tokens: NDArray[np.float64]) -> float:
    """Bootstrap the standard error of a figure of some problems."""
    draws = np.random.default_rng(0).integers(len(tokens), size=(2000, len(tokens)))
    return float(np.std([figure(tokens[draw]) for draw in draws]))


def percentile_95(tokens: NDArray[np.float64]) -> float:
    return float(np.percentile(tokens, 95))


@pytest.mark.parametrize("figure", [np.mean, percentile_95], ids=["mean", "p95"])
@pytest.mark.parametrize("fitted_to", [0, 1], ids=["even", "odd"])
def test_one_half_foretells_the_other(
    log: pd.DataFrame, shipped: Tree, fitted_to: int, figure: Figure
) -> None:
    parity = log["problem"] % 2
    half, other = log[parity == fitted_to], log[parity != fitted_to]
    runs = simulated(fitted(shipped, half), other["problem"].to_numpy() - 900, 10)
    for name, ours in (
        ("tot_prompt_tokens", runs.prompt_tokens),
        ("tot_completion_tokens", runs.completion_tokens),
    ):
        seen, theirs = (rows[name].to_numpy(dtype=float) for rows in (half, other))
        # Both halves are samples of 50 problems: the error is that of a difference. Of eight
        # comparisons one in twenty may be beyond 2.73 errors by chance (Bonferroni).
        error = np.hypot(error_of(figure, seen), error_of(figure, theirs))
        assert abs(figure(ours.ravel()) - figure(theirs)) < 2.73 * error
