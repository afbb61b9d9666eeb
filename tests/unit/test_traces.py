"""Reading recorded traces: every format, every complaint, and the options."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sim.errors import InputError
from sim.workload.content import PROMPT_STREAM, tokens_of
from sim.workload.mix import mixed
from sim.workload.replay import replayed
from sim.workload.traces import TraceOptions, read_trace

TRACES = Path(__file__).parents[2].parent / "shared" / "traces"

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


def test_plain_optional_columns(path: Path) -> None:
    path.write_text(
        "t_s,input_tokens,output_tokens,tenant,priority,max_tokens,block_ids,note\n"
        "0,1000,3,01,2,8,7-8,x\n"
        "1,600,4,b,-1,4,7,y\n"
    )
    traffic = replayed(path, "plain")
    assert traffic.tenant_names == ("01", "b")
    first, second = traffic.rows()
    assert (first.tenant, first.priority, first.max_tokens) == (0, 2, 8)
    assert (second.tenant, second.priority, second.max_tokens) == (1, -1, 4)
    # Block 7 of 512 tokens starts at 3,584; the last block is cut, what no block names is private.
    assert first.content == ((-1, 3584, 1000),)
    assert second.content == ((-1, 3584, 512), (PROMPT_STREAM - 1, 0, 88))
    assert first.answer is None
    assert list(read_trace(path, "plain").columns)[-1] == "note"


def test_plain_sessions_share_what_was_said_before(path: Path) -> None:
    path.write_text("t_s,input_tokens,output_tokens,session\n0,10,5,a\n1,20,5,b\n2,30,5,a\n")
    rows = list(replayed(path, "plain").rows())
    assert [row.content for row in rows] == [((0, 0, 10),), ((1, 0, 20),), ((0, 0, 30),)]
    assert [(row.session, row.turn) for row in rows] == [(0, 0), (1, 0), (0, 1)]
    assert rows[0].answer == (0, 10)


def test_mooncake_as_published_and_as_csv_are_the_same(tmp_path: Path) -> None:
    published, table = tmp_path / "trace.jsonl", tmp_path / "trace.csv"
    rows = [(0, 1100, 52, [46, 47, 48]), (3000, 1500, 7, [46, 90, 91])]
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    published.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    table.write_text(
        "t_ms,input_tokens,output_tokens,hash_ids\n0,1100,52,46-48\n3000,1500,7,46 90-91\n"
    )
    as_json, as_csv = (read_trace(file, "mooncake") for file in (published, table))
    assert as_json.equals(as_csv)
    # 46 * 512 = 23,552; 90 * 512 = 46,080; the runs are cut after 1,100 and 1,500 tokens.
    expected = [((-1, 23552, 1100),), ((-1, 23552, 512), (-1, 46080, 988))]
    assert as_json.content.tolist() == expected
    assert as_json.arrival_s.tolist() == [0.0, 3.0]


def test_bailian_sessions_follow_parents(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    keys = ["chat_id", "parent_chat_id", "timestamp", "input_length", "output_length"]
    keys += ["type", "turn", "hash_ids"]
    rows = [(5, -1, 0.5, 20, 3, "text", 1, [0, 1]), (9, 5, 7.25, 40, 3, "text", 2, [0, 1, 7])]
    rows.append((11, 9, 8.0, 60, 3, "text", 3, [0, 1, 7, 8]))
    path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    trace = read_trace(path, "bailian")
    assert trace.session.tolist() == ["5", "5", "5"]
    assert trace.turn.tolist() == [0, 1, 2]
    assert trace.content[1] == ((-1, 0, 32), (-1, 112, 8))


def test_burstgpt_failures_and_sessions(path: Path) -> None:
    path.write_text(
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n"
        "5,17,1.5,ChatGPT,472,18,490,Conversation log\n"
        "6,,2.5,GPT-4,10,20,30,API log\n"
        "7,17,0.1,ChatGPT,0,0,0,Conversation log\n"
    )
    with pytest.raises(InputError, match=r":4: Response tokens: '0': .* zero_output: drop"):
        read_trace(path, "burstgpt")
    traffic = replayed(path, "burstgpt", TraceOptions(zero_output="drop"))
    assert traffic.tenant_names == ("ChatGPT", "GPT-4")
    assert [(row.tenant, row.session) for row in traffic.rows()] == [(0, 0), (1, -1)]
    assert traffic.contents is None


def test_servegen_clients_are_tenants(path: Path) -> None:
    path.write_text("t_s,input_tokens,output_tokens,client\n0,7,8,59\n1,7,8,12\n")
    traffic = replayed(path, "servegen")
    assert traffic.tenant_names == ("12", "59")
    assert [row.tenant for row in traffic.rows()] == [1, 0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", ":1: not valid JSON"),
        ("[1]", ":1: not a JSON object"),
        ('{"timestamp": 0}', ":1: no column 'input_length'; the first line has: timestamp"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1, "a"]}',
            ":1: hash_ids: .*not a list of block ids",
        ),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n'
            '{"timestamp": 0, "input_length": -5, "output_length": 1, "hash_ids": [1]}',
            ":2: input_length: '-5.*cannot be negative",
        ),
        ("", "is empty"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_trace(path, "mooncake")


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [("4-2", "runs backwards"), ("4-x", "'4-x': not a block id"), ("-3", "'-3': not a block id")],
)
def test_bad_ranges_of_blocks_are_named(path: Path, ids: str, complaint: str) -> None:
    path.write_text(f"t_ms,input_tokens,output_tokens,hash_ids\n0,5,1,3\n0,5,1,{ids}\n")
    with pytest.raises(InputError, match=f":3: hash_ids: .*{complaint}"):
        read_trace(path, "mooncake")


def test_spreading_keeps_order_and_stays_within_the_tick(path: Path) -> None:
    path.write_text(HEADER + "0,1,1\n0,2,1\n0,3,1\n3,4,1\n6,5,1\n6,6,1\n")
    even = read_trace(path, "plain", TraceOptions(spread_s=3.0))
    assert even.arrival_s.tolist() == [0.0, 1.0, 2.0, 3.0, 6.0, 7.5]
    random = read_trace(path, "plain", TraceOptions(spread_s=3.0, spread="random"), seed=4)
    assert random.input_tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert np.all(random.arrival_s // 3 == [0, 0, 0, 1, 2, 2])
    assert len(set(random.arrival_s)) == 6


@pytest.mark.shared_data
@pytest.mark.skipif(not TRACES.exists(), reason="the recorded traces are not here")
@pytest.mark.parametrize(
    ("name", "rows", "hit_percent"),
    # Prefix hits of an infinite cache, as computed from the published traces by others.
    [("mooncake_conversation.csv", 12_031, 37.4), ("mooncake_synthetic.csv", 3_993, 65.1)],
)
def test_mooncake_contents_have_the_published_prefix_hits(
    name: str, rows: int, hit_percent: float
) -> None:
    traffic = replayed(TRACES / name, "mooncake")
    assert len(traffic) == rows
    known: set[int] = set()
    hits = 0
    for row in traffic.rows():
        assert row.content is not None
        assert tokens_of(row.content) == row.input_tokens
        blocks = [
            (block, min(512, start + tokens - block))
            for _, start, tokens in row.content
            for block in range(start, start + tokens, 512)
        ]
        for block, tokens in blocks:
            if block not in known:
                break
            hits += tokens
        known.update(block for block, _ in blocks)
    assert 100 * hits / int(traffic.input_tokens.sum()) == pytest.approx(hit_percent, abs=0.1)


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("tennant", "tenant"),
        ("Tenant", "tenant"),
        ("block_id", "block_ids"),
        ("block-ids", "block_ids"),
        ("sessions", "session"),
        ("max_token", "max_tokens"),
        ("prioriti", "priority"),
    ],
)
def test_misspelt_columns_of_plain_traces_are_refused(path: Path, column: str, meant: str) -> None:
    path.write_text(f"t_s,input_tokens,output_tokens,{column}\n0,10,3,1\n")
    with pytest.raises(InputError) as refused:
        read_trace(path, "plain")
    assert str(refused.value).startswith(
        f"{path}:1: unknown column {column!r}; did you mean {meant}? Rename it, "
    )


def test_other_columns_of_plain_traces_get_one_note(path: Path) -> None:
    """Also those that look like a column that is there, or only a little like one that is not."""
    path.write_text(
        "t_s,input_tokens,output_tokens,tenant,tenant2,total_tokens,region\n0,10,3,a,b,13,eu\n"
    )
    traffic = replayed(path, "plain")
    assert traffic.notes == (
        "columns of trace.csv that are not read: tenant2, total_tokens, region.",
    )
    path.write_text("t_s,input_tokens,output_tokens,tenant\n0,10,3,a\n")
    assert replayed(path, "plain").notes == ()
    # a published format has columns that say nothing of a request
    path.write_text("Timestamp,Model,Request tokens,Response tokens,Log Type\n1,GPT-4,10,5,API\n")
    assert replayed(path, "burstgpt").notes == ()


def test_parts_of_a_mix_keep_their_notes(path: Path) -> None:
    path.write_text("t_s,input_tokens,output_tokens,region\n0,10,3,eu\n")
    one = replayed(path, "plain")
    both = mixed({"chat": one, "search": one})
    assert both.notes == tuple(
        f"{part}: columns of trace.csv that are not read: region." for part in ("chat", "search")
    )


class TestMoreBlocksThanTokens:
    """A prompt of n blocks has more tokens than n - 1 blocks hold."""

    @pytest.mark.parametrize(
        ("tokens", "ids", "options"),
        [
            (100, "0-19", {"block_tokens": 5}),  # 19 x 5 < 100: the last block has 5
            (513, "0 7", {}),
            (512, "0", {}),
            (1, "3", {}),
        ],
    )
    def test_the_last_block_may_be_cut(
        self, path: Path, tokens: int, ids: str, options: dict[str, Any]
    ) -> None:
        path.write_text(f"t_s,input_tokens,output_tokens,block_ids\n0,{tokens},3,{ids}\n")
        (content,) = read_trace(path, "plain", TraceOptions(**options)).content
        assert tokens_of(content) == tokens

    @pytest.mark.parametrize(
        ("tokens", "ids", "options", "words"),
        [
            (
                100,
                "0-19",
                {},
                "'0-19': 20 blocks of 512 tokens for a prompt of 100, which has 1 at most: "
                # 19 x 5 = 95 < 100 <= 19 x 6
                "set options.block_tokens to the size of its blocks, 5 at most, or correct "
                "input_tokens or block_ids",
            ),
            (512, "0 7", {}, "2 blocks of 512 tokens for a prompt of 512, which has 1 at most"),
            (100, "0-19", {"block_tokens": 6}, "which has 17 at most"),
            # more blocks than tokens
            (5, "0-19", {}, "which has 1 at most: correct input_tokens or block_ids"),
        ],
    )
    def test_more_are_refused(
        self, path: Path, tokens: int, ids: str, options: dict[str, Any], words: str
    ) -> None:
        row = f"0,{tokens},3,{ids}\n"
        path.write_text("t_s,input_tokens,output_tokens,block_ids\n0,9,3,1\n" + row)
        with pytest.raises(InputError) as refused:
            read_trace(path, "plain", TraceOptions(**options))
        assert str(refused.value).startswith(f"{path}:3: block_ids: '{ids}': ")
        assert words in str(refused.value)

    def test_those_of_published_formats_too(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.jsonl"
        row = {"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2, 3]}
        path.write_text(json.dumps(row))
        with pytest.raises(
            InputError, match=r"trace.jsonl:1: hash_ids: .*: 3 blocks of 512 tokens"
        ):
            read_trace(path, "mooncake")

    def test_rows_that_are_dropped_do_not_count(self, path: Path) -> None:
        path.write_text("t_s,input_tokens,output_tokens,block_ids\n0,9,0,1-9\n1,9,3,1\n")
        trace = read_trace(path, "plain", TraceOptions(zero_output="drop"))
        assert trace.input_tokens.tolist() == [9]
