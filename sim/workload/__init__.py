"""What is asked of a fleet: lengths of prompts and answers, arrival times, and recorded traces.

``lengths``, ``arrivals`` and ``traffic`` hold the laws, ``traces`` reads recorded requests, and
``fitting`` turns a recorded trace into a law. Nothing here knows about hardware or schedulers.
"""
