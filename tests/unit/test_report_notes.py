"""Notes of a run: each said once, with the cases and pools that it is about."""

import pytest

from sim.report.notes import merged

POOLS = {
    "together": ("serve",),
    "apart": ("prefill", "decode"),
    "apart, sent by layers": ("prefill", "decode"),
    "large": ("serve",),
}


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        (["Of the run."], "Of the run."),
        (["apart: far."], "apart: far."),
        (["apart, decode: far."], "apart (decode): far."),
        # both pools of a case are the case
        (["apart, prefill: far.", "apart, decode: far."], "apart: far."),
        # names of cases have commas of their own
        (
            ["together: far.", "apart, sent by layers: far.", "apart, decode: far."],
            "together; apart (decode); apart, sent by layers: far.",
        ),
        (
            ["apart, sent by layers, decode: far.", "apart, sent by layers, prefill: far."],
            "apart, sent by layers: far.",
        ),
        (
            [
                "together: far.",
                "apart, prefill: far.",
                "apart, decode: far.",
                "apart, sent by layers: far.",
                "large: far.",
            ],
            "all cases: far.",
        ),
        # of one of them a pool is missing
        (
            ["together: far.", "apart, prefill: far.", "large: far."],
            "together; apart (prefill); large: far.",
        ),
    ],
)
def test_a_note_is_said_once_of_all_that_it_is_about(notes: list[str], said: str) -> None:
    assert [str(each) for each in merged(notes, POOLS)] == [said]


def test_other_words_are_other_notes_in_the_order_of_the_run() -> None:
    notes = ["apart: far.", "Of the run.", "together: near.", "together: far."]
    assert [str(each) for each in merged(notes, POOLS)] == [
        "together; apart: far.",
        "Of the run.",
        "together: near.",
    ]
