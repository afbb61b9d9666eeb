"""Importers of measured serving runs: result files of benchmark tools become rows of one format.

One module per tool knows its file; `registry` finds the tool by what a file holds, `draft` is the
row while it is being filled, `finish` adds what the user and a power log know and checks it,
`table` writes it, and `command` is what ``rackcast import-runs`` does.
"""
