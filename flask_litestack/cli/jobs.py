"""``flask litestack jobs``, and the jobs in ``status`` and ``doctor``."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from ..config import Settings
from ..extension import Litestack
from ..jobs.health import findings as findings
from ..jobs.job import STATES, Job
from ..jobs.queue import JobQueue
from ._app import with_litestack
from ._output import json_option, show

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


@click.group("jobs")
def command() -> None:
    """Look at jobs; retry, cancel, hold and delete them."""


@command.command("list")
@click.option("--state", type=click.Choice(STATES))
@click.option("--queue")
@click.option("--task")
@click.option("--before", type=int, metavar="ID", help="Older than this one.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@json_option
@with_litestack
def list_(
    litestack: Litestack,
    state: Any,
    queue: str | None,
    task: str | None,
    before: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List jobs, the newest first."""
    jobs = litestack.jobs
    found = (
        jobs.list(state=state, queue=queue, task=task, before=before, limit=limit)
        if jobs.is_used()
        else []
    )
    show([_line(job) for job in found], as_json)


@command.command("show")
@click.argument("job_id", type=int)
@json_option
@with_litestack
def show_(litestack: Litestack, job_id: int, as_json: bool) -> None:
    """Show a job and what went wrong in its attempts."""
    job = litestack.jobs.get(job_id)
    if job is None:
        raise click.ClickException(f"there is no job {job_id}.")
    attempts = litestack.jobs.attempts(job_id)
    if as_json:
        show({**_details(job), "attempts": [_plain(asdict(a)) for a in attempts]}, as_json)
        return
    show(_details(job), as_json)
    for attempt in attempts:
        click.echo(f"\nattempt {attempt.number}, {_time(attempt.at)}: {attempt.error}")
        click.echo(attempt.traceback.rstrip())


@command.command()
@click.argument("job_id", type=int, required=False)
@click.option("--all", "all_failed", is_flag=True, help="All failed jobs.")
@click.option("--queue", help="With --all: of this queue.")
@click.option("--task", help="With --all: of this task.")
@json_option
@with_litestack
def retry(
    litestack: Litestack,
    job_id: int | None,
    all_failed: bool,
    queue: str | None,
    task: str | None,
    as_json: bool,
) -> None:
    """Queue a failed or cancelled job again, or all failed ones."""
    if (job_id is None) is not all_failed:
        raise click.UsageError("Give either a job's id or --all.")
    if job_id is not None:
        litestack.jobs.retry(job_id)
        retried, conflicts = 1, list[int]()
    else:
        retried, found = litestack.jobs.retry_failed(queue=queue, task=task)
        conflicts = list(found)
    show({"retried": retried, "kept_out_by_an_equal_unique_job": conflicts}, as_json)


@command.command()
@click.argument("job_id", type=int)
@json_option
@with_litestack
def cancel(litestack: Litestack, job_id: int, as_json: bool) -> None:
    """Cancel a job that waits, or ask a running one to stop."""
    show(_details(litestack.jobs.cancel(job_id)), as_json)


@command.command()
@click.argument("job_id", type=int)
@json_option
@with_litestack
def delete(litestack: Litestack, job_id: int, as_json: bool) -> None:
    """Delete a job that is not running."""
    litestack.jobs.delete(job_id)
    show({"deleted": job_id}, as_json)


@command.command()
@click.argument("queue")
@json_option
@with_litestack
def pause(litestack: Litestack, queue: str, as_json: bool) -> None:
    """Keep the jobs of a queue from being started."""
    litestack.jobs.pause(queue)
    show({"paused": queue}, as_json)


@command.command()
@click.argument("queue")
@json_option
@with_litestack
def resume(litestack: Litestack, queue: str, as_json: bool) -> None:
    """Let the jobs of a paused queue be started again."""
    if not litestack.jobs.resume(queue):
        raise click.ClickException(f"the queue {queue} is not paused.")
    show({"resumed": queue}, as_json)


@command.command()
@click.option(
    "--state",
    "states",
    type=click.Choice(["succeeded", "failed", "cancelled"]),
    multiple=True,
    default=["succeeded"],
    show_default=True,
)
@click.option("--older-than", default="0s", metavar="7d", help="Finished so long ago: s, m, h, d.")
@click.option("--queue")
@click.option("--task")
@json_option
@with_litestack
def prune(
    litestack: Litestack,
    states: Any,
    older_than: str,
    queue: str | None,
    task: str | None,
    as_json: bool,
) -> None:
    """Delete finished jobs before their time."""
    deleted = litestack.jobs.prune(
        states=states, older_than=_seconds(older_than), queue=queue, task=task
    )
    show({"deleted": deleted}, as_json)


def status(jobs: JobQueue, settings: Settings) -> dict[str, Any]:
    """Say what waits, what runs, and what comes next."""
    if not jobs.is_used():
        return {"jobs": 0}
    workers = jobs.workers()
    return {
        "counts": jobs.counts(),
        "queues": [
            {
                "name": queue.name,
                "queued": queue.queued,
                "oldest_seconds": round(queue.oldest, 3),
                "paused": queue.paused_at is not None,
                "workers": sum(worker.listens_to(queue.name) for worker in workers),
            }
            for queue in jobs.queues()
        ],
        "workers": [
            {
                "pid": worker.pid,
                "queues": worker.queues,
                "threads": worker.threads,
                "running": [f"{r.id} {r.task} {r.seconds:.1f} s" for r in worker.running],
            }
            for worker in workers
        ],
        "cron": [
            {
                "task": cron.task,
                "cron": f"{cron.cron} {cron.timezone}",
                "last": _time(cron.last),
                "next": _time(cron.next),
            }
            for cron in jobs.crons()
        ],
    }


def _line(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "queue": job.queue,
        "task": job.task,
        "arguments": job.arguments if len(job.arguments) <= 60 else job.arguments[:57] + "...",
        "run_at": _time(job.run_at),
        "finished_at": _time(job.finished_at),
        "failures": job.failures,
    }


def _details(job: Job) -> dict[str, Any]:
    details = _plain(asdict(job))
    del details["new"]
    with suppress(ValueError):  # a job whose arguments are damaged is one to be looked at
        details["arguments"] = json.loads(job.arguments)
    return details


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _time(value) if isinstance(value, datetime) else value for key, value in values.items()
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _seconds(text: str) -> float:
    unit = _UNITS.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is not a time such as 90s, 5m, 12h or 7d.") from None
