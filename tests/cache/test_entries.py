"""The ids of keys."""

from __future__ import annotations

from flask_litestack.cache import entries


def test_keys_of_any_number_and_length_are_not_kept_in_memory() -> None:
    identities = entries._Identities()
    for i in range(entries.REMEMBERED + 10):
        identities[f"key-{i}"]
    assert len(identities) <= entries.REMEMBERED
    long = "x" * 10_000
    assert identities[long] == entries.identify(long)
    assert long not in identities
