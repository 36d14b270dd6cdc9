"""What can be wrong with the jobs: nobody runs them, or they have failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..config import Settings
from ..sqlite.health import Finding, Severity
from .queue import JobQueue, QueueStatus, WorkerStatus

#: Seconds that a due job may wait before we ask who listens to its queue.
LONG_WAIT = 60.0

_IDLE = "No worker runs: jobs wait, and cron tasks are not queued."
_START = "Start `flask litestack serve` or `flask litestack worker`."


def findings(jobs: JobQueue, settings: Settings) -> Iterator[Finding]:
    """Look for jobs that nobody runs, and for those that have failed."""
    workers = jobs.workers()
    if not jobs.is_used():
        if jobs.schedules() and not workers:
            yield Finding("jobs", Severity.WARNING, _IDLE, _START)
        return
    counts = jobs.counts()
    neglected = [
        _neglected(queue, workers)
        for queue in jobs.queues()
        if queue.paused_at is None and queue.oldest >= LONG_WAIT
    ]
    yield from neglected
    idle = not workers and bool(counts["queued"] or jobs.crons())
    if idle and not neglected:
        yield Finding("jobs", Severity.WARNING, _IDLE, _START)
    if counts["failed"]:
        yield Finding(
            "jobs",
            Severity.WARNING,
            f"{counts['failed']} jobs have failed.",
            "See `flask litestack jobs list --state failed`; then `jobs retry` or `jobs delete`.",
        )
    elif not neglected and not idle:
        yield Finding("jobs", Severity.OK, "No job has failed or waits for long.")


def _neglected(queue: QueueStatus, workers: Sequence[WorkerStatus]) -> Finding:
    waits = f"{queue.queued} jobs of the queue {queue.name} wait, for {queue.oldest:.0f} s"
    if not workers:
        return Finding("jobs", Severity.WARNING, f"{waits}; no worker runs.", _START)
    if not any(worker.listens_to(queue.name) for worker in workers):
        return Finding(
            "jobs",
            Severity.WARNING,
            f"{waits}; no worker listens to it.",
            f"Start `flask litestack worker --queues {queue.name}`, or add it to "
            "LITESTACK_JOBS_QUEUES.",
        )
    return Finding(
        "jobs",
        Severity.WARNING,
        f"{waits}: the workers are too busy, or hang.",
        "See what they run with `flask litestack status`.",
    )
