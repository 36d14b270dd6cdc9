"""Where a thread stood, taken in a microsecond or two and formatted only when someone asks."""

from __future__ import annotations

import linecache
import sys
from types import CodeType

#: Frames kept, innermost first; a request through Flask and SQLAlchemy is about 40 deep.
DEPTH = 60

#: Frames inside these packages never tell a user where their own code is.
LIBRARIES = ("/flask_litestack/", "/sqlalchemy/", "/contextlib.py", "/flask/", "/werkzeug/")


class Place:
    """The call stack at one moment."""

    __slots__ = ("_frames",)

    def __init__(self, skip: int = 1) -> None:
        frames: list[tuple[CodeType, int]] = []
        frame = sys._getframe(skip)
        while frame is not None and len(frames) < DEPTH:
            frames.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back  # type: ignore[assignment]
        self._frames = frames

    def __str__(self) -> str:
        """Name the innermost line of the user's own code, e.g. ``views.py:12 in edit``."""
        own = [f for f in self._frames if not any(lib in f[0].co_filename for lib in LIBRARIES)]
        code, offset = (own or self._frames)[0]
        return f"{code.co_filename}:{_line(code, offset)} in {code.co_name}"

    def format(self) -> str:
        """Return the whole stack as a traceback prints it, innermost last."""
        lines = []
        for code, offset in reversed(self._frames):
            number = _line(code, offset)
            lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}')
            if text := linecache.getline(code.co_filename, number).strip():
                lines.append(f"    {text}")
        return "\n".join(lines)


def _line(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno
