"""Descriptions of catalogued strategies say how many calls and tokens they take: they are counted.

A description ends in ``(CALLS, TOKENS)``. Calls are one number, a range from the least to the most,
or ``about`` a mean; tokens are those written in all calls: multiples of one answer, those of
lengths of the strategy's own, or both. Counted with answers of 200 and of 400 tokens: what grows
with the answers are the multiples, the rest is the strategy's own.
"""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from fake_question import FakeQuestion

from sim.catalog import open_catalog
from sim.schema import Located
from sim.workload.programs import Task, answered_at_once
from sim.workload.single import ConstantTokens
from sim.workload.strategies.entry import read_entry
from sim.workload.strategies.kinds import StrategyKind

CATALOG = open_catalog()
QUESTIONS = 100
GOLDEN_RATIO = (5**0.5 - 1) / 2
TOLERANCE = 0.15
"""Of what is said with "about": the spread of means over so many questions."""
FEW_FRACTION = 0.02
"""Of all tokens, which need not be named: verdicts of a token each."""

NUMBER = r"([\d,]+)"
RANGE = rf"{NUMBER}(?: to {NUMBER})?"
CALLS = re.compile(rf"\((about )?{RANGE} calls?\b")
TIMES = re.compile(rf"(?:{RANGE} times )?the tokens of one answer\b")
OWN = re.compile(rf"(?:about )?{NUMBER} (?:more|tokens)\b")


class AnyQuestion(FakeQuestion):
    """Revisions are right in two of five cases, searches always."""

    def revised(self, rng: np.random.Generator, answer: int, **_: object) -> int:
        del answer
        return int(rng.random() > 0.4)

    def searched(self, rng: np.random.Generator, **_: object) -> int:
        del rng
        return 0


@dataclass(frozen=True)
class Counted:
    calls: list[int]
    times: list[float]
    own: list[float]


def file_of(name: str) -> Located:
    return CATALOG.located("strategies", name)


def count(strategy: StrategyKind) -> Counted:
    """Count over questions of all difficulties, a hopeless and a sure one first."""
    chances = [0.0, 1.0, *(GOLDEN_RATIO * np.arange(QUESTIONS) % 1.0)]
    found = Counted([], [], [])
    for number, chance in enumerate(chances):
        short, long = (
            answered_at_once(
                strategy.control(
                    Task(
                        number,
                        np.random.default_rng(number),
                        AnyQuestion(chance=float(chance), wrong=7),
                        100,
                        ConstantTokens(tokens=tokens),
                        1000,
                    )
                )
            )
            for tokens in (200, 400)
        )
        times = (long.output_tokens - short.output_tokens) / 200
        found.calls.append(len(short.calls))
        found.times.append(times)
        found.own.append(short.output_tokens - 200 * times)
    return found


def number(text: str) -> int:
    return int(text.replace(",", ""))


def ends(match: re.Match[str], group: int) -> tuple[int, int]:
    """Give both ends of a range; of a single number twice that."""
    low, high = match.group(group), match.group(group + 1)
    return number(low or "1"), number(high or low or "1")


@pytest.mark.parametrize("name", CATALOG.names("strategies"))
def test_descriptions_say_what_a_strategy_takes(name: str) -> None:
    entry = read_entry(file_of(name), file_of)
    said = entry.description[entry.description.rfind("(") :]
    counted = count(entry.strategy)
    calls = CALLS.match(said)
    assert calls is not None, said
    least, most = ends(calls, 2)
    if calls.group(1):
        assert np.mean(counted.calls[2:]) == pytest.approx(least, rel=TOLERANCE)
    else:
        assert (min(counted.calls), max(counted.calls)) == (least, most)
    times = TIMES.search(said)
    said_times = (0, 0) if times is None else ends(times, 1)
    assert (min(counted.times), max(counted.times)) == said_times
    own = OWN.search(said)
    if own is None:
        few = FEW_FRACTION * 200 * np.mean(counted.times)
        assert np.mean(counted.own) <= few
    else:
        assert np.mean(counted.own[2:]) == pytest.approx(number(own.group(1)), rel=TOLERANCE)
