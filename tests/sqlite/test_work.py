"""Work around a commit."""

from __future__ import annotations

import logging

import pytest

from flask_litestack.sqlite.connection import Connection
from flask_litestack.sqlite.work import is_after_commit


def count(connection: Connection) -> int:
    return connection.execute("SELECT count(*) FROM item").fetchone()[0]


def test_work_after_the_commit_runs_after_it_and_in_order(
    connection: Connection, other: Connection
) -> None:
    done: list[object] = []
    connection.execute("DELETE FROM item")
    connection.after_commit(lambda: done.append(count(other)))
    connection.after_commit(lambda: done.append("second"))
    assert done == []
    connection.commit()
    assert done == [0, "second"]
    connection.commit()
    assert done == [0, "second"]


def test_work_after_the_commit_goes_with_the_rollback(connection: Connection) -> None:
    done: list[str] = []
    connection.execute("DELETE FROM item")
    connection.after_commit(lambda: done.append("never"))
    connection.rollback()
    connection.execute("DELETE FROM item")
    connection.commit()
    assert done == []


def test_work_after_the_commit_goes_with_its_savepoint(connection: Connection) -> None:
    done: list[str] = []

    def note(what: str) -> None:
        connection.after_commit(lambda: done.append(what))

    connection.execute("SAVEPOINT a")
    note("in a")
    connection.execute("SAVEPOINT b")
    note("in b")
    connection.execute("SAVEPOINT c")
    note("in c")
    connection.execute("RELEASE c")
    connection.execute("ROLLBACK TO b")
    note("in b again")
    connection.execute("RELEASE b")
    connection.execute("RELEASE a")
    assert done == []
    connection.commit()
    assert done == ["in a", "in b again"]


def test_a_failing_piece_of_work_after_the_commit_is_logged_and_stops_nothing(
    connection: Connection, other: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    connection.execute("DELETE FROM item")
    connection.after_commit(lambda: 1 / 0)
    connection.after_commit(lambda: done.append("still"))
    connection.commit()
    assert done == ["still"]
    assert "ZeroDivisionError" in caplog.text
    assert count(other) == 0


class BrokenHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the log server is down")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_rest_of_the_work_is_done_before_an_interrupt_is_raised(
    connection: Connection, error: type[BaseException]
) -> None:
    """An interrupt, or an error that cannot even be logged."""

    def fail() -> None:
        raise error

    done: list[bool] = []
    connection.execute("DELETE FROM item")
    connection.after_commit(fail)
    connection.after_commit(lambda: done.append(is_after_commit()))
    handler = BrokenHandler()
    logging.getLogger("flask_litestack").addHandler(handler)
    try:
        with pytest.raises((KeyboardInterrupt, OSError)):
            connection.commit()
    finally:
        logging.getLogger("flask_litestack").removeHandler(handler)
    assert done == [True]
    assert not is_after_commit()
    assert count(connection) == 0


def test_a_piece_of_work_before_the_commit_that_fails_keeps_what_comes_after_it_from_running(
    connection: Connection,
) -> None:
    """Also when nothing was written."""

    def fail() -> None:
        raise ValueError

    done: list[str] = []
    connection.after_commit(lambda: done.append("never"), before=fail)
    with pytest.raises(ValueError):  # noqa: PT011
        connection.commit()
    connection.commit()
    assert done == []
