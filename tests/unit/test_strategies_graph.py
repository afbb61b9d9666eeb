"""Graphs of calls: what they read, when they begin, and what is refused.

The question has 100 tokens and a direct answer 20.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fake_question import FakeQuestion, ToldQuestion, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_executor import answered_in_any_order
from timed_executor import timed

from sim.errors import InputError
from sim.quality import Unknown
from sim.schema import load_yaml, validate
from sim.workload.programs import Call, Task, answered_at_once
from sim.workload.single import ConstantTokens
from sim.workload.strategies.graph import MAX_DEPTH, Graph


def unknown_task(seed: int = 0) -> Task:
    return Task(0, np.random.default_rng(seed), Unknown(), 100, ConstantTokens(tokens=20), 1000)


def graph(text: str) -> Graph:
    return validate(Graph, load_yaml(text, "graph.yaml"))


def calls_of(law: Graph) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    for call in answered_at_once(law.control(unknown_task())).calls:
        calls.setdefault(call.label, []).append(call)
    return calls


DRAFTS = """
nodes:
  plan:
    prompt: {head_tokens: 50}
    output_tokens: {kind: constant, tokens: 30}
  draft:
    count: 3
    prompt:
      context: [{node: plan, take: transcript}]
      new_tokens: {kind: constant, tokens: 5}
  review:
    count: 3
    model: judge
    prompt:
      head_tokens: 40
      context: [{node: draft, copies: same}]
    output_tokens: {kind: constant, tokens: 7}
  merge:
    prompt:
      question: false
      context: [{node: draft}, {node: review}]
    wait: {kind: constant, duration_s: 2}
"""


# --- What calls read.


def test_calls_and_tokens_by_hand() -> None:
    law = graph(DRAFTS)
    calls = calls_of(law)
    (plan,), drafts, reviews, (merge,) = (calls[n] for n in ("plan", "draft", "review", "merge"))
    assert (plan.input_tokens, plan.output_tokens) == (50 + 100, 30)
    # Drafts continue the plan: 150 + 30, and 5 of their own each.
    assert [call.input_tokens for call in drafts] == [185] * 3
    assert {call.prompt[: len(plan.transcript)] for call in drafts} == {plan.transcript}
    assert len({call.prompt[-1] for call in drafts}) == 3
    # Reviews: 40 + 100 + the draft with the same number.
    assert [call.input_tokens for call in reviews] == [160] * 3
    read = [call.prompt[-1] for call in reviews]
    assert sorted(read) == sorted((call.answer_stream, 0, 20) for call in drafts)
    # All drafts and all reviews, nothing else.
    assert merge.input_tokens == 3 * 20 + 3 * 7
    assert merge.wait_s == 2.0
    assert {call.model for call in reviews} == {"judge"}
    assert law.models == {"judge"}


def test_copies_of_a_node_without_anything_new_have_one_prompt() -> None:
    law = graph("nodes: {sample: {count: 4, prompt: {head_tokens: 10}}}")
    (samples,) = calls_of(law).values()
    assert len(samples) == 4
    assert len({call.prompt for call in samples}) == 1
    assert len({call.answer_stream for call in samples}) == 4


def test_heads_are_shared_by_tasks_and_not_by_nodes() -> None:
    law = graph("nodes: {a: {prompt: {head_tokens: 10}}, b: {prompt: {head_tokens: 10}}}")
    first = calls_of(law)
    assert first["a"][0].prompt[0] == calls_of(law)["a"][0].prompt[0]
    assert first["a"][0].prompt[0] != first["b"][0].prompt[0]


# --- When calls begin.


def test_calls_begin_when_what_they_wait_for_is_over() -> None:
    # Drafts 2, 3, 4 after the plan; each review right after its draft; the merge after the last.
    law = graph(DRAFTS)
    drafts: list[Call] = []

    def duration(call: Call) -> float:
        if call.label != "draft":
            return 1.0
        drafts.append(call)
        return 1.0 + len(drafts)

    run = timed(law.control(unknown_task()), duration)
    sent: dict[str, list[float]] = {}
    for call, when in zip(run.calls, run.sent, strict=True):
        sent.setdefault(call.label, []).append(when)
    assert sent == {"plan": [0.0], "draft": [1.0] * 3, "review": [3.0, 4.0, 5.0], "merge": [6.0]}
    assert run.end == 7.0


def test_after_waits_without_reading() -> None:
    law = graph("nodes: {b: {after: [a]}, a: {}}")
    run = timed(law.control(unknown_task()))
    assert [call.label for call in run.calls] == ["a", "b"]
    assert run.calls[1].input_tokens == 100
    assert run.end == 2


def test_a_graph_that_is_not_nested_needs_no_barrier() -> None:
    # c waits for a and b, d for b alone: d begins with the end of b, though a is still under way.
    law = graph("nodes: {a: {}, b: {}, c: {after: [a, b]}, d: {after: [b]}}")
    times = {"a": 10.0, "b": 1.0, "c": 1.0, "d": 5.0}
    run = timed(law.control(unknown_task()), lambda call: times[call.label])
    sent = dict(zip((call.label for call in run.calls), run.sent, strict=True))
    assert sent == {"a": 0.0, "b": 0.0, "c": 10.0, "d": 1.0}


# --- Loops.


LOOP = """
nodes:
  draft: {}
  critique:
    prompt: {context: [{node: draft, take: transcript}]}
    output_tokens: {kind: constant, tokens: 7}
  rewrite:
    prompt: {context: [{node: critique, take: transcript}]}
    output_tokens: {kind: constant, tokens: 30}
  check:
    prompt: {context: [{node: rewrite}]}
