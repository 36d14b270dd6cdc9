from __future__ import annotations

import sys
import threading

import pytest

from flask_litestack.cable.pool import Pool


def test_a_function_that_exits_costs_no_thread_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(1, "pool")
    ran = threading.Event()
    pool.submit(lambda: sys.exit(1))
    pool.submit(ran.set)
    assert ran.wait(10)
    assert "SystemExit: 1" in caplog.text
    pool.stop()
