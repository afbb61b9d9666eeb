"""From the columns of a run to the tables that people read: no clock, no queue.

Rates, energy and money are counted over a window of the run: from the end of the warm-up to the
last arrival, when the system is loaded as the workload says. Latencies are those of the requests
that arrive in the window, however late they finish.

Stretches are read once, a block at a time, so that a run of any length needs no more memory than
its table of requests.
"""