repeat:
  - {nodes: [critique, rewrite], times: 3, feeds: {draft: rewrite}}
"""


def test_a_loop_reads_its_time_before() -> None:
    calls = calls_of(graph(LOOP))
    # 100 + 20; then 7 and 30 more each time round.
    assert [call.input_tokens for call in calls["critique"]] == [120, 157, 194]
    assert [call.input_tokens for call in calls["rewrite"]] == [127, 164, 201]
    # What comes after reads the last time.
    (check,) = calls["check"]
    assert check.prompt[-1] == (calls["rewrite"][2].answer_stream, 0, 30)
    assert timed(graph(LOOP).control(unknown_task())).end == 1 + 3 * 2 + 1


def test_copies_go_round_their_loops_by_themselves() -> None:
    law = graph(
        """
nodes:
  draft: {count: 2}
  rewrite:
    count: 2
    prompt: {context: [{node: draft, copies: same}]}
repeat: [{nodes: [rewrite], times: 2, feeds: {draft: rewrite}}]
"""
    )
    slow: set[int] = set()

    def duration(call: Call) -> float:
        slow.add(call.answer_stream)
        return 1.0 if len(slow) > 1 else 10.0

    run = timed(law.control(unknown_task()), duration)
    # One chain takes 10 + 1 + 1, the other 1 + 1 + 1.
    assert sorted(run.sent) == [0.0, 0.0, 1.0, 2.0, 10.0, 11.0]


def test_a_loop_without_feeds_follows_itself() -> None:
    law = graph("nodes: {a: {}, b: {}}\nrepeat: [{nodes: [a, b], times: 3}]")
    run = timed(law.control(unknown_task()))
    assert run.end == 3
    assert len(run.calls) == 6


# --- Answers.


def test_the_most_frequent_answer_is_given() -> None:
    question = ToldQuestion(told=[4, 0, 0])
    law = graph("nodes: {sample: {count: 3, model: small}}\nanswer: sample")
    assert answered_at_once(law.control(task_of(question))).answer == 0
    assert question.asked == [(3, 1.0, "small")]


def test_without_an_answer_node_nothing_is_known() -> None:
    question = FakeQuestion()
    law = graph("nodes: {sample: {count: 3}}")
    assert answered_at_once(law.control(task_of(question))).answer is None
    assert question.asked == []
    named = graph("nodes: {sample: {count: 3}}\nanswer: sample")
    assert answered_at_once(named.control(unknown_task())).answer is None


# --- How good answers are.

DEBATE = """
nodes:
  draft: {count: 2}
  critique:
    count: 2
    model: small
    prompt: {context: [{node: draft}]}
  rewrite:
    count: 2
    prompt: {context: [{node: draft, copies: same}, {node: critique}]}
    quality: {kind: revision, of: draft}
  merge:
    prompt: {context: [{node: rewrite}]}
    quality: {kind: vote, of: rewrite}
