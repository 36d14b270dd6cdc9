"""Exceptions that come at any moment, as a job's timeout does."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable


class Stop(Exception):
    """Raised in a thread by :func:`stop`."""


def stop(thread: threading.Thread) -> None:
    """Raise Stop in a thread, at the next line of Python that it runs."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Stop))


def interrupt_often(
    work: Callable[[], object], mend: Callable[[], object], *, threads: int, times: int
) -> None:
    """Run ``work`` over and over in threads; interrupt each of them so many times.

    After an interrupt comes ``mend``, which is not interrupted, on the same thread.
    """
    handled = [0] * threads
    busy = True

    def run(number: int) -> None:
        stopped = 0
        while busy:
            try:
                while busy:
                    handled[number] = stopped
                    work()
            except Stop:
                stopped += 1
                mend()

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for sent in range(1, times + 1):
        for thread in running:
            stop(thread)
        while handled != [sent] * threads:
            assert all(thread.is_alive() for thread in running)
            time.sleep(0.0005)
    busy = False
    for thread in running:
        thread.join()
