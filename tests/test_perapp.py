"""One value for each app: made once, by one thread, and again after a failure."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from flask import Flask

from flask_litestack.perapp import PerApp, current_flask


def test_each_app_has_a_value_of_its_own() -> None:
    names = PerApp(lambda app: [app.name])
    one, two = Flask("one"), Flask("two")
    with one.app_context():
        first = names.current()
        assert first == ["one"]
        assert names.current() is first
        assert current_flask() is one
    with two.app_context():
        assert names.current() == ["two"]
    assert sorted(names.values()) == [["one"], ["two"]]


def test_threads_that_come_together_get_the_same_value() -> None:
    def make(app: Flask) -> object:
        time.sleep(0.05)
        return object()

    values, app, got = PerApp(make), Flask("app"), []

    def ask() -> None:
        with app.app_context():
            got.append(values.current())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert len(set(map(id, got))) == 1


def test_what_failed_is_tried_again() -> None:
    results = [ZeroDivisionError("not yet"), None]

    def make(app: Flask) -> str:
        if error := results.pop(0):
            raise error
        return "made"

    values = PerApp(make)
    with Flask("app").app_context():
        with pytest.raises(ZeroDivisionError):
            values.current()
        assert values.current() == "made"


def test_a_value_goes_with_its_app() -> None:
    values = PerApp(lambda app: "value")
    app = Flask("app")
    with app.app_context():
        values.current()
    del app
    gc.collect()
    assert values.values() == []
