"""Why the cache is not to be had, where that is no error of SQLite's. To callers it is a miss."""

from __future__ import annotations


class Unavailable(Exception):
    """Raised when the cache is not to be had at the moment."""


class Closed(Unavailable):
    """Raised for a second after the file could not be opened, which was an error of its own."""


class Replaced(Closed):
    """Raised when another process has put a new file in the place of the one that was open."""
