from __future__ import annotations

import enum
import math
import os
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_litestack.errors import ArgumentsError
from flask_litestack.jobs.arguments import decode, digest, encode


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Model(DeclarativeBase):
    pass


class User(Model):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.datetimes(timezones=st.timezones())
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.sampled_from([*Colour, *Size])
)
keys = st.text() | st.integers() | st.booleans() | st.dates()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(st.integers() | st.dates(), max_size=4)
        | st.frozensets(st.text(), max_size=4)
    ),
    max_leaves=10,
)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, and of equal types all the way down."""
    if type(left) is not type(right) and not isinstance(left, datetime):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        pairs = zip(left.items(), right.items(), strict=True)
        return all(same(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
    if isinstance(left, datetime):
        return left.isoformat() == right.isoformat() and left.fold == right.fold
    return bool(left == right)


@given(st.lists(values, max_size=3), st.dictionaries(st.text(), values, max_size=3))
def test_what_goes_in_comes_out(args: list[Any], kwargs: dict[str, Any]) -> None:
    text = encode("task", tuple(args), kwargs)
    text.encode()
    assert same([args, kwargs], list(decode(text)))


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED,
        Size.SMALL,
        Right.READ,
        Right.READ | Right.WRITE,
        Right(0),
        (1, (2, [3])),
        {"$date": "not ours"},
        {"$x": 1, "y": 2},
        {1: "a", "1": "b"},
        {"deep": {"$dict": []}},
        float("inf"),
        -0.0,
        "\ud800",
        "süß",
        datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        time(12, 30, 1),
        date(2026, 1, 31),
        timedelta(days=-1, microseconds=1),
        UUID(int=7),
        Decimal("0.10"),
        b"\x00\xff",
        2**70,
        set(),
        frozenset({1}),
    ],
)
def test_types(value: Any) -> None:
    (args, kwargs) = decode(encode("task", (value,), {"named": [value]}))
    assert same(args, [value])
    assert same(kwargs, {"named": [value]})


def test_not_a_number_stays_one() -> None:
    ([value], _) = decode(encode("task", (math.nan,), {}))
    assert math.isnan(value)


def test_plain_arguments_are_plain_json() -> None:
    assert encode("task", (7, "ü"), {}) == '[[7,"ü"]]'
    assert encode("task", (7,), {"x": [1.5]}) == '[[7],{"x":[1.5]}]'


def test_a_model_is_refused_with_the_advice_to_pass_its_id() -> None:
    with pytest.raises(ArgumentsError, match=r"argument 2 of mails.send is a .*User.*its id"):
        encode("mails.send", (1, User(id=7)), {})


def test_the_argument_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(ArgumentsError, match=r"argument 'to', key 'a', item 1 of send is a .*obj"):
        encode("send", (), {"to": {"a": [1, object()]}})


def test_a_subclass_that_would_come_back_as_its_base_is_refused() -> None:
    class Name(str):
        pass

    with pytest.raises(ArgumentsError, match="Name"):
        encode("send", (Name("x"),), {})


def test_an_enum_that_cannot_be_imported_is_refused() -> None:
    class Local(enum.Enum):
        A = 1

    with pytest.raises(ArgumentsError, match="at the top of a module"):
        encode("send", (Local.A,), {})


def test_an_enum_that_is_gone() -> None:
    text = encode("send", (Colour.RED,), {}).replace("Colour", "Color")
    with pytest.raises(ArgumentsError, match=r"no Enum .*Color any more"):
        decode(text)


def test_text_that_is_not_ours_names_itself() -> None:
    for text in ("", "{}", "[", '["a"]', "[[1],2]", '[[{"$bytes": 7}]]'):
        with pytest.raises(ArgumentsError, match="cannot be read"):
            decode(text)


def test_an_enum_path_cannot_reach_anything_but_an_enum() -> None:
    with pytest.raises(ArgumentsError, match="not an Enum"):
        decode('[[{"$Enum":["os:system","x"]}]]')


def test_what_contains_itself_or_is_too_long_is_refused_by_name() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ArgumentsError, match=r"argument 2 of task cannot be stored: .*recursion"):
        encode("task", (1, loop), {})
    with pytest.raises(ArgumentsError, match=r"argument 'n' of task cannot be stored: .*digits"):
        encode("task", (1,), {"n": [10**5000]})
    with pytest.raises(ArgumentsError, match=r"argument 1 of task cannot be stored: .*digits"):
        encode("task", (10**5000,), {})


def test_equal_arguments_have_one_digest_in_whatever_order() -> None:
    one = {"a": {"x": 1, "y": {3: "c", 4: "d"}}, "b": {"p", "q", "r", "s"}, "c": [1, 2]}
    two = {"c": [1, 2], "b": {"s", "r", "q", "p"}, "a": {"y": {4: "d", 3: "c"}, "x": 1}}
    assert digest("task", one) == digest("task", two)
    assert digest("task", one) != digest("task", {**one, "c": [2, 1]})
    assert digest("task", {"a": {"1": 0}}) != digest("task", {"a": {1: 0}})


def test_a_set_has_the_same_digest_in_every_process() -> None:
    code = (
        "from flask_litestack.jobs.arguments import digest\n"
        "print(digest('task', {'a': {'p', 'q', 'r'}, 'b': frozenset(['x', 'y', 'z'])}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(found) == 1
