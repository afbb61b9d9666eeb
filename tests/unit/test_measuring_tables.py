"""Files of rows that grow, and survive being cut off."""

import pytest

from sim.errors import InputError
from sim.measuring.tables import Table

COLUMNS = ("chip", "m", "latency_us")


def table_of(folder, columns=COLUMNS):
    return Table(folder / "new" / "rows.csv", columns, ("m",))


def filled(folder):
    table = table_of(folder)
    table.open(resume=False)
    table.append({"chip": "a, b", "m": 1, "latency_us": 1.23456789})
    table.append({"chip": "a, b", "m": 2, "latency_us": None})
    return table


def test_rows_are_written_as_they_come(tmp_path):
    table = filled(tmp_path)
    assert table.path.read_text() == 'chip,m,latency_us\n"a, b",1,1.23457\n"a, b",2,\n'
    assert len(table) == 2


def test_what_is_there_is_done(tmp_path):
    filled(tmp_path)
    again = table_of(tmp_path)
    again.open(resume=True)
    assert again.has({"m": 1})
    assert again.has({"m": 2})
    assert not again.has({"m": 3})


def test_a_row_that_was_cut_off_is_measured_again(tmp_path):
    path = filled(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole + b'"a, b",3,7')
    again = table_of(tmp_path)
    again.open(resume=True)
    assert not again.has({"m": 3})
    assert path.read_bytes() == whole


def test_rows_are_not_mixed_with_others_by_accident(tmp_path):
    filled(tmp_path)
    with pytest.raises(InputError, match=r"rows.csv: has 2 rows already; --resume goes on"):
        table_of(tmp_path).open(resume=False)


def test_other_columns_are_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(InputError, match=r"rows.csv:1: has other columns"):
        table_of(tmp_path, ("chip", "m", "n", "latency_us")).open(resume=True)


def test_a_heading_alone_is_nothing_yet(tmp_path):
    table_of(tmp_path).open(resume=False)
    table_of(tmp_path).open(resume=False)
    assert table_of(tmp_path).path.read_text() == "chip,m,latency_us\n"


def test_an_unknown_column_is_a_bug(tmp_path):
    table = filled(tmp_path)
    with pytest.raises(ValueError, match="no columns n"):
        table.append({"m": 4, "n": 1})
