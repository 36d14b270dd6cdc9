"""Files that several processes map into memory, to tell each other something without a system call.

The trap: a file made longer by ``ftruncate()`` is a hole. Storing into it through the map, when
the disk is full, is no error but a SIGBUS, which kills the process. So it gets real blocks first
(tests/processes/test_db_full_disk.py).
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from pathlib import Path

log = logging.getLogger(__name__)

#: What an OSError says of a full disk, or a quota that is used up.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def map_file(path: Path, size: int) -> mmap.mmap:
    """Map the first ``size`` bytes of a file, made (mode 0600) and made longer if need be.

    :raises OSError: if the disk is full, among other reasons.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _allocate(fd, size)
        return mmap.mmap(fd, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.close(fd)


def map_file_or_memory(path: Path, size: int) -> mmap.mmap:
    """Map a file like :func:`map_file`, or memory of this process alone if the disk is full.

    For what only helps the processes to get on with each other. Its folder is made if missing.
    """
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return map_file(path, size)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.warning(
            "the disk is full: this process does without %s until it is started again, so other "
            "processes do not see when it waits for the write lock, or has it",
            path,
        )
        return mmap.mmap(-1, size)


def _allocate(fd: int, size: int) -> None:
    status = os.fstat(fd)
    if hasattr(os, "posix_fallocate"):
        if status.st_size < size or status.st_blocks * 512 < size:
            os.posix_fallocate(fd, 0, size)
    elif status.st_size < size:
        os.pwrite(fd, bytes(size - status.st_size), status.st_size)
