from __future__ import annotations

import os
import threading

from flask_litestack.process.mutex import Mutex


def test_one_thread_at_a_time() -> None:
    mutex = Mutex()
    inside = threading.Event()
    with mutex:
        thread = threading.Thread(target=lambda: mutex.__enter__() or inside.set())
        thread.start()
        assert not inside.wait(0.05)
    assert inside.wait(5)
    thread.join()
    mutex.__exit__()


def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    mutex = Mutex()
    held = threading.Event()
    end = threading.Event()

    def hold() -> None:
        with mutex:
            held.set()
            end.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    pid = os.fork()
    if pid == 0:
        with mutex:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    end.set()
    thread.join()
