"""Jobs: functions to be run later, kept in the app's own database file."""

from .current import CurrentJob as CurrentJob
from .current import current_job as current_job
from .job import Attempt as Attempt
from .job import Job as Job
from .queue import JobQueue as JobQueue
from .retry import Discard as Discard
from .retry import Retry as Retry
from .retry import RetryPolicy as RetryPolicy
from .task import Task as Task
