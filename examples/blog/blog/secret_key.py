"""The key that signs sessions: one file in the data folder, made by whoever comes first."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

FILE = "secret_key"


def load(folder: Path) -> str:
    """Return the key, and make it first if there is none.

    Several processes may start at once. Each writes a file of its own, whole and synced, and then
    links it to the name; only one link succeeds, and all of them read that one.
    """
    path = folder / FILE
    if not path.exists():
        draft = folder / f"{FILE}.{secrets.token_hex(8)}"
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was faster
        finally:
            draft.unlink(missing_ok=True)
    return path.read_text()
