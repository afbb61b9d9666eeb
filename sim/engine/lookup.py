"""What of a request's context is there already, on the chips of a replica or elsewhere."""

from typing import NamedTuple, Protocol

from sim.engine.prefix import Match, PrefixCache
from sim.engine.requests import Request


class KvTransport(Protocol):
    """Moves keys and values between a replica and wherever else they lie."""

    @property
    def changes_by_itself(self) -> bool:
        """Whether others write to where it looks."""
        ...

    def remote_tokens(self, request: Request, cached_tokens: int) -> int:
        """Count the tokens from the start whose keys and values could be fetched.

        ``cached_tokens`` if there are no more than those that are here already.
        """
        ...

    def fetch(self, request: Request, cached_tokens: int, tokens: int) -> None:
        """Fetch those beyond ``cached_tokens``; `Scheduler.fetched` hears when they are here."""
        ...

    def let_go(self, request: Request) -> None:
        """Free what lies elsewhere of a request that needs it no more."""
        ...

    def swap_out(self, request: Request, tokens: int) -> bool:
        """Store those of a preempted sequence elsewhere, if there is room."""
        ...

    def follow(self, cache: PrefixCache) -> None:
        """Hear what the prefix cache of a replica computes and forgets."""
        ...


class Found(NamedTuple):
    """What of a request's context need not be computed."""

    cached_tokens: int
    remote_tokens: int
    """Those that could be fetched, counted from the start; no less than ``cached_tokens``."""
    match: Match | None

    @property
    def idle_blocks(self) -> int:
        """Blocks of what was found that nobody holds: free ones, until it comes in."""
        return 0 if self.match is None else self.match.idle_blocks


NOTHING_FOUND = Found(0, 0, None)
