"""SQLite as database, cache, job queue and websocket bus for Flask: one folder, no servers."""

from .cache import SQLiteCache as SQLiteCache
from .errors import ArgumentsError as ArgumentsError
from .errors import BackupError as BackupError
from .errors import CableError as CableError
from .errors import ChannelError as ChannelError
from .errors import ConfigError as ConfigError
from .errors import DataPathError as DataPathError
from .errors import JobCancelled as JobCancelled
from .errors import JobError as JobError
from .errors import JobStateError as JobStateError
from .errors import JobTimeout as JobTimeout
from .errors import LitestackError as LitestackError
from .errors import LiveFileError as LiveFileError
from .errors import LockError as LockError
from .errors import LockTimeout as LockTimeout
from .errors import NewerStoreError as NewerStoreError
from .errors import ReadOnlyError as ReadOnlyError
from .errors import Rejected as Rejected
from .errors import SelfDeadlock as SelfDeadlock
from .errors import StaleSnapshotError as StaleSnapshotError
from .errors import StoreError as StoreError
from .errors import TransactionError as TransactionError
from .errors import UnknownTaskError as UnknownTaskError
from .errors import WorkerKilledError as WorkerKilledError
from .extension import Litestack as Litestack
from .sqlite.tuning import tune as tune
