"""What a client wants while the pool still works for it."""

from __future__ import annotations

import threading

from .client import Client, make_frame, wait_until
from .conftest import Site


def test_what_waits_for_a_handler_is_limited_in_bytes_and_kept_as_text(
    site: Site, port: int
) -> None:
    request = {"type": "send", "channel": "posts/7", "data": "block"}
    nested = b'{"type":"send","channel":"posts/7","data":[' + b"[]," * 10_000 + b"[]]}"
    with Client(port) as client:
        client.subscribe("posts/7")
        client.send(**request)
        sender = threading.Thread(
            target=client.socket.sendall, args=(make_frame(0x81, nested) * 20,), daemon=True
        )
        sender.start()
        with site.app.app_context():
            hub = site.litestack.cable.hub()
        [served_client] = hub._connections._clients
        wait_until(lambda: not served_client.watched)
        assert served_client.inbox is not None
        assert all(isinstance(item, str) for item in served_client.inbox)
        assert served_client.inbox_size < 65_536 + 2 * len(nested)
        site.gate.set()
        wait_until(lambda: len(site.seen) == 21)
        sender.join()


def test_a_client_that_is_gone_takes_no_room_until_its_next_ping(site: Site, port: int) -> None:
    with Client(port, headers={"X-Long": "x" * 5000}) as client:
        client.subscribe("posts/7")
    wait_until(lambda: site.seen == [("left", None, 7)])
    with site.app.app_context():
        hub = site.litestack.cable.hub()
    [gone] = [client for waiting in hub._pings._due.values() for client in waiting]
    wait_until(lambda: gone.environ == b"")
