"""What is done: the same ORM code for every peer."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable

from sqlalchemy import Engine, insert, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from ._measure import Operation
from ._peers import Peer

ROWS = 10_000

#: How long a saturating writer keeps its transaction open, in seconds.
HOLD = 0.002

#: The part of writes in the mixed workload.
WRITES = 0.2


class Base(DeclarativeBase):
    """The benchmark's tables."""


class Item(Base):
    """A small row, as most rows are."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    count: Mapped[int] = mapped_column(default=0)


class Retries:
    """Repeats an operation that the database refused, as the application would have to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, operation: Operation) -> Operation:
        @functools.wraps(operation)
        def repeated() -> None:
            while True:
                try:
                    operation()
                    return
                except OperationalError:
                    self.count += 1

        return repeated


Workload = Callable[[Engine], Operation]


def create(engine: Engine) -> None:
    """Make and fill the tables."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(insert(Item), [{"name": f"item {i}", "count": 0} for i in range(ROWS)])
        session.commit()


def prepare(peer: Peer, workload: Workload, number: int) -> tuple[Operation, Callable[[], int]]:
    """Make a worker's operation and the count of its retries."""
    random.seed(number)
    retries = Retries()
    engine = peer.engine()
    if peer.in_memory:
        create(engine)
    return retries(workload(engine)), lambda: retries.count


def point_read(engine: Engine) -> Operation:
    """Load one object by its primary key in a session of its own."""

    def operation() -> None:
        with Session(engine) as session:
            session.get_one(Item, random.randint(1, ROWS))

    return operation


def read_modify_write(engine: Engine) -> Operation:
    """Load one object, change it and commit."""

    def operation() -> None:
        with Session(engine) as session:
            session.get_one(Item, random.randint(1, ROWS)).count += 1
            session.commit()

    return operation


def mixed(engine: Engine) -> Operation:
    """Do 80 point reads to 20 updates."""
    read, write = point_read(engine), read_modify_write(engine)
    return lambda: write() if random.random() < WRITES else read()


def saturate(engine: Engine) -> Operation:
    """Write, keep the transaction open for a while, commit, and at once again."""

    def operation() -> None:
        with engine.begin() as connection:
            row = random.randint(1, ROWS)
            connection.execute(update(Item).where(Item.id == row).values(count=Item.count + 1))
            time.sleep(HOLD)

    return operation
