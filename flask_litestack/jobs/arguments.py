"""The arguments of a call as JSON text, and back.

Beyond JSON's own types these go there and back unchanged: tuple, set, frozenset, datetime, date,
time, timedelta, UUID, Decimal, bytes and Enum members, dictionaries with other keys than strings,
and the floats that JSON has no word for. Anything else is refused when the job is enqueued.
Never pickle: a row of a database must not be able to run code.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from importlib import import_module
from typing import Any
from uuid import UUID

from ..errors import ArgumentsError


def _encoder() -> Callable[[Any], str]:
    """Return JSON's encoder, made once: ``JSONEncoder.encode`` makes its inner part each time."""
    slow = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # not CPython
        return slow.encode
    fast = make(
        None,  # no check for cycles: what comes here has been walked through already
        slow.default,
        json.encoder.encode_basestring,
        None,
        ":",
        ",",
        False,
        False,
        False,
    )
    return lambda value: "".join(fast(value, 0))


#: The key that marks one of our types, e.g. {"$date": "2026-01-31"}.
_MARK = "$"

_dumps = _encoder()
_loads = json.JSONDecoder().decode

_SIMPLE = frozenset({str, int, bool, type(None)})


def encode(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the JSON text of a call.

    :param name: the task, for the message of the error.
    :raises ArgumentsError: naming the argument that cannot be stored.
    """
    try:
        for value in args:
            if type(value) not in _SIMPLE:
                break
        else:
            if not kwargs:
                return _text([args])
        plain = [
            [_plain(value, f"argument {i}", name) for i, value in enumerate(args, 1)],
            {key: _plain(value, f"argument {key!r}", name) for key, value in kwargs.items()},
        ]
        return _text(plain if kwargs else plain[:1])
    except (RecursionError, ValueError) as error:
        where = _culprit(name, args, kwargs)
        raise ArgumentsError(f"{where} of {name} cannot be stored: {error}.") from None


def _culprit(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Name the argument that nests too deeply, itself in itself perhaps, or is too long."""
    named = {f"argument {i}": value for i, value in enumerate(args, 1)}
    named |= {f"argument {key!r}": value for key, value in kwargs.items()}
    for where, value in named.items():
        try:
            _text([_plain(value, where, name)])
        except (RecursionError, ValueError):
            return where
    return "one of the arguments"


def digest(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a short text that equal arguments have in common, in whatever order they come.

    :param name: the task, for the message of the error.
    :param arguments: by parameter; values that :func:`encode` has accepted.
    """
    plain = {key: _plain(value, f"argument {key!r}", name) for key, value in arguments.items()}
    text = json.dumps(_in_order(plain), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _in_order(plain: Any) -> Any:
    """Put what has no order of its own, sets and dictionaries, into one."""
    if isinstance(plain, list):
        return [_in_order(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ordered = {key: _in_order(item) for key, item in plain.items()}
    for mark in ("$set", "$frozenset", "$dict"):
        if mark in ordered:
            ordered[mark] = sorted(ordered[mark], key=lambda item: json.dumps(item, sort_keys=True))
    return ordered


def decode(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments of a stored call.

    :raises ArgumentsError: if the text is not one that :func:`encode` wrote, or names an Enum that
        is gone.
    """
    try:
        call = _loads(text)
        args = call[0]
        kwargs = call[1] if len(call) > 1 else {}
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError("not a call")
        if '{"$' in text:
            args = [_rich(value) for value in args]
            kwargs = {name: _rich(value) for name, value in kwargs.items()}
    except ArgumentsError:
        raise
    except Exception as error:
        raise ArgumentsError(
            f"the stored arguments cannot be read: {text[:200]!r} ({error})"
        ) from error
    return args, kwargs


def _text(call: list[Any]) -> str:
    text = _dumps(call)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, as in some file names
            return json.dumps(call, separators=(",", ":"))
    return text


def _plain(value: Any, where: str, task: str) -> Any:
    """Turn a value into what JSON can say; ``where`` names it in the error."""
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [_plain(item, f"{where}, item {i}", task) for i, item in enumerate(value)]
    if kind is dict:
        return _plain_dict(value, where, task)
    if kind in (tuple, set, frozenset):
        return {f"${kind.__name__}": [_plain(item, f"{where}, an item", task) for item in value]}
    if isinstance(value, enum.Enum):
        return _plain_enum(value, where, task)
    writer = _WRITERS.get(kind)
    if writer is None:
        raise ArgumentsError(_refusal(value, where, task))
    return {f"${kind.__name__}": writer(value)}


def _plain_dict(value: dict[Any, Any], where: str, task: str) -> dict[str, Any]:
    items = [(key, _plain(item, f"{where}, key {key!r}", task)) for key, item in value.items()]
    if all(type(key) is str and not key.startswith(_MARK) for key in value):
        return dict(items)
    return {"$dict": [[_plain(key, f"{where}, a key", task), item] for key, item in items]}


def _plain_enum(value: enum.Enum, where: str, task: str) -> dict[str, Any]:
    path = f"{type(value).__module__}:{type(value).__qualname__}"
    try:
        found = _find_enum(path)
    except ArgumentsError:
        found = None
    if found is not type(value):
        raise ArgumentsError(
            f"{where} of {task} is {value!r}: the worker could not import {path}. Define the "
            "Enum at the top of a module."
        )
    if isinstance(value, enum.Flag) and value.name not in found.__members__:
        return {"$Flag": [path, value.value]}  # several at once, or none
    return {"$Enum": [path, value.name]}


def _refusal(value: Any, where: str, task: str) -> str:
    kind = type(value)
    said = f"{where} of {task} is a {kind.__module__}.{kind.__qualname__}, which cannot be stored"
    if hasattr(kind, "__mapper__"):
        return f"{said}. Pass its id, and load it in the task: its row may have changed by then."
    names = ", ".join(cls.__name__ for cls in _WRITERS)
    return f"{said}. JSON's types can, and tuple, set, Enum, {names}."


def _timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _datetime(value: datetime) -> list[Any]:
    # A named zone is kept: tomorrow at the same hour may have another offset.
    zone = getattr(value.tzinfo, "key", None)
    return [value.isoformat(), zone, value.fold]


_WRITERS: dict[type, Callable[[Any], Any]] = {
    datetime: _datetime,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _timedelta,
    UUID: str,
    Decimal: str,
    bytes: lambda value: base64.b64encode(value).decode("ascii"),
}


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, content),) = value.items()
        if key.startswith(_MARK):
            reader = _READERS.get(key)
            if reader is None:
                raise ArgumentsError(f"the stored arguments have a type this release lacks: {key}")
            return reader(content)
    return {key: _rich(item) for key, item in value.items()}


