"""The page: complete, safe to open, and no worse for those who cannot see it."""

import dataclasses
import re
from collections import Counter
from functools import lru_cache
from html.parser import HTMLParser

import pytest
from report_fixtures import (
    eight_cases,
    four_cases,
    hostile,
    nothing_completed,
    one_case,
    rented,
    several_parts,
)

from sim.report.charts import draw_charts
from sim.report.data import RunTables
from sim.report.html import inline_svg, report_page

RUNS = {
    "four": four_cases,
    "one": one_case,
    "nothing": nothing_completed,
    "rented": rented,
    "eight": eight_cases,
    "hostile": hostile,
    "parts": several_parts,
}
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements, ids and text of a page; fails on a tag that closes what is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


@lru_cache
def page(run: str) -> str:
    tables: RunTables = RUNS[run]()
    return report_page(tables, draw_charts(tables))


@pytest.mark.parametrize("run", RUNS)
def test_the_page_is_whole_and_loads_nothing(run: str) -> None:
    parsed = Page(page(run))
    names = {name for name, _ in parsed.elements}
    assert not names & {"script", "iframe", "link", "img", "object", "embed", "form"}
    for name, attributes in parsed.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            if key in {"src", "href", "xlink:href", "action", "srcset", "data"}:
                assert str(value).startswith("#"), (name, value)
    assert "@import" not in page(run)
    assert not re.search(r"url\((?!#)", page(run))
    policies = [m for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert str(policies[0]["content"]).startswith("default-src 'none'")


@pytest.mark.parametrize("run", RUNS)
def test_ids_are_unique_and_references_lead_somewhere(run: str) -> None:
    parsed = Page(page(run))
    ids = [str(attributes["id"]) for _, attributes in parsed.elements if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    for _, attributes in parsed.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert set(str(attributes.get(key) or "").split()) <= set(ids)
        for key in ("href", "xlink:href"):
            if attributes.get(key):
                assert str(attributes[key])[1:] in ids
    for target in re.findall(r"url\(#([^)]+)\)", page(run)):
        assert target in ids


@pytest.mark.parametrize("run", RUNS)
def test_the_page_can_be_read_without_eyes(run: str) -> None:
    parsed = Page(page(run))
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("h1")) == 1
    assert all(head.get("scope") for head in parsed.all("th"))
    drawings = parsed.all("svg")
    assert drawings
    assert all(d["role"] == "img" and d["aria-labelledby"] for d in drawings)
    for region in parsed.elements:
        if "scroll" in str(region[1].get("class")):
            assert region[1]["tabindex"] == "0"
            assert region[1].get("aria-label") or region[1].get("aria-labelledby")


@pytest.mark.parametrize("run", RUNS)
def test_no_number_is_written_as_nan(run: str) -> None:
    assert not re.search(r"\b(nan|None|inf|<NA>)\b", Page(page(run)).words)


def test_the_sections_are_there_in_order() -> None:
    words = Page(page("four")).words
    parts = [
        "Which system serves Llama 3.1 70B chat",
        "All 4 cases were offered 4 requests per second.",
        "Read this first",
        "GB300: all-reduce over 8 chips extrapolated from measurements over 4.",
        "Energy per output token",
        "Bar chart. Cost per million tokens",
        "Where the price comes from",
        "What the forecast rests on",
        "rackcast run scenarios/llama_70b_chat.yaml --seed 7",
        "ab" * 32,
        "requests per second that met the SLO",
    ]
    places = [words.find(part, 0) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_summary_has_each_number_with_its_unit_and_interval() -> None:
    words = Page(page("four")).words
    # All tokens of 8x H100: 1.62, 5 % below and 7 % above.
    assert "All tokens together USD/million 1.62 1.54 to 1.73 1.21" in words
    assert "Output tokens per chip tokens/s 520 710 1,650 2,900" in words
    assert "Chips 8 8 8 72" in words


def test_the_total_of_a_bill_is_the_sum_of_its_lines() -> None:
    tables = four_cases()
    rows = tables.bill[tables.bill["case"] == "8x B200"]
    hourly = float(rows["usd_per_hour"].sum())
    # 0.66 USD x 1650 tokens/s x 8 chips x 3600 s / 1e6 / 0.8
    assert abs(hourly - 39.204) < 1e-9
    words = Page(page("four")).words
    section = words[words.index("Where the price comes from") :]
    assert "total $39.20" in section


def test_a_case_that_completed_nothing_is_dashes_and_a_sentence() -> None:
    words = Page(page("nothing")).words
    assert "8x H100 completed no request: its cost, times and energy are not defined." in words
    assert "All tokens together USD/million \N{EN DASH} 0.660" in words


def test_one_case_has_no_curve_and_no_notes() -> None:
    text = page("one")
    assert "curve.csv" not in text
    assert "Read this first" not in text
    assert text.count("<svg") == 4
    assert page("four").count("<svg") == 6


def test_equal_grounds_of_all_cases_are_said_once() -> None:
    words = Page(page("four")).words
    assert words.count("Azure 2023 conversation") == 1
    assert "measured: public trace, 19,366 requests all cases" in words
    assert "all cases" not in Page(page("one")).words


def test_foreign_text_stays_text() -> None:
    text, words = page("hostile"), Page(page("hostile")).words
    for bad in ("<script", "<img", "<b>x", "<i>quoted", "<u>", "<s>"):
        assert bad not in text
    for shown in (
        "<img src=http://example.com/x.png onerror=alert(2)>",
        "<i>quoted</i> & \"so on\" 'here'",
        "rackcast run '<script>'",
        "<u>f</u>",
        "<s>00</s>",
        "scenario <b>x</b>&_$%",
        '"c" --> <!-- \' </svg>',
    ):
        assert shown in words
    assert "<!--" not in text


def test_a_page_has_two_themes_and_no_fixed_colour_in_its_drawings() -> None:
    text = page("eight")
    assert "prefers-color-scheme: dark" in text
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.search(r"(fill|stroke): #", drawings)
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", text))
    declared = set(re.findall(r"(--[a-z0-9-]+):", text))
    assert used <= declared


def test_inline_drawings_are_free_of_what_belongs_to_files() -> None:
    for chart in draw_charts(one_case()):
        svg = inline_svg(chart)
        assert svg.startswith(f'<svg role="img" aria-labelledby="alt-{chart.name}"')
        for part in ("<?xml", "<!DOCTYPE", "<!--", "<metadata", "<style", ' width="720'):
            assert part not in svg
        assert 'viewBox="' in svg


def test_the_page_is_the_same_each_time() -> None:
    tables = four_cases()
    assert report_page(tables, draw_charts(tables)) == page("four")


def test_caveats_stand_in_the_head_of_their_column() -> None:
    tables = four_cases()
    summary = tables.summary.assign(caveats=["", "not calibrated, speculative chip", "", ""])
    page = report_page(dataclasses.replace(tables, summary=summary), ())
    assert page.count('<span class="runs caveats">') == 1
    assert '<span class="runs caveats">not calibrated, speculative chip</span></th>' in page


def test_a_note_stands_once_with_all_its_cases() -> None:
    tables = four_cases()
    first, second, *others = tables.cases
    notes = ["Of the run.", f"{first}: guessed.", f"{second}: guessed.", f"{first}: short."]
    notes += [f"{case}: few." for case in (first, second, *others)]
    page = report_page(dataclasses.replace(tables, notes=tuple(notes)), ())
    said = re.findall(r"<li>(.*)</li>", page.partition("Read this first")[2].partition("</ul>")[0])
    assert said == [
        "Of the run.",
        f"<b>{first}; {second}:</b> guessed.",
        f"<b>{first}:</b> short.",
        "<b>all cases:</b> few.",
    ]


def test_pools_and_tenants_have_tables_where_there_are_several() -> None:
    found = Page(page("parts")).words
    for words in ("Pools", "prefill", "decode", "Tenants", "chat", "search"):
        assert words in found, words
    # of the case with one pool and the case with one tenant nothing is repeated
    assert "serve" not in found.split("Pools")[-1].split("Charts")[0].split()
    assert "Tenants" not in Page(page("four")).words


def test_mishaps_are_silent_where_there_was_none() -> None:
    assert "Preemptions" not in Page(page("four")).words
    tables = four_cases()
    preempted = tables.summary.assign(preemptions=[0, 3, 0, 0])
    changed = dataclasses.replace(tables, summary=preempted)
    assert "Preemptions" in Page(report_page(changed, ())).words


def test_a_note_of_a_pool_is_said_to_be_of_it() -> None:
    note = "8x H100, prefill: something to know."
    tables = dataclasses.replace(several_parts(), notes=(note,))
    text = report_page(tables, ())
    assert "<b>8x H100 (prefill):</b> something to know." in text