repeat: [{nodes: [critique, rewrite], times: 2, feeds: {draft: rewrite}}]
answer: merge
"""


class CountedRevisions(FakeQuestion):
    """Answers are wrong; the second revision of each makes it right."""

    def revised(
        self, rng: np.random.Generator, answer: int, *, rounds_before: int, **_: Any
    ) -> int:
        del rng
        self.notes.append(f"revised {answer} after {rounds_before}")
        return answer + 10 if rounds_before == 0 else 0


def test_an_answer_that_reads_others_counts_as_one_of_its_length_and_says_so() -> None:
    question = FakeQuestion()
    text = "\n".join(line for line in DEBATE.splitlines() if "quality" not in line)
    answered_at_once(graph(text).control(task_of(question)))
    assert question.asked == [(1, 1.0, "")]
    (note,) = question.notes
    # 2 drafts, and twice 2 critiques and 2 rewritings
    assert "what 10 calls before them (critique, draft, rewrite) do for it is not counted" in note


def test_a_graph_of_one_node_is_no_riddle() -> None:
    question = FakeQuestion()
    answered_at_once(graph("nodes: {a: {count: 3}}\nanswer: a").control(task_of(question)))
    assert not question.notes
    assert question.choices == [(3, "vote")]


def test_revisions_go_round_the_loop_and_a_vote_ends_them() -> None:
    question = CountedRevisions(chance=0.0, wrong=1)
    ledger = answered_at_once(graph(DEBATE).control(task_of(question)))
    assert ledger.answer == 0
    assert question.asked == [(2, 1.0, "")]
    # both drafts are of class 1, and each goes through two rounds
    once, twice = "revised 1 after 0", "revised 11 after 1"
    assert question.notes == [once, once, twice, twice]
    assert question.choices == [(2, "vote")]


def test_one_draft_may_be_revised_by_many() -> None:
    question = CountedRevisions(chance=0.0, wrong=1)
    text = """
nodes:
  draft: {}
  rewrite:
    count: 3
    prompt: {context: [{node: draft}]}
    quality: {kind: revision, of: draft}
