"""The hand-over, event streams and the script, over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from simple_websocket import Client as ThreadClient
from simple_websocket import ConnectionClosed
from werkzeug.middleware.proxy_fix import ProxyFix

from .client import Client, Refused, make_frame, wait_until
from .conftest import Site, served


def test_frames_sent_together_with_the_handshake_are_not_lost(site: Site, port: int) -> None:
    early = make_frame(0x81, b'{"type":"subscribe","channel":"posts/7"}')
    with Client(port, early=early) as client:
        assert client.read()["type"] == "subscribed"


def test_middleware_sees_a_clean_101(site: Site) -> None:
    seen: list[str] = []

    def generator_middleware(environ: Any, start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            seen.append(status)
            return start_response(status, headers, exc_info)

        body = site.app.wsgi_app(environ, start)
        try:
            yield from body
        finally:
            body.close()  # type: ignore[attr-defined]
            seen.append("closed")

    with served(ProxyFix(generator_middleware, x_for=1, x_host=1)) as port:
        headers = {"X-Forwarded-Host": "example.org", "Origin": "https://example.org"}
        with Client(port, headers=headers) as client:
            client.subscribe("posts/7")
            wait_until(lambda: "closed" in seen)
            assert seen == ["101 SWITCHING PROTOCOLS", "closed"]
            site.broadcast("posts/7", "hello")
            assert client.read()["data"] == "hello"


def test_a_page_request_on_the_websocket_url_explains_itself(site: Site, port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for path in ("/cable", "/cable?since=1", "/cable?channel=a&channel=b&channel=c&since=1&since="):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == 400
    connection.request("HEAD", "/cable")
    assert connection.getresponse().status == 200
    connection.close()


class Events:
    """An EventSource."""

    def __init__(self, connection: http.client.HTTPConnection, path: str, **headers: str) -> None:
        connection.request("GET", path, headers=headers)
        self.response = connection.getresponse()
        self.last_id = ""
        self.retry = 0

    def read(self) -> dict[str, Any]:
        """Return the next message."""
        data = None
        while True:
            line = self.response.readline().decode().rstrip("\n")
            if line.startswith("id: "):
                self.last_id = line[4:]
            elif line.startswith("retry: "):
                self.retry = int(line[7:])
            elif line.startswith("data: "):
                data = line[6:]
            elif not line and data is not None:
                message: dict[str, Any] = json.loads(data)
                return message


@pytest.fixture
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    yield connection
    connection.close()


def test_an_event_stream_gets_the_same_messages(
    site: Site, connection: http.client.HTTPConnection
) -> None:
    names = ("posts/7", "posts/12", "nothing", "posts/8")
    events = Events(connection, "/cable?" + urlencode([("channel", name) for name in names]))
    assert events.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert events.response.headers["Cache-Control"] == "no-store, no-transform"
    answers = ["subscribed", "rejected", "rejected", "subscribed", "position"]
    assert [events.read()["type"] for _ in answers] == answers
    assert 1000 <= events.retry <= 5000
    site.broadcast("posts/12", "secret")
    site.broadcast("posts/8", "line\nbreak")
    message = events.read()
    assert message["data"] == "line\nbreak"
    assert events.last_id == str(message["id"])
    events.response.close()


def test_an_event_stream_resumes_by_its_last_event_id(
    site: Site, connection: http.client.HTTPConnection
) -> None:
    site.broadcast("posts/7", 1)
    since = site.last_id()
    site.broadcast("posts/7", 2)
    site.broadcast("posts/7", 3)
    events = Events(connection, "/cable?channel=posts/7", **{"Last-Event-ID": str(since)})
    assert events.read()["type"] == "subscribed"
    assert events.last_id == str(since)
    assert [events.read()["data"] for _ in range(2)] == [2, 3]
    events.response.close()


def test_an_event_stream_has_no_id_until_it_is_decided_about_all_of_its_channels(
    site: Site, connection: http.client.HTTPConnection
) -> None:
    since = site.last_id()
    for number in range(3):
        site.broadcast("posts/7", number)
        site.broadcast("posts/8", -number)
    path = f"/cable?channel=posts/7&channel=posts/18&channel=posts/8&since={since}"
    events = Events(connection, path)
    assert [events.read()["type"] for _ in range(4)] == ["subscribed"] + ["message"] * 3
    site.broadcast("posts/7", "meanwhile")
    assert events.read()["data"] == "meanwhile"
    assert events.last_id == ""  # from there it would miss what posts/8 has
    site.gate.set()
    answers = ["subscribed"] * 2 + ["message"] * 3 + ["position"]
    assert [events.read()["type"] for _ in answers] == answers
    assert events.last_id == str(site.last_id())
    site.broadcast("posts/8", "next")
    assert events.last_id == str(events.read()["id"] - 1)
    events.response.close()


def test_an_event_stream_can_resume_each_channel_from_another_id(
    site: Site, connection: http.client.HTTPConnection
) -> None:
    ids = []
    for number in range(3):
        for name in ("posts/7", "posts/8", "posts/9"):
            site.broadcast(name, number)
            ids.append(site.last_id())
    pairs = ("posts/7", ids[0]), ("posts/8", ""), ("posts/9", ids[5])
    query = "&".join(f"channel={name}&since={since}" for name, since in pairs)
    events = Events(connection, f"/cable?{query}")
    got = [events.read() for _ in range(7)]
    assert [(m["channel"], m["data"]) for m in got if m["type"] == "message"] == [
        ("posts/7", 1),
        ("posts/7", 2),
        ("posts/9", 2),
    ]
    assert got[-1]["type"] == "position"
    events.response.close()


def test_an_event_streams_client_that_is_dead_is_dropped(make_site: Callable[..., Site]) -> None:
    site = make_site(cable_ping_interval=1)
    with served(site.app) as port, socket.socket() as dead:
        dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        dead.connect(("127.0.0.1", port))
        dead.sendall(b"GET /cable?channel=posts/7 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: site.clients == 1)
        for _ in range(3):
            site.broadcast("posts/7", "x" * 60_000)
        wait_until(lambda: site.clients == 0, timeout=15)


def test_an_event_stream_that_is_read_too_slowly_is_ended_whole_and_resumes(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_buffer=100_000)
    since = site.last_id()
    with served(site.app) as port:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(10)
            slow.connect(("127.0.0.1", port))
            slow.sendall(b"GET /cable?channel=posts/7 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(lambda: site.clients == 1)
            for number in range(30):
                site.broadcast("posts/7", [number, "x" * 10_000])
            text = b""
            while data := slow.recv(65536):
                text += data
        *events, rest = text.decode().split("\n\n")
        assert rest == ""
        ids = [int(found[1]) for event in events if (found := re.match(r"id: (\d+)\n", event))]
        assert ids == list(range(since, since + len(ids)))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        wanted = site.last_id() - 2
        again = Events(connection, "/cable?channel=posts/7", **{"Last-Event-ID": str(wanted)})
        assert again.read()["type"] == "subscribed"
        assert [again.read()["data"][0] for _ in range(2)] == [28, 29]
        again.response.close()
        connection.close()


def test_an_event_stream_ends_when_the_server_stops(
    site: Site, connection: http.client.HTTPConnection
) -> None:
    events = Events(connection, "/cable?channel=posts/7")
    assert events.read()["type"] == "subscribed"
    site.litestack.cable.stop()
    assert events.response.read() == b""
    events.response.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    files = (str(folder / "cert.pem"), str(folder / "key.pem"))
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-out", files[0], "-keyout", files[1]],
        check=True,
        capture_output=True,
    )
    return files


def test_an_encrypted_connection_is_carried_by_a_thread(
    site: Site, certificate: tuple[str, str]
) -> None:
    trusting = ssl.create_default_context(cafile=certificate[0])
    trusting.check_hostname = False
    with served(site.app, ssl_context=certificate) as port:
        ws = ThreadClient.connect(f"wss://127.0.0.1:{port}/cable?user=ann", ssl_context=trusting)
        ws.send('{"type":"subscribe",\n"channel":"posts/7"}')
        assert json.loads(ws.receive(timeout=10))["type"] == "subscribed"
        ws.send('{"type":"send","channel":"posts/7","data":"é"}')
        wait_until(lambda: site.seen)
        assert site.seen == [("ann", 7, "é")]
        site.broadcast("posts/7", "hé")
        assert json.loads(ws.receive(timeout=10))["data"] == "hé"

        connection = http.client.HTTPSConnection("127.0.0.1", port, context=trusting, timeout=10)
        events = Events(connection, "/cable?channel=posts/7")
        assert events.read()["type"] == "subscribed"
        site.broadcast("posts/7", "to both")
        assert events.read()["data"] == json.loads(ws.receive(timeout=10))["data"] == "to both"

        with site.app.app_context():
            site.litestack.cable.disconnect("ann")
        with pytest.raises(ConnectionClosed) as closed:
            ws.receive(timeout=10)
        assert closed.value.reason == 4001
        events.response.close()
        connection.close()


class Tunnel(socket.socket):
    """Stands for the socket of a server that encrypts: not exactly a socket."""


def tunnelled(app: Any) -> Any:
    """Keep the cable from taking the connections of an app over."""

    def middleware(environ: Any, start_response: Any) -> Iterable[bytes]:
        real = environ["werkzeug.socket"]
        environ["werkzeug.socket"] = Tunnel(fileno=os.dup(real.fileno()))
        body: Iterable[bytes] = app(environ, start_response)
        return body

    return middleware


def test_a_thread_takes_no_message_that_is_too_big_and_none_that_is_compressed(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_max_message=1000)
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    with served(tunnelled(site.app)) as port:
        with Client(port, headers=offer) as client:
            assert "permessage-deflate" not in client.head
            client.subscribe("posts/7")
            client.send_frame(0x01, b"x" * 900)
            client.send_frame(0x80, b"x" * 200)
            assert client.read_until_close() == 1009
        wait_until(lambda: site.clients == 0)


def test_a_client_that_is_gone_during_a_threads_handshake_is_counted_once(site: Site) -> None:
    ours, other = socket.socketpair()
    other.close()
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    with Tunnel(fileno=ours.detach()) as tunnel:
        environ = {"werkzeug.socket": tunnel}
        answer = site.app.test_client().get("/cable", headers=headers, environ_overrides=environ)
    assert answer.status_code == 400
    with site.app.app_context():
        hub = site.litestack.cable.hub()
    wait_until(lambda: hub._admitted == hub.clients == 0)
    assert hub._admitted == 0


def test_the_script_is_cached_for_ever_under_its_version(site: Site) -> None:
    with site.app.test_request_context():
        tag = str(site.litestack.cable.script())
        assert site.app.jinja_env.from_string("{{ cable_script() }}").render() == tag
    attributes = 'data-url="/cable" data-silence="75" defer'
    match = re.fullmatch(rf'<script src="(/cable/cable-\w+\.js)" {attributes}></script>', tag)
    assert match is not None
    client = site.app.test_client()
    response = client.get(match[1])
    assert response.mimetype == "text/javascript"
    assert "immutable" in response.headers["Cache-Control"]
    old = client.get("/cable/cable-0123456789ab.js")
    assert (old.status_code, old.data) == (200, response.data)
    assert old.headers["Cache-Control"] == "no-store"
    source = Path(__file__).parents[2] / "flask_litestack/cable/static/cable.js"
    assert response.data == source.read_bytes()


def test_clients_are_refused_while_there_is_no_room(make_site: Callable[..., Site]) -> None:
    site = make_site(cable_max_clients=0)
    with served(site.app) as port:
        with pytest.raises(Refused) as refused:
            Client(port)
        assert refused.value.status == 503
