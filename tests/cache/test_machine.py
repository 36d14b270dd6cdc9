"""The cache against a dict with a clock, as a hypothesis state machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flask_litestack.cache import SQLiteCache

from .clock import Clock

keys = st.sampled_from(["a", "b", "c", "d"])
values = st.one_of(
    st.integers(), st.none(), st.booleans(), st.text(max_size=5), st.binary(max_size=2000)
)
timeouts = st.sampled_from([None, 0, 1, 10, 300, -1])
deltas = st.one_of(st.integers(-5, 5), st.sampled_from([2**61, 2**62, -(2**63), 2**70]))


class CacheMachine(RuleBasedStateMachine):
    """Two caches over one file, as two processes, must both be the dict."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        options: dict[str, Any] = {"clock": self.clock, "key_prefix": "p:"}
        self.caches = [SQLiteCache(Path(self.folder.name), **options) for _ in range(2)]
        self.turn = 0
        self.model: dict[str, tuple[float, Any]] = {}

    @property
    def cache(self) -> SQLiteCache:
        self.turn += 1
        return self.caches[self.turn % 2]

    def live(self, key: str) -> tuple[float, Any] | None:
        found = self.model.get(key)
        return found if found and found[0] > self.clock.now else None

    def value(self, key: str) -> Any:
        found = self.live(key)
        return found[1] if found else None

    def store(self, key: str, value: Any, timeout: int | None) -> bool:
        seconds = 300 if timeout is None else timeout
        if seconds < 0:
            self.model.pop(key, None)
            return False
        self.model[key] = (self.clock.now + seconds if seconds else float("inf"), value)
        return True

    @rule(key=keys, value=values, timeout=timeouts)
    def set(self, key: str, value: Any, timeout: int | None) -> None:
        assert self.cache.set(key, value, timeout) == self.store(key, value, timeout)

    @rule(pairs=st.dictionaries(keys, values), timeout=timeouts)
    def set_many(self, pairs: dict[str, Any], timeout: int | None) -> None:
        stored = [key for key, value in pairs.items() if self.store(key, value, timeout)]
        assert self.cache.set_many(pairs, timeout) == stored

    @rule(key=keys, value=values, timeout=st.sampled_from([None, 0, 1, 10]))
    def add(self, key: str, value: Any, timeout: int | None) -> None:
        expected = self.live(key) is None
        if expected:
            self.store(key, value, timeout)
        assert self.cache.add(key, value, timeout) is expected

    @rule(key=keys)
    def get(self, key: str) -> None:
        # A miss gives a lease, which the other cache's set or delete would void.
        got = self.caches[0].get(key)
        self.caches[0]._contexts.current()._missed.clear()
        assert got == self.value(key)
        assert type(got) is type(self.value(key))

    @rule(key=keys)
    def has(self, key: str) -> None:
        assert self.cache.has(key) is (self.live(key) is not None)

    @rule(wanted=st.lists(keys))
    def get_many(self, wanted: list[str]) -> None:
        assert self.caches[1].get_many(*wanted) == [self.value(key) for key in wanted]
        self.caches[1]._contexts.current()._missed.clear()

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.cache.delete(key) is (self.live(key) is not None)
        self.model.pop(key, None)

    @rule(wanted=st.lists(keys))
    def delete_many(self, wanted: list[str]) -> None:
        assert self.cache.delete_many(*wanted) == wanted
        for key in wanted:
            self.model.pop(key, None)

    @rule(key=keys, delta=deltas)
    def inc(self, key: str, delta: int) -> None:
        found = self.live(key)
        if found is None:
            self.store(key, delta, None)
        elif isinstance(found[1], (int, type(None))):
            self.model[key] = (found[0], (found[1] or 0) + delta)
        else:
            return
        assert self.cache.inc(key, delta) == self.model[key][1]

    @rule(key=keys, value=values, timeout=st.sampled_from([None, 0, 1, 10]))
    def get_or_set(self, key: str, value: Any, timeout: int | None) -> None:
        found = self.live(key)
        if found is None:
            self.store(key, value, timeout)
        assert self.cache.get_or_set(key, lambda: value, timeout) == self.value(key)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()

    @rule(seconds=st.sampled_from([0.5, 1, 9, 10, 300]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def reopen(self) -> None:
        self.cache.close()

    @invariant()
    def all_is_as_in_the_dict(self) -> None:
        live = sum(self.live(key) is not None for key in self.model)
        stats = self.caches[0].stats()
        assert stats.entries - stats.expired == live

    def teardown(self) -> None:
        for cache in self.caches:
            cache.close()
        self.folder.cleanup()


CacheMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCacheMachine = CacheMachine.TestCase
