"""What a reader gets from a run: tables, charts and one page that explains them.

`RunTables` holds everything a report may say; `write_run` writes the folder of a run, and
`console_table` is the short form for a terminal. Nothing here computes a forecast.
"""

from sim.report.data import RunTables
from sim.report.tables import console_table
from sim.report.writer import write_run

__all__ = ["RunTables", "console_table", "write_run"]
