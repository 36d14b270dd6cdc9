"""Whatever is done to the queue belongs to the transaction that is open, as DESIGN says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, func, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError

from flask_litestack import Litestack
from flask_litestack.errors import JobStateError
from flask_litestack.jobs import Task
from flask_litestack.testing import JobTester

from ..conftest import Model, Post


@dataclass
class Shop:
    """An app with a queue: job 1 waits, 2 has failed, 3 has succeeded; the queue "held" is paused.

    The task "unique" has job 4, and the task "outer" runs what it is given in a job.
    """

    app: Flask
    litestack: Litestack
    plain: Task[[int], None]
    unique: Task[[int], None]

    def seen_by_others(self) -> list[Any]:
        connection = self.litestack.jobs.connect()
        try:
            return [
                *connection.execute("SELECT id, state, task, arguments FROM litestack_jobs"),
                *connection.execute("SELECT queue FROM litestack_job_pauses"),
                *connection.execute("SELECT id FROM post"),
            ]
        finally:
            connection.close()


@pytest.fixture(params=["our own session", "an adopted session"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path
    if request.param == "our own session":
        litestack = Litestack(metadata=Model.metadata)
    else:
        db = SQLAlchemy(model_class=Model, disable_autonaming=True)
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.sqlite3"
        db.init_app(app)
        litestack = Litestack(db=db)
    litestack.init_app(app)

    @litestack.task(name="plain")
    def plain(n: int) -> None:
        pass

    @litestack.task(name="unique", unique="queued")
    def unique(n: int) -> None:
        pass

    with app.app_context():
        litestack.db.create_all()
        for n in range(3):
            plain.enqueue(n)
        unique.enqueue(0)
        litestack.jobs.pause("held")
        connection = litestack.jobs.connect()
        for job_id, state in [(2, "failed"), (3, "succeeded")]:
            connection.execute(
                "UPDATE litestack_jobs SET state = ?, finished_at = 1 WHERE id = ?", (state, job_id)
            )
        connection.close()
        yield Shop(app, litestack, plain, unique)
        litestack.db.session.close()
        litestack.db.engine.dispose()
        idle = litestack.jobs._state()._idle
        while idle:  # hundreds of apps would keep a thousand descriptors until a collection
            idle.pop().close()


Action = Callable[[Shop], object]

ENQUEUES: dict[str, Action] = {
    "plain": lambda shop: shop.plain.enqueue(7),
    "unique": lambda shop: shop.unique.enqueue(7),
    "unique key": lambda shop: shop.plain.using(unique_key="k").enqueue(7),
    "retries": lambda shop: shop.plain.using(retries=1).enqueue(7),
    "scheduled": lambda shop: shop.plain.using(run_after=60).enqueue(7),
}
ACTIONS: dict[str, Action] = {
    **ENQUEUES,
    "many": lambda shop: shop.litestack.jobs.enqueue_many(
        [shop.plain.call(7), shop.unique.call(7), shop.unique.call(7)]
    ),
    "cancel": lambda shop: shop.litestack.jobs.cancel(1),
    "retry": lambda shop: shop.litestack.jobs.retry(2),
    "retry_failed": lambda shop: shop.litestack.jobs.retry_failed(),
    "delete": lambda shop: shop.litestack.jobs.delete(2),
    "prune": lambda shop: shop.litestack.jobs.prune(),
    "pause": lambda shop: shop.litestack.jobs.pause("mail"),
    "resume": lambda shop: shop.litestack.jobs.resume("held"),
}


def with_pending_changes(shop: Shop, act: Callable[[], None], *, fails: bool) -> None:
    session = shop.litestack.db.session
    session.add(Post(title="new"))
    act()
    session.rollback() if fails else session.commit()


def with_an_uncommitted_write(shop: Shop, act: Callable[[], None], *, fails: bool) -> None:
    session = shop.litestack.db.session
    session.add(Post(title="new"))
    session.flush()
    act()
    session.rollback() if fails else session.commit()


def in_begin(shop: Shop, act: Callable[[], None], *, fails: bool) -> None:
    with shop.litestack.db.session.begin():
        act()
        if fails:
            raise ZeroDivisionError


def in_begin_nested(shop: Shop, act: Callable[[], None], *, fails: bool) -> None:
    """The savepoint alone is rolled back."""
    session = shop.litestack.db.session
    with session.begin():
        with suppress(ZeroDivisionError), session.begin_nested():
            act()
            if fails:
                raise ZeroDivisionError


def in_write(shop: Shop, act: Callable[[], None], *, fails: bool) -> None:
    with shop.litestack.db.write():
        act()
        if fails:
            raise ZeroDivisionError


BLOCKS = [with_pending_changes, with_an_uncommitted_write, in_begin, in_begin_nested, in_write]


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_it_belongs_to_the_transaction(shop: Shop, block: Any, action: str, fails: bool) -> None:
    before = shop.seen_by_others()
    told: list[str] = []

    def act() -> None:
        shop.litestack.db.after_commit(lambda: told.append("it is committed"))
        ACTIONS[action](shop)
        assert shop.seen_by_others() == before
        assert told == []

    with suppress(ZeroDivisionError):
        block(shop, act, fails=fails)
    if fails:
        assert shop.seen_by_others() == before
        assert told == []
    else:
        assert shop.seen_by_others() != before
        assert told == ["it is committed"]


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
@pytest.mark.parametrize("action", ACTIONS)
def test_it_belongs_to_the_job(shop: Shop, action: str, fails: bool) -> None:
    told: list[str] = []
    before: list[Any] = []

    @shop.litestack.task(queue="outer", retries=0)
    def outer() -> None:
        before.extend(shop.seen_by_others())
        shop.litestack.db.after_commit(lambda: told.append("it is committed"))
        ACTIONS[action](shop)
        assert shop.seen_by_others() == before
        assert told == []
        if fails:
            raise ZeroDivisionError

    job = outer.enqueue()
    (done,) = JobTester(shop.app).run(queue="outer", raise_errors=False)
    assert done.state == ("failed" if fails else "succeeded")
    after = [row for row in shop.seen_by_others() if row[0] != job.id]
    same = [row for row in before if row[0] != job.id]
    assert (after == same) is fails
    assert told == ([] if fails else ["it is committed"])


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
@pytest.mark.parametrize("action", ENQUEUES)
def test_after_commit_waits_for_the_next_one(shop: Shop, action: str, fails: bool) -> None:
    before = shop.seen_by_others()
    waiting = replace(
        shop,
        plain=shop.plain.using(after_commit=True),
        unique=shop.unique.using(after_commit=True),
    )
    ENQUEUES[action](waiting)
    assert shop.seen_by_others() == before
    session = shop.litestack.db.session
    session.rollback() if fails else session.commit()
    assert (shop.seen_by_others() == before) is fails


@pytest.mark.parametrize("action", ACTIONS)
def test_on_a_session_that_has_only_read_it_is_stored_at_once(shop: Shop, action: str) -> None:
    before = shop.seen_by_others()
    shop.litestack.db.session.scalar(select(func.count()).select_from(Post))
    ACTIONS[action](shop)
    assert shop.seen_by_others() != before


@pytest.mark.parametrize("name", ["after_commit", "after_rollback"])
@pytest.mark.parametrize("after_commit", [False, True])
def test_in_sqlalchemys_event_of_an_end_it_is_stored_at_once(
    shop: Shop, name: str, after_commit: bool
) -> None:
    before = shop.seen_by_others()
    session = shop.litestack.db.session
    send = shop.plain.using(after_commit=after_commit)
    event.listen(session, name, lambda session: send.enqueue(7), once=True)
    session.add(Post(id=9, title="new"))
    session.flush()
    session.commit() if name == "after_commit" else session.rollback()
    new = [row for row in shop.seen_by_others() if row not in before]
    assert [row[3] for row in new if len(row) == 4] == ["[[7]]"]
    assert ((9,) in new) is (name == "after_commit")


def test_in_the_event_of_a_jobs_own_commit_too(shop: Shop) -> None:
    @shop.litestack.task(queue="outer")
    def outer() -> None:
        session = shop.litestack.db.session
        event.listen(session, "after_commit", lambda session: shop.plain.enqueue(7), once=True)
        session.add(Post(title="new"))

    outer.enqueue()
    JobTester(shop.app).run(queue="outer")
    assert shop.litestack.jobs.list()[0].args == [7]


def test_after_work_that_follows_the_commit_may_ask_to_wait_for_it(shop: Shop) -> None:
    send = shop.plain.using(after_commit=True)
    with shop.litestack.db.write():
        shop.litestack.db.after_commit(lambda: send.enqueue(7))
    assert shop.litestack.jobs.list()[0].args == [7]


def test_a_session_whose_flush_failed_is_not_passed_over(shop: Shop) -> None:
    session = shop.litestack.db.session
    session.add(Post(id=9, title="new"))
    session.add(Post(id=9, title="new"))
    with pytest.raises(IntegrityError):
        session.flush()
    before = shop.seen_by_others()
    with pytest.raises(PendingRollbackError):
        shop.plain.enqueue(7)
    session.rollback()
    assert shop.seen_by_others() == before


def test_many_are_all_or_none_even_where_the_transaction_goes_on(shop: Shop) -> None:
    calls = [shop.plain.call(7), shop.unique.using(queue="\udce9").call(7)]
    before = shop.seen_by_others()
    with shop.litestack.db.write():
        with pytest.raises(UnicodeEncodeError):
            shop.litestack.jobs.enqueue_many(calls)
        shop.plain.enqueue(8)
    after = shop.seen_by_others()
    assert [row[3] for row in after if row not in before] == ["[[8]]"]


def test_what_is_refused_leaves_the_transaction_as_it_was(shop: Shop) -> None:
    with shop.litestack.db.write():
        shop.plain.enqueue(7)
        with pytest.raises(JobStateError):
            shop.litestack.jobs.retry(1)
    assert shop.litestack.jobs.counts()["queued"] == 3


def test_the_first_tables_of_all_do_not_commit_the_transaction(app: Flask) -> None:
    litestack: Litestack = app.extensions["litestack"]
    told: list[str] = []

    @litestack.task
    def act() -> None:
        pass

    with app.app_context():
        with suppress(ZeroDivisionError), litestack.db.session.begin():
            litestack.db.after_commit(lambda: told.append("it is committed"))
            act.enqueue()
            raise ZeroDivisionError
        assert told == []
        assert not litestack.jobs.is_used()
        litestack.db.close_session()
