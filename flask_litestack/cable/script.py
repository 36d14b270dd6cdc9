"""Serves cable.js under a URL with its version, to be cached for ever."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from flask import Response, abort, current_app, url_for
from markupsafe import Markup

ENDPOINT = "litestack_cable_script"

#: Ping intervals without a word from the server after which the script connects anew.
SILENCE = 2.5

_PATH = Path(__file__).with_name("static") / "cable.js"


def tag() -> Markup:
    """Return the script element; it needs no inline code, so ``script-src 'self'`` allows it."""
    source = url_for(ENDPOINT, version=_version())
    interval = current_app.extensions["litestack"].settings.cable_ping_interval
    silence = SILENCE * max(1.0, interval)  # as the hub does
    return Markup('<script src="{}" data-url="{}" data-silence="{:g}" defer></script>').format(
        source, url_for("litestack_cable"), silence
    )


def serve(version: str) -> Response:
    """Send the script; an old version's URL gets the new script, uncached."""
    response = Response(_source(), mimetype="text/javascript")
    if version == _version():
        response.cache_control.public = True
        response.cache_control.max_age = 365 * 24 * 3600
        response.cache_control.immutable = True
    elif not version.isalnum():
        abort(404)
    else:
        response.cache_control.no_store = True
    return response


@cache
def _source() -> bytes:
    return _PATH.read_bytes()


@cache
def _version() -> str:
    return hashlib.sha256(_source()).hexdigest()[:12]
