"""The tables of the jobs, in the app's own file.

A row is never copied from table to table: its state changes, and partial indexes keep each
question as quick with a million rows in other states as with none. Moments are seconds since the
epoch.
"""

from __future__ import annotations

from ..sqlite.schema import Schema

_JOBS = """
CREATE TABLE litestack_jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    task TEXT NOT NULL,
    arguments TEXT NOT NULL,
    created_at REAL NOT NULL,
    run_at REAL NOT NULL,
    retries INTEGER,
    unique_key TEXT,
    exclusive INTEGER NOT NULL DEFAULT 0,
    claim INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    started_at REAL,
    finished_at REAL,
    expires_at REAL,
    failures INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    postponed INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0
) STRICT
"""

SCHEMA = Schema(
    "jobs",
    upgrades=[
        [
            _JOBS,
            # Who is next. Scheduled jobs are not in here: a claim would have to step over them.
            "CREATE INDEX litestack_jobs_queued ON litestack_jobs (queue, priority DESC, id) "
            "WHERE state = 'queued'",
            "CREATE INDEX litestack_jobs_scheduled ON litestack_jobs (run_at) "
            "WHERE state = 'scheduled'",
            "CREATE INDEX litestack_jobs_running ON litestack_jobs (worker) "
            "WHERE state = 'running'",
            # What to prune, and how many succeeded.
            "CREATE INDEX litestack_jobs_expiring ON litestack_jobs (expires_at, state) "
            "WHERE expires_at IS NOT NULL",
            "CREATE INDEX litestack_jobs_ended ON litestack_jobs (state) "
            "WHERE state IN ('failed', 'cancelled')",
            "CREATE UNIQUE INDEX litestack_jobs_unique ON litestack_jobs (unique_key) "
            "WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'queued')",
            "CREATE UNIQUE INDEX litestack_jobs_exclusive ON litestack_jobs (unique_key) "
            "WHERE unique_key IS NOT NULL AND exclusive = 1 "
            "AND state IN ('scheduled', 'queued', 'running')",
            "CREATE TABLE litestack_job_errors ("
            "id INTEGER PRIMARY KEY, job_id INTEGER NOT NULL, at REAL NOT NULL, "
            "error TEXT NOT NULL, traceback TEXT NOT NULL, worker TEXT) STRICT",
            "CREATE INDEX litestack_job_errors_job ON litestack_job_errors (job_id)",
            "CREATE TABLE litestack_job_pauses ("
            "queue TEXT PRIMARY KEY, paused_at REAL NOT NULL) STRICT, WITHOUT ROWID",
            # The last slot of each task with cron= that was enqueued.
            "CREATE TABLE litestack_job_crons ("
            "task TEXT PRIMARY KEY, schedule TEXT NOT NULL, slot REAL NOT NULL) "
            "STRICT, WITHOUT ROWID",
        ]
    ],
)
