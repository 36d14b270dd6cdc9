"""How many clients this process can have before it runs out of descriptors."""

from __future__ import annotations

import errno
import logging
import os

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

#: Descriptors left for requests, files and databases: a share of the limit, within bounds.
#: gunicorn accepts up to 1,000 connections at once, and dies if accept() finds no descriptor.
RESERVE_SHARE = 4
RESERVE = (64, 2048)

#: The part of it that is not for the server's connections: a share, or so many at least.
OTHER_SHARE = 4
OTHER = 32

#: What is reckoned with where the limit is "unlimited".
UNLIMITED = 1_000_000


def capacity(wanted: int | None) -> int:
    """Raise the soft limit of open files to the hard one; return how many clients fit below it.

    :param wanted: a limit that was set; a smaller possible one takes its place, with a warning.
    :raises OSError: EMFILE, if there is no room for any now.
    """
    if resource is None:
        return wanted or 400
    limit = _raised_limit()
    possible = room(limit, _open_files())
    if possible == 0:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if wanted is not None and wanted > possible:
        log.warning(
            "LITESTACK_CABLE_MAX_CLIENTS = %d is more than the %d that the limit of %d open files "
            "allows; raise it (ulimit -n).",
            wanted,
            possible,
            limit,
        )
    return possible if wanted is None else min(wanted, possible)


def room(limit: int, open_files: int = 0) -> int:
    """Tell how many clients a process can have that may open so many files, and has so many."""
    return max(0, limit - _reserve(limit) - open_files)


def connections(wanted: int) -> int:
    """Raise the soft limit of open files; return how many connections a server may have open.

    :param wanted: how many it would take.
    """
    if resource is None:
        return wanted
    reserve = _reserve(_raised_limit())
    return min(wanted, reserve - max(reserve // OTHER_SHARE, OTHER))


def open_files_limit() -> int | None:
    """Return how many files this process may open; None where there is no such limit."""
    if resource is None:
        return None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _reserve(limit: int) -> int:
    return min(max(limit // RESERVE_SHARE, RESERVE[0]), RESERVE[1])


def _raised_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:  # macOS: "unlimited" is more than it allows
            log.info("the limit of open files stays at %d: %s", soft, error)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 64