def _read_datetime(content: list[Any]) -> datetime:
    text, zone, fold = content
    moment = datetime.fromisoformat(text)
    if zone is not None:
        from zoneinfo import ZoneInfo

        moment = moment.replace(tzinfo=ZoneInfo(zone))
    return moment.replace(fold=fold)


def _read_enum(content: list[str]) -> enum.Enum:
    path, name = content
    return _find_enum(path)[name]


def _read_flag(content: list[Any]) -> enum.Enum:
    path, value = content
    return _find_enum(path)(value)


def _find_enum(path: str) -> type[enum.Enum]:
    module, _, names = path.partition(":")
    try:
        found: Any = sys.modules.get(module) or import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ArgumentsError(f"there is no Enum {path} any more: {error}") from error
    if not isinstance(found, type) or not issubclass(found, enum.Enum):
        raise ArgumentsError(f"{path} is not an Enum")
    return found


_READERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$tuple": lambda content: tuple(map(_rich, content)),
    "$set": lambda content: set(map(_rich, content)),
    "$frozenset": lambda content: frozenset(map(_rich, content)),
    "$dict": lambda content: {_rich(key): _rich(item) for key, item in content},
    "$Enum": _read_enum,
    "$Flag": _read_flag,
    "$datetime": _read_datetime,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": lambda content: timedelta(*content),
    "$UUID": UUID,
    "$Decimal": Decimal,
    "$bytes": base64.b64decode,
}
