"""The tree drawn at the top of errors.py is the tree there is."""

from __future__ import annotations

import pickle
import re

from sqlalchemy import exc

import flask_litestack
from flask_litestack import errors
from flask_litestack.errors import LitestackError
from flask_litestack.sqlite import driver


def drawn() -> dict[str, str]:
    """Read each class's parent from the drawing: four columns a level."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ |]*)(?:\+-- )?(\w+)(?:  |$)", line)
        if match is None or not hasattr(errors, match[2]):
            continue
        level = 0 if match[2] == "LitestackError" else (len(match[1]) - 1) // 5 + 1
        del path[level:]
        if path:
            parents[match[2]] = path[-1]
        path.append(match[2])
    return parents


def classes() -> dict[str, type[LitestackError]]:
    found = {}
    for name, thing in vars(errors).items():
        if isinstance(thing, type) and issubclass(thing, LitestackError):
            found[name] = thing
    del found["LitestackError"]
    return found


def test_every_error_is_drawn_under_its_parent() -> None:
    assert drawn() == {name: cls.__bases__[0].__name__ for name, cls in classes().items()}


def test_every_error_says_when_it_is_raised() -> None:
    assert all(cls.__doc__ for cls in classes().values())


def test_every_error_can_be_caught_by_a_name_of_the_package() -> None:
    assert [name for name in classes() if not hasattr(flask_litestack, name)] == []


def test_an_error_of_a_statement_is_sqlalchemys_and_the_drivers_too_and_stays_itself() -> None:
    error = errors.LockTimeout("the lock was not free")
    assert isinstance(error, exc.OperationalError)
    assert isinstance(error, driver.OperationalError)
    assert error.orig is error
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (errors.LockTimeout, "the lock was not free")
