"""What is stored, and the ids of its keys."""

from __future__ import annotations

import math
import sys
from hashlib import blake2b
from typing import NamedTuple

#: What a row needs besides its key and value.
ROW_BYTES = 40

#: An entry that takes more than this part of the cache is not stored.
LARGEST = 1 / 4

#: The lowest and the highest id.
FIRST, LAST = -(1 << 63), (1 << 63) - 1

#: Keys whose ids are remembered, and the most characters of one.
REMEMBERED = 16_384
LONGEST_REMEMBERED = 256

FOR_EVER = math.inf


class Entry(NamedTuple):
    """What is stored."""

    number: int
    key: bytes
    expires: float
    kept: float
    value: bytes | int
    size: int
    """The bytes it takes, roughly; not stored."""


class _Identities(dict[str, tuple[int, bytes]]):
    """The ids of keys, remembered: faster than an ``lru_cache``, and not of endless keys."""

    def __missing__(self, key: str) -> tuple[int, bytes]:
        encoded = key.encode("utf-8", "surrogatepass")
        digest = blake2b(encoded, digest_size=8).digest()
        found = (int.from_bytes(digest, sys.byteorder, signed=True), encoded)
        if len(key) <= LONGEST_REMEMBERED:
            if len(self) >= REMEMBERED:
                self.clear()
            self[key] = found
        return found


#: Returns an entry's id, and its key as it is stored.
identify = _Identities().__getitem__
