"""The errors Rackcast raises on purpose, and the exit code each one ends the command line with.

::

    Exception
    └── RackcastError        70
        ├── InputError        2   the scenario, catalogue or command line is wrong: edit it
        ├── InfeasibleError   3   the question is well put and the answer is that it cannot be done
        └── InternalError    70   a bug of ours: report it

Anything else that escapes (``KeyError``, ``ZeroDivisionError``...) is a bug of ours too.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class RackcastError(Exception):
    """Root of every error raised on purpose; carries exactly one message.

    One string and nothing else, because simpy (and pickle, between the processes of a sweep)
    re-creates an exception as ``type(error)(*error.args)``: an error with a richer constructor
    would die there and hide its cause.

    Parameters
    ----------
    message : str
        What is wrong, where, and the way out; shown to the user as it stands. May have several
        lines, one per problem.

    Examples
    --------
    >>> error = InputError("unknown model 'lama'; did you mean 'llama_3_1_8b'?")
    >>> str(type(error)(*error.args)) == str(error)
    True
    >>> error.exit_code
    2
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InputError(RackcastError):
    """The user's input is wrong: bad YAML, an unknown key, a name no catalogue knows."""

    exit_code: ClassVar[int] = 2


class InfeasibleError(RackcastError):
    """The input is valid and cannot be served; the message gives the numbers and a way out."""

    exit_code: ClassVar[int] = 3


class InternalError(RackcastError):
    """An invariant of the simulator does not hold: never the user's fault."""

    exit_code: ClassVar[int] = 70


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with the message and exit code of an error raised on purpose."""
    try:
        yield
    except RackcastError as error:
        sys.stderr.write(f"rackcast: {error}\n")
        sys.exit(error.exit_code)
