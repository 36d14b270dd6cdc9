"""Counts how a worker's jobs end, and says so in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from .claims import Outcome

log = logging.getLogger("flask_litestack.jobs")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker is."""

    succeeded: int
    failed: int


class Tally:
    """What a worker has done since it started."""

    def __init__(self) -> None:
        self._succeeded = self._failed = 0

    @property
    def progress(self) -> Progress:
        """How many jobs have ended."""
        return Progress(self._succeeded, self._failed)

    def add(self, outcomes: Sequence[Outcome], lost: Sequence[Outcome] = ()) -> None:
        """Take note of ends that are stored.

        :param lost: those among them that are not, for the job was no longer this worker's.
        """
        for outcome in outcomes:
            seconds = outcome.finished_at - outcome.started_at
            claim = outcome.claim
            if outcome in lost:
                log.warning(
                    "job %d %s: its claim was lost before its end (%s) could be stored",
                    claim.id,
                    claim.task,
                    outcome.state,
                )
                continue
            if outcome.state == "succeeded":
                self._succeeded += 1
                if log.isEnabledFor(logging.DEBUG):
                    log.debug(
                        "job %d %s succeeded: attempt %d, %.3f s, waited %.3f s",
                        claim.id,
                        claim.task,
                        claim.attempt,
                        seconds,
                        outcome.started_at - claim.run_at,
                    )
                continue
            self._failed += outcome.state == "failed"
            level = logging.ERROR if outcome.state == "failed" else logging.WARNING
            log.log(
                level,
                "job %d %s is %s: attempt %d, %.3f s: %s",
                claim.id,
                claim.task,
                outcome.state,
                claim.attempt,
                seconds,
                outcome.failure.error if outcome.failure else "put back again",
            )
