"""Stores how attempts ended, though one of them may be impossible to store."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..errors import LockError
from ..sqlite import driver
from .claims import Claims, Failure, Outcome
from .runner import describe

log = logging.getLogger("flask_litestack.jobs")


def store_ends(claims: Claims, outcomes: list[Outcome]) -> list[Outcome]:
    """Store how attempts ended, in the open transaction; return those that are not ours.

    One that cannot be stored must not keep the others from it, for ever and in every worker:
    that job has failed, and the list then says so.
    """
    try:
        return claims.finish(outcomes)
    except Exception as error:
        if _is_databases(error):
            raise
    for n, outcome in enumerate(outcomes):
        claims.rollback()
        claims.begin()
        try:
            claims.finish([outcome])
        except Exception as error:
            if _is_databases(error):
                raise
            log.exception("job %d: its end cannot be stored", outcome.claim.id)
            text = f"its end ({outcome.state}) could not be stored: {describe(error).error}"
            outcomes[n] = replace(
                outcome, state="failed", run_at=outcome.finished_at, failure=Failure(text)
            )
    claims.rollback()
    claims.begin()
    return claims.finish(outcomes)


def _is_databases(error: Exception) -> bool:
    """Tell whether the database is what went wrong, rather than what was to be stored."""
    return isinstance(error, (LockError, driver.OperationalError)) or (
        type(error) is driver.DatabaseError  # it is damaged
    )
