"""Blinker signals; the sender is the app.

They are sent in the process and thread where the thing happens, inside the app context.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A worker begins an attempt at a job. ``job``: a :class:`flask_litestack.jobs.CurrentJob`.
job_started = _signals.signal("litestack-job-started")

#: An attempt has ended. ``job``; ``state``: what the job is from here on ("scheduled" or "queued"
#: if it will be tried again); ``error``: the exception, or None; ``seconds``: how long it took.
#: What the task wrote is committed if the state is "succeeded", and rolled back otherwise; what a
#: receiver writes is a transaction of its own. An exception in a receiver is logged.
job_ended = _signals.signal("litestack-job-ended")
