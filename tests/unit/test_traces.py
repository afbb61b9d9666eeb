"""Reading recorded traces: both formats, every complaint, and the options."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sim.errors import InputError
from sim.workload.traces import TraceOptions, read_trace

HEADER = "arrival_s,input_tokens,output_tokens\n"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
FOUR_ROWS = HEADER + "5,1,10\n6,2,20\n7.5,3,30\n9,4,40\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def test_plain_columns_types_and_extras(path: Path) -> None:
    path.write_text("client,t_s,output_tokens,input_tokens\na,0,3,10\nb,1.5,4,20\n")
    trace = read_trace(path, "plain")
    assert list(trace.columns) == ["arrival_s", "input_tokens", "output_tokens", "client"]
    assert [str(kind) for kind in trace.dtypes[:3]] == ["float64", "int64", "int64"]
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.input_tokens.tolist() == [10, 20]
    assert trace.output_tokens.tolist() == [3, 4]
    assert trace.client.tolist() == ["a", "b"]


def test_milliseconds_become_seconds(path: Path) -> None:
    path.write_text("t_ms,input_tokens,output_tokens\n0,1,1\n3536999,1,1\n")
    assert read_trace(path, "plain").arrival_s.tolist() == [0.0, 3536.999]


def test_azure_2023_timestamps_of_seven_digits(path: Path) -> None:
    path.write_text(
        AZURE_HEADER
        + "2023-11-16 18:15:46.6805900,374,44\n"
        + "2023-11-16 18:15:50.9951690,396,109\n"
    )
    trace = read_trace(path, "azure")
    # 50.9951690 - 46.6805900 = 4.3145790 s.
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 4.314579], abs=1e-9)
    assert trace.input_tokens.tolist() == [374, 396]
    assert list(trace.columns) == ["arrival_s", "input_tokens", "output_tokens"]


def test_azure_2024_timestamps_with_zone_and_whole_seconds(path: Path) -> None:
    path.write_text(
        AZURE_HEADER
        + "2024-05-12 00:00:00+00:00,10,1\n"
        + "2024-05-12 00:00:00.003956+00:00,20,2\n"
        + "2024-05-13 00:00:00+00:00,30,3\n"
    )
    assert read_trace(path, "azure").arrival_s.tolist() == pytest.approx([0.0, 0.003956, 86_400.0])


def test_blank_lines_at_the_end_and_a_byte_order_mark_do_not_count(path: Path) -> None:
    path.write_text("\ufeff" + HEADER + "0,1,2\n\n\n", encoding="utf-8")
    assert len(read_trace(path, "plain")) == 1


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("0,1,2\n1,-4,3\n2,-5,3\n", ":3: input_tokens: '-4': .* cannot be negative .2 such rows"),
        ("0,1,2\n1,4,-1\n", ":3: output_tokens: '-1': .* cannot be negative"),
        ("0,0,2\n", ":2: input_tokens: '0': a prompt has at least 1 token"),
        ("0,1,2\n1,4,0\n", ":3: output_tokens: '0': .* or set zero_output: drop"),
        ("0,1,2\n3,4,5\n2,6,7\n", ":4: arrival_s: '2': earlier .* or set unsorted: sort"),
        ("0,1,2\n1,many,3\n", ":3: input_tokens: 'many': not a finite number"),
        ("0,1,2\n1,,3\n", ":3: input_tokens: nothing: not a finite number"),
        ("0,1,2\n1,NaN,3\n", ":3: input_tokens: nothing: not a finite number"),
        ("0,1,2\ninf,1,3\n", ":3: arrival_s: 'inf': not a finite number"),
        ("0,True,2\n", ":2: input_tokens: 'True': not a finite number"),
        ("0,1,2.5\n", ":2: output_tokens: '2.5': .* must be whole"),
        ("0,1,1e30\n", ":2: output_tokens: '1e.30': .* must be whole, and below"),
        ("-1,1,2\n", ":2: arrival_s: '-1': times count from the start"),
        ("0,1,2\n\n1,1,2\n", ":3: arrival_s: nothing"),
        ("0,1,2\n1,1\n", ":3: output_tokens: nothing"),
        ("0,1,2\n1,1,2,3\n", "Expected 3 fields in line 3, saw 4"),
        ("0,1,2,3\n1,1,2,3\n", "does not match length of data"),
        ("", "has a header but no rows"),
    ],
)
def test_irregular_rows_are_named(path: Path, rows: str, complaint: str) -> None:
    path.write_text(HEADER + rows)
    with pytest.raises(InputError, match=complaint) as raised:
        read_trace(path, "plain")
    assert str(path) in str(raised.value)


def test_irregular_timestamps_are_named(path: Path) -> None:
    path.write_text(AZURE_HEADER + "2023-11-16 18:15:46,1,1\nyesterday,1,1\n")
    with pytest.raises(InputError, match=":3: TIMESTAMP: 'yesterday': not a time such as"):
        read_trace(path, "azure")


@pytest.mark.parametrize(
    ("header", "kind", "complaint"),
    [
        ("a,b", "plain", ":1: needs exactly one time column .* found none.* has: a, b"),
        ("t_s,t_ms,input_tokens,output_tokens", "plain", "found t_s and t_ms"),
        ("t_s,input_tokens", "plain", ":1: no column 'output_tokens'; the header has: t_s, input"),
        ("t_s,input_tokens,output_tokens", "azure", ":1: no column 'TIMESTAMP'"),
    ],
)
def test_wrong_headers_are_named(path: Path, header: str, kind: Any, complaint: str) -> None:
    path.write_text(header + "\n" + ",".join("1" for _ in header.split(",")) + "\n")
    with pytest.raises(InputError, match=complaint):
        read_trace(path, kind)


def test_files_that_are_none(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_trace(path, "plain")
    with pytest.raises(InputError, match="is a folder"):
        read_trace(tmp_path, "plain")
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_trace(path, "plain")
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_trace(path, "plain")


def test_zero_outputs_can_be_dropped(path: Path) -> None:
    path.write_text(HEADER + "0,1,2\n1,4,0\n2,6,7\n")
    trace = read_trace(path, "plain", TraceOptions(zero_output="drop"))
    assert trace.input_tokens.tolist() == [1, 6]
    assert trace.index.tolist() == [0, 1]


def test_sorting_keeps_the_order_of_ties(path: Path) -> None:
    path.write_text(HEADER + "2,1,1\n1,2,1\n2,3,1\n1,4,1\n")
    trace = read_trace(path, "plain", TraceOptions(unsorted="sort"))
    assert trace.input_tokens.tolist() == [2, 4, 1, 3]


def test_unsorted_timestamps_count_from_the_earliest(path: Path) -> None:
    path.write_text(AZURE_HEADER + "2023-11-16 18:00:03,1,1\n2023-11-16 18:00:01,2,1\n")
    trace = read_trace(path, "azure", TraceOptions(unsorted="sort"))
    assert trace.arrival_s.tolist() == [0.0, 2.0]
    assert trace.input_tokens.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("options", "arrival_s"),
    [
        ({}, [5.0, 6.0, 7.5, 9.0]),
        ({"start_s": 6.0}, [0.0, 1.5, 3.0]),
        ({"end_s": 7.5}, [5.0, 6.0]),
        ({"start_s": "6 s", "end_s": 9}, [0.0, 1.5]),
        ({"max_requests": 3}, [5.0, 6.0, 7.5]),
        ({"time_scale": 0.5}, [2.5, 3.0, 3.75, 4.5]),
        ({"start_s": 5.5, "max_requests": 2, "time_scale": 2.0}, [1.0, 4.0]),
    ],
)
def test_window_limit_and_time_scale(
    path: Path, options: dict[str, Any], arrival_s: list[float]
) -> None:
    path.write_text(FOUR_ROWS)
    trace = read_trace(path, "plain", TraceOptions.model_validate(options))
    assert trace.arrival_s.tolist() == arrival_s


def test_an_empty_selection_says_so(path: Path) -> None:
    path.write_text(FOUR_ROWS)
    with pytest.raises(InputError, match="no request is left of 4"):
        read_trace(path, "plain", TraceOptions(start_s=100.0))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start_s": 2.0, "end_s": 2.0}, "end_s 2.0 must be after start_s 2.0"),
        ({"time_scale": 0}, "greater than 0"),
        ({"max_requests": 0}, "greater than 0"),
        ({"zero_output": "keep"}, "'error' or 'drop'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TraceOptions.model_validate(options)
