from __future__ import annotations

import base64
import os
from collections.abc import Callable

import pytest
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from flask_litestack import ConfigError
from flask_litestack.cable.handshake import accept, check_origin, check_origins, keep, restore

from .client import Client, Refused
from .conftest import Site, served


def request(**headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return EnvironBuilder("/cable", headers=named).get_request()


def test_the_answer_is_that_of_the_standards_example() -> None:
    answer = accept(
        request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==", Sec_WebSocket_Version="13")
    )
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer


def test_the_subprotocol_is_confirmed_to_who_asks() -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    asked = {"Sec_WebSocket_Key": key, "Sec_WebSocket_Version": "13"}
    assert b"-Protocol" not in accept(request(**asked, Sec_WebSocket_Protocol="chat"))
    offered = "chat, litestack.cable.v1"
    answer = accept(request(**asked, Sec_WebSocket_Protocol=offered))
    assert b"Sec-WebSocket-Protocol: litestack.cable.v1\r\n" in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": ""}, 426),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": ""}, 400),
        ({"Sec_WebSocket_Key": "####" * 6}, 400),
    ],
)
def test_a_malformed_handshake_is_refused(headers: dict[str, str], status: int) -> None:
    valid = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "13"}
    with pytest.raises(HTTPException) as refused:
        accept(request(**(valid | headers)))
    assert refused.value.code == status


@pytest.mark.parametrize(
    ("host", "origin", "allowed", "ok"),
    [
        ("example.org", "https://example.org", (), True),
        ("example.org", "http://EXAMPLE.org:80", (), True),
        ("example.org:443", "https://example.org", (), True),
        ("example.org:8000", "http://example.org:8000", (), True),
        ("[::1]:8000", "http://[::1]:8000", (), True),
        ("[::1]", "http://[::1]:80", (), True),
        ("example.org:8000", "http://example.org", (), False),
        ("example.org", "https://example.org.evil.net", (), False),
        ("example.org", "https://evil.net", (), False),
        ("example.org", "https://evil.net/example.org", (), False),
        ("example.org", "https://evil.net@example.org", (), False),
        ("example.org", "null", (), False),
        ("null", "null", (), False),
        ("example.org", "", (), False),
        ("example.org", "https://www.example.org", ("https://www.example.org",), True),
        ("example.org", "https://www.example.org", ("www.example.org:443",), True),
        ("example.org", "https://evil.net", ("*",), True),
        ("example.org", "null", ("*",), True),
    ],
)
def test_only_pages_of_the_same_host_may_connect(
    host: str, origin: str, allowed: tuple[str, ...], ok: bool
) -> None:
    asked = request(Host=host, Origin=origin)
    if ok:
        check_origin(asked, allowed)
    else:
        with pytest.raises(HTTPException) as refused:
            check_origin(asked, allowed)
        assert refused.value.code == 403


def test_a_client_that_is_no_browser_has_no_origin() -> None:
    check_origin(request(Host="example.org"), ())


def test_a_wrong_origin_in_the_settings_is_an_error() -> None:
    with pytest.raises(ConfigError, match="LITESTACK_CABLE_ORIGINS holds 'null'"):
        check_origins(["https://example.org", "null"])


def test_the_origin_is_checked_for_websockets_and_event_streams(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_origins="https://www.example.org")
    with served(site.app) as port:
        for path in ("/cable", "/cable?channel=posts/7"):
            with pytest.raises(Refused) as refused:
                Client(port, path, headers={"Origin": "https://evil.net"})
            assert refused.value.status == 403
        Client(port, headers={"Origin": "https://www.example.org"}).close()


def test_the_request_can_be_rebuilt_without_what_only_the_handshake_needs() -> None:
    builder = EnvironBuilder(
        "/cable",
        query_string={"a": "ä"},
        base_url="https://example.org/app",
        headers={"Cookie": "session=x", "Sec-WebSocket-Key": "secret", "X-Tenant": "7"},
        environ_base={"REMOTE_ADDR": "10.0.0.1", "something": object()},
    )
    packed = keep(builder.get_environ())
    assert b"secret" not in packed
    rebuilt = Request(restore(packed))
    assert rebuilt.url == "https://example.org/app/cable?a=ä"
    assert rebuilt.cookies["session"] == "x"
    assert rebuilt.headers["X-Tenant"] == "7"
    assert rebuilt.remote_addr == "10.0.0.1"


def test_a_client_cannot_make_the_server_keep_much(port: int) -> None:
    with pytest.raises(Refused) as refused:
        Client(port, headers={f"X-{number}": "x" * 4000 for number in range(5)})
    assert refused.value.status == 431
