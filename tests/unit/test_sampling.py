"""Several answers to one prompt."""

import numpy as np

from sim.catalog import open_catalog
from sim.scenario import load_scenario
from sim.service import service_of
from sim.simulate import simulate
from sim.workload.draw import draw
from sim.workload.kinds import OpenLoopWorkload
from sim.workload.requests import Traffic

CATALOG = open_catalog()
PROMPTS = 300


def drawn(samples: int, **changes: object) -> Traffic:
    told = {
        "kind": "open_loop",
        "lengths": {
            "kind": "uniform_range",
            "input_tokens": 2000,
            "output_tokens": 400,
            "low_fraction": 0.1,
        },
        "arrivals": {"kind": "poisson", "rate_requests_per_s": 2.0},
        "requests": PROMPTS,
        "samples": samples,
    }
    return draw(OpenLoopWorkload.model_validate(told | changes), CATALOG, 1)


def test_one_answer_is_the_usual() -> None:
    assert (drawn(1).session, drawn(1).contents, len(drawn(1))) == (None, None, PROMPTS)


def test_the_samples_of_a_prompt_are_sent_together() -> None:
    one, four = drawn(1), drawn(4)
    assert len(four) == 4 * PROMPTS
    for name in ("input_tokens", "arrival_s"):
        rows = getattr(four, name).reshape(PROMPTS, 4)
        np.testing.assert_array_equal(rows, np.repeat(getattr(one, name)[:, None], 4, axis=1))
    assert four.session is not None
    assert four.turn is not None
    np.testing.assert_array_equal(four.session, np.arange(4 * PROMPTS) // 4)
    np.testing.assert_array_equal(four.turn, np.arange(4 * PROMPTS) % 4)


def test_the_answers_are_drawn_one_by_one() -> None:
    one, four = drawn(1), drawn(4)
    answers = four.output_tokens.reshape(PROMPTS, 4)
    np.testing.assert_array_equal(answers[:, 0], one.output_tokens)
    # 40 to 400 tokens, evenly: the mean of 900 has a standard error of 104 / 30 = 3.5
    assert abs(answers[:, 1:].mean() - 220) < 4 * 3.5
    correlation = np.corrcoef(answers.T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(PROMPTS)
    assert drawn(3, max_tokens=100).output_tokens.max() == 100


def test_prompts_are_equal_and_answers_are_not() -> None:
    rows = list(drawn(2).rows())
    assert all(
        first.content == other.content for first, other in zip(rows[::2], rows[1::2], strict=True)
    )
    assert len({row.content for row in rows}) == PROMPTS
    assert all(row.answer is None for row in rows)  # nobody finds the answer of another sample


def test_a_prompt_is_computed_once_where_prefixes_are_found() -> None:
    path = CATALOG.path("scenarios", "serving/parallel_samples")
    for case in load_scenario(path).cases:
        workload = case.workload
        assert isinstance(workload, OpenLoopWorkload)
        found = simulate(service_of(case, CATALOG), CATALOG, 1).record.requests
        sample, cached = found["turn"], found["cached_tokens"]
        assert len(sample) == workload.samples * (workload.requests or 0)
        # 1,024 tokens are 64 blocks of 16, and the last token is always computed: 63 are found
        wanted = 63 * 16 if case.engine.prefix_caching else 0
        assert (cached[sample > 0] == wanted).all()
        assert (cached[sample == 0] == 0).all()
