"""Readers of recorded requests and sessions, one for each published format.

``table`` and ``records`` read CSV and JSON lines and name the line of whatever is wrong;
``blocks`` turns ids of prefix blocks into contents; ``formats`` knows the columns of each format;
``agentic`` rebuilds recorded sessions.
"""