answer: rewrite
"""
    assert answered_at_once(graph(text).control(task_of(question))).answer == 11
    assert question.notes == ["revised 1 after 0"] * 3
    assert question.choices == [(3, "vote")]


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (
            "nodes: {a: {}, b: {prompt: {context: [{node: ab}]}}}",
            "nodes.b.prompt.context.0.node",
            "node b waits for ab, which is no node",
        ),
        ("nodes: {a: {}, b: {after: [a, c]}}", "nodes.b.after.1", "node b waits for c"),
        (
            "nodes: {a: {}, b: {after: [a]}}\nrepeat: [{nodes: [b], times: 2, feeds: {a: bb}}]",
            "repeat.0.feeds.a",
            "a loop names bb",
        ),
        (
            "nodes: {a: {}, b: {}}\nrepeat: [{nodes: [a], times: 2}, {nodes: [b, a], times: 2}]",
            "repeat.1.nodes.1",
            "node a is in two loops",
        ),
        ("nodes: {a: {after: [b]}, b: {after: [a]}}", "nodes.", "wait for each other"),
        (
            "nodes: {a: {}, b: {quality: {kind: vote, of: aa}}}",
            "nodes.b.quality.of",
            "node b gives a vote of aa, which is no node",
        ),
        (
            "nodes: {a: {}, b: {quality: {kind: vote, of: a}}}",
            "nodes.b.quality.of",
            "node b gives a vote of a without waiting for it",
        ),
        (
            "nodes: {a: {count: 2}, b: {after: [a], quality: {kind: revision, of: a}}}",
            "nodes.b.quality.of",
            "node b has 1 copies and revises those of a, which has 2",
        ),
        ("nodes: {a: {}}\nanswer: b", "answer", "answer is b"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(text: str, key: str, message: str) -> None:
    line = 2 if key.startswith(("repeat", "answer")) else 1
    with pytest.raises(InputError) as caught:
        graph(text)
    said = str(caught.value)
    assert said.startswith(f"graph.yaml:{line}: {key}")
    assert message in said


def test_a_key_under_a_nodes_name_is_known() -> None:
    with pytest.raises(InputError) as caught:
        graph("nodes:\n  a:\n    wait: {kind: constant, seconds: 0.5}")
    said = str(caught.value).splitlines()
    assert "graph.yaml:3: nodes.a.wait.duration_s: missing key" in said
    keys = "unknown key; allowed keys: kind, duration_s"
    assert f"graph.yaml:3: nodes.a.wait.seconds: {keys}" in said


# --- What is refused.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "nodes: {a: {after: [b]}, b: {after: [c]}, c: {after: [a]}}",
            "nodes wait for each other: .*->.*->.*; one of them must not",
        ),
        ("nodes: {a: {after: [a]}}", "nodes wait for each other: a -> a"),
        (
            "nodes: {draft: {}, check: {after: [drafft]}}",
            "node check waits for drafft, which is no node; did you mean draft",
        ),
        (
            "nodes: {draft: {}, check: {prompt: {context: [{node: zzz}]}}}",
            "zzz, which is no node: draft, check",
        ),
        ("nodes: {draft: {}}\nanswer: draf", "answer is draf, which is no node"),
        (
            "nodes: {a: {}}\nrepeat: [{nodes: [b], times: 2}]",
            "a loop names b, which is no node",
        ),
        (
            "nodes: {a: {}}\nrepeat: [{nodes: [a], times: 2}, {nodes: [a], times: 3}]",
            "node a is in two loops",
        ),
        (
            "nodes: {a: {}, b: {}}\nrepeat: [{nodes: [b], times: 2, feeds: {a: b}}]",
            "feeds a: b must lead from a node outside of the loop that a node of the loop",
        ),
        (
            "nodes: {a: {count: 2}, b: {prompt: {context: [{node: a, copies: same}]}}}",
            "node b has 1 copies and reads the same copy of a, which has 2",
        ),
        (
            "nodes: {a: {count: 2}, b: {prompt: {context: [{node: a, take: transcript}]}}}",
            "node b cannot continue all 2 transcripts of a; set copies: same",
        ),
        (
            "nodes: {a: {}, b: {prompt: {head_tokens: 5, context: [{node: a, take: transcript}]}}}",
            "a transcript stands at the start of a prompt",
        ),
        (
            "nodes: {a: {}, b: {prompt: {context: [{node: a}, {node: a, take: transcript}]}}}",
            "a transcript stands at the start of a prompt",
        ),
        ("nodes: {a: {prompt: {question: false}}}", "the prompt is empty"),
        (
            "nodes: {a: {count: 200}}\nrepeat: [{nodes: [a], times: 51}]",
            "10200 calls are more than 10000",
        ),
        (
            f"nodes: {{a: {{}}}}\nrepeat: [{{nodes: [a], times: {MAX_DEPTH + 1}}}]",
            f"{MAX_DEPTH + 1} calls one after the other are more than {MAX_DEPTH}",
        ),
        ("nodes: {}", "too short|at least 1"),
        ("nodes: {'Big Name': {}}", "Big Name"),
    ],
)
def test_what_cannot_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        graph(text)


def test_the_deepest_graph_runs() -> None:
    law = graph(f"nodes: {{a: {{}}, b: {{}}}}\nrepeat: [{{nodes: [a, b], times: {MAX_DEPTH}}}]")
    assert len(answered_at_once(law.control(unknown_task())).calls) == 2 * MAX_DEPTH


# --- Any graph.


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Give graphs of up to eight nodes, each of which may wait for or read earlier ones."""
    size = draw(st.integers(1, 8))
    order = draw(st.permutations(range(size)))
    counts = [draw(st.integers(1, 3)) for _ in range(size)]
    nodes: dict[str, Any] = {}
    for place, number in enumerate(order):
        before = order[:place]
        after, context = [], []
        for other in before:
            how = draw(st.sampled_from(["no", "no", "after", "all", "same"]))
            if how == "after":
                after.append(f"n{other}")
            elif how == "all":
                context.append({"node": f"n{other}"})
            elif how == "same" and counts[other] == counts[number]:
                context.append({"node": f"n{other}", "copies": "same"})
        nodes[f"n{number}"] = {
            "count": counts[number],
            "after": after,
            "prompt": {"context": context},
            "output_tokens": {"kind": "uniform", "min_tokens": 1, "max_tokens": 9},
        }
    shuffled = draw(st.permutations(list(nodes)))
    return Graph.model_validate({"nodes": {name: nodes[name] for name in shuffled}})


@given(graphs(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_every_call_begins_at_the_end_of_its_last_parent(law: Graph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    run = timed(law.control(unknown_task(seed)), lambda _: float(rng.random()))
    times = list(zip(run.calls, run.sent, run.answered, strict=True))
    assert len(times) == sum(node.count for node in law.nodes.values())
    assert len({call.answer_stream for call in run.calls}) == len(times)
    for call, sent, _ in times:
        node = law.nodes[call.label]
        # What it reads it names by its stream; what it waits for only, by its label.
        read = {stream for stream, _, _ in call.prompt}
        ends = [
            end
            for other, _, end in times
            if other.answer_stream in read or other.label in node.after
        ]
        assert sent == max(ends, default=0.0)
        assert read >= {
            other.answer_stream
            for other in run.calls
            for context in node.prompt.context
            if context.node == other.label and context.copies == "all"
        }


@given(graphs(), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_the_order_of_answers_changes_nothing(law: Graph, seed: int) -> None:
    ledger = answered_at_once(law.control(unknown_task(seed)))
    shuffled = answered_in_any_order(law.control(unknown_task(seed)), np.random.default_rng(seed))
    assert Counter(shuffled.calls) == Counter(ledger.calls)
