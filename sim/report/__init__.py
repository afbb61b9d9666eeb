"""What a reader gets from a run: tables, charts and one page that explains them.

`data.RunTables` holds everything a report may say; `writer.write_run` writes the folder of a run,
and `tables.console_table` is the short form for a terminal. Nothing here computes a forecast, and
nothing is imported here: drawing libraries are slow to load and most commands draw nothing.
"""
