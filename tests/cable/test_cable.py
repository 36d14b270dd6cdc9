from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from flask_litestack import CableError, ChannelError, ConfigError
from tests.conftest import Post

from .client import Client, Refused, wait_until
from .conftest import Site, served


def test_a_subscriber_gets_broadcasts_of_its_channel_only(site: Site, port: int) -> None:
    with Client(port) as client:
        confirmation = client.subscribe("posts/7")
        site.broadcast("posts/8", "other")
        site.broadcast("posts/7", {"text": "hé😀 </script>"})
        message = client.read()
        assert message["type"] == "message"
        assert message["channel"] == "posts/7"
        assert message["data"] == {"text": "hé😀 </script>"}
        assert message["id"] > confirmation["id"]


def test_a_channel_broadcasts_by_its_parameters(site: Site, port: int) -> None:
    with Client(port) as client, site.app.app_context():
        client.subscribe("posts/7")
        assert site.posts.name(post_id=7) == "posts/7"
        site.posts.broadcast([1, None], post_id=7)
        assert client.read()["data"] == [1, None]


def test_messages_of_a_transaction_are_sent_after_its_commit_and_not_after_a_rollback(
    site: Site, port: int
) -> None:
    with Client(port) as client, site.app.app_context():
        db = site.litestack.db
        client.subscribe("posts/7")
        before = site.last_id()
        with db.write() as session:
            site.posts.broadcast("rolled back", post_id=7)
            session.rollback()
        db.session.add(Post(id=1, title="pending"))
        site.posts.broadcast("pending", post_id=7)
        assert site.last_id() == before
        db.session.commit()
        assert client.read()["data"] == "pending"
        with db.write():
            site.posts.broadcast("first", post_id=7)
            with db.session.begin_nested() as savepoint:
                site.posts.broadcast("in the savepoint", post_id=7)
                savepoint.rollback()
            site.posts.broadcast("second", post_id=7)
            assert site.last_id() == before + 1
        assert [client.read()["data"] for _ in range(2)] == ["first", "second"]


@pytest.mark.parametrize(
    ("post_id", "reason"),
    [
        (12, "forbidden"),
        (13, "error"),
        (14, "members only"),
        (15, "not found"),
        (16, "forbidden"),
    ],
)
def test_a_refusal_tells_nothing_but_the_reason_given(port: int, post_id: int, reason: str) -> None:
    with Client(port) as client:
        client.send(type="subscribe", channel=f"posts/{post_id}")
        assert client.read() == {
            "type": "rejected",
            "channel": f"posts/{post_id}",
            "reason": reason,
        }


def test_a_refused_client_gets_no_message(site: Site, port: int) -> None:
    with Client(port) as client:
        client.send(type="subscribe", channel="posts/12")
        assert client.read()["type"] == "rejected"
        site.broadcast("posts/12", "secret")
        client.subscribe("posts/7")
        site.broadcast("posts/7", "public")
        assert client.read()["data"] == "public"


def test_a_message_waits_for_the_authorisation(site: Site, port: int) -> None:
    with Client(port) as client:
        client.send(type="subscribe", channel="posts/18")
        wait_until(lambda: site.seen)
        site.broadcast("posts/18", "early")
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.read()
        client.socket.settimeout(10)
        site.gate.set()
        assert client.read()["type"] == "subscribed"
        assert client.read()["data"] == "early"


@pytest.mark.parametrize(
    "name", ["posts/x", "posts/07", "posts/-7", "posts/\u0667", "posts//7", "post", "", "posts/7/"]
)
def test_a_name_that_is_no_channel_is_rejected(port: int, name: str) -> None:
    with Client(port) as client:
        client.send(type="subscribe", channel=name)
        assert client.read()["reason"] == "unknown channel"


def test_the_channel_function_can_send_initial_data(port: int) -> None:
    with Client(port) as client:
        assert client.subscribe("posts/17")["data"] == {"title": "Seventeen"}


def test_the_handshake_can_be_refused(port: int) -> None:
    for query in ("refuse", "abort"):
        with pytest.raises(Refused) as refused:
            Client(port, f"/cable?{query}")
        assert refused.value.status == 403


def test_channel_functions_run_in_the_context_of_the_handshake(site: Site, port: int) -> None:
    with Client(port, "/cable?user=ann") as client:
        client.subscribe("posts/7")
        for text in ("one", "two", "three"):
            client.send(type="send", channel="posts/7", data=text)
        wait_until(lambda: len(site.seen) == 3)
        assert site.seen == [("ann", 7, "one"), ("ann", 7, "two"), ("ann", 7, "three")]
        client.send(type="unsubscribe", channel="posts/7")
        wait_until(lambda: len(site.seen) == 4)
        client.subscribe("posts/8")
    wait_until(lambda: len(site.seen) == 5)
    assert site.seen[3:] == [("left", "ann", 7), ("left", "ann", 8)]


def test_before_request_functions_guard_channels_too(site: Site) -> None:
    site.app.before_request(lambda: None if site.seen == [] else ("log in first", 401))
    with served(site.app) as port, Client(port) as client:
        client.subscribe("posts/7")
        site.seen.append("closed")
        client.send(type="subscribe", channel="posts/8")
        assert client.read()["reason"] == "forbidden"


def test_a_message_that_fails_is_answered_without_detail(site: Site, port: int) -> None:
    with Client(port) as client:
        client.subscribe("posts/7")
        for data, reason in (("fail", "error"), ("no", "not now")):
            client.send(type="send", channel="posts/7", data=data)
            assert client.read() == {"type": "error", "channel": "posts/7", "reason": reason}
        client.send(type="send", channel="posts/8", data="x")
        assert client.read()["reason"] == "not subscribed"


def test_a_blocked_handler_stalls_its_own_connection_only(site: Site, port: int) -> None:
    with Client(port) as stuck, Client(port) as other:
        stuck.subscribe("posts/7")
        stuck.send(type="send", channel="posts/7", data="block")
        stuck.send(type="send", channel="posts/7", data="after")
        other.subscribe("posts/8")
        other.send(type="send", channel="posts/8", data="hello")
        wait_until(lambda: site.seen)
        site.broadcast("posts/7", "still served")
        assert stuck.read()["data"] == "still served"
        assert site.seen == [(None, 8, "hello")]
        site.gate.set()
        wait_until(lambda: len(site.seen) == 3)
        assert site.seen[1:] == [(None, 7, "block"), (None, 7, "after")]


def test_disconnect_closes_the_connections_of_one_user(site: Site, port: int) -> None:
    with (
        Client(port, "/cable?user=1") as first,
        Client(port, "/cable?user=1") as second,
        Client(port, "/cable?user=2") as other,
        Client(port) as nobody,
    ):
        for client in (first, second, other, nobody):
            client.subscribe("posts/7")
        with site.app.app_context():
            site.litestack.cable.disconnect(1)
        assert first.read_until_close() == 4001
        assert second.read_until_close() == 4001
        site.broadcast("posts/7", "hello")
        assert other.read()["data"] == nobody.read()["data"] == "hello"


def test_disconnecting_nobody_closes_nothing(site: Site, port: int) -> None:
    with Client(port) as nobody, Client(port, "/cable?user=None") as somebody:
        nobody.subscribe("posts/7")
        somebody.subscribe("posts/7")
        with site.app.app_context():
            for user in ("", None):
                site.litestack.cable.disconnect(user)
        site.broadcast("posts/7", "hello")
        assert nobody.read()["data"] == somebody.read()["data"] == "hello"


def test_a_log_out_during_the_handshake_closes_the_connection(site: Site) -> None:
    @site.litestack.cable.connect
    def who() -> str:
        site.litestack.cable.disconnect("ann")
        return "ann"

    with served(site.app) as port, Client(port) as client:
        assert client.read_until_close() == 4001


def test_rendered_html_is_sent_with_its_place(site: Site, port: int, tmp_path: object) -> None:
    site.app.jinja_loader = None
    from jinja2 import DictLoader

    site.app.jinja_env.loader = DictLoader({"comment.html": "<li>{{ text }}</li>"})
    with Client(port) as client, site.app.app_context():
        client.subscribe("posts/7")
        site.litestack.cable.render("posts/7", "comment.html", target="#comments", text="<b>")
        rendered = client.read()
        assert rendered["type"] == "render"
        assert rendered["data"] == {
            "html": "<li>&lt;b&gt;</li>",
            "target": "#comments",
            "swap": "beforeend",
        }
        site.litestack.cable.remove("posts/7", "#comment-3")
        removed = client.read()
        assert (removed["type"], removed["data"]["swap"]) == ("render", "delete")
    with Client(port) as client:
        client.subscribe("posts/7", rendered["id"] - 1)
        assert [client.read(), client.read()] == [rendered, removed]
    with site.app.app_context():
        with pytest.raises(ValueError, match="swap='inside' must be one of innerHTML"):
            site.litestack.cable.render("posts/7", "comment.html", target="#x", swap="inside")


def test_presence_tells_who_is_there(site: Site, port: int) -> None:
    with Client(port, "/cable?user=ann") as ann:
        ann.subscribe("rooms/lobby")
        assert ann.read()["data"] == {"count": 1, "users": ["ann"]}
        with Client(port, "/cable?user=bob") as bob, Client(port) as nobody:
            bob.subscribe("rooms/lobby")
            nobody.subscribe("rooms/lobby")
            wait_until(lambda: ann.read()["data"] == {"count": 3, "users": ["ann", "bob"]})
            with site.app.app_context():
                assert site.rooms.present(name="lobby").users == ("ann", "bob")
        wait_until(lambda: ann.read()["data"] == {"count": 1, "users": ["ann"]})
        with site.app.app_context():
            assert site.litestack.cable.present("rooms/lobby").count == 1


def test_a_user_with_two_windows_counts_once_and_the_second_window_is_told(
    site: Site, port: int
) -> None:
    with Client(port, "/cable?user=ann") as first, Client(port, "/cable?user=ann") as second:
        first.subscribe("counted")
        assert first.read()["data"] == {"count": 1}
        second.subscribe("counted")
        assert second.read()["data"] == {"count": 1}


def test_initial_data_that_does_not_fit_is_refused_and_logged(
    make_site: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(cable_buffer=1000)

    @site.litestack.channel("large/<int:size>")
    def large(size: int) -> str:
        return "é" * size

    with served(site.app) as port, Client(port) as client:
        client.subscribe("large/249")
        client.send(type="subscribe", channel="large/250")
        while client.read().get("reason") != "error":
            pass
    assert "returned 502 bytes for 'large/250'" in caplog.text


def test_presence_of_too_many_users_is_their_count(make_site: Callable[..., Site]) -> None:
    site = make_site(cable_buffer=200)
    with served(site.app) as port, Client(port, f"/cable?user={'a' * 50}") as first:
        first.subscribe("rooms/lobby")
        assert first.read()["data"] == {"count": 1, "users": ["a" * 50]}
        with Client(port, f"/cable?user={'b' * 50}") as second:
            second.subscribe("rooms/lobby")
            wait_until(lambda: first.read()["data"] == {"count": 2})
        wait_until(lambda: first.read()["data"] == {"count": 1, "users": ["a" * 50]})


def test_an_undeclared_channel_is_an_error_that_names_the_declared_ones(site: Site) -> None:
    with site.app.app_context():
        for name in ("post/7", "posts/07", ""):
            with pytest.raises(ChannelError):
                site.litestack.cable.broadcast(name, 1)
        with pytest.raises(ChannelError, match="'posts/<int:post_id>', 'rooms/<name>'"):
            site.litestack.cable.broadcast("post/7", 1)
        with pytest.raises(ChannelError, match="does not fit"):
            site.rooms.broadcast(1, name="a/b")


def test_data_that_is_no_json_is_an_error(site: Site) -> None:
    with site.app.app_context():
        with pytest.raises(TypeError):
            site.posts.broadcast(object(), post_id=7)
        with pytest.raises(ValueError, match="Out of range float"):
            site.posts.broadcast(float("nan"), post_id=7)
        with pytest.raises(CableError, match="LITESTACK_CABLE_BUFFER"):
            site.posts.broadcast("x" * 140_000, post_id=7)
        with pytest.raises(CableError, match="150002 bytes"):
            site.posts.broadcast("中" * 50_000, post_id=7)


def test_half_a_surrogate_pair_arrives(site: Site, port: int) -> None:
    with Client(port) as client:
        client.subscribe("posts/7")
        site.broadcast("posts/7", "\ud800")
        opcode, payload = client.read_frame()
        assert opcode == 1
        assert json.loads(payload)["data"] == "\ud800"


def test_the_app_must_fit_its_channels(site: Site) -> None:
    with pytest.raises(TypeError, match="must take the parameters of its channel"):
        site.litestack.channel("posts/<int:post_id>")(lambda: True)
    with pytest.raises(ValueError, match="posts/<int:post_id>"):
        site.litestack.channel("/posts")(lambda: True)


def test_the_url_can_be_changed_and_switched_off(make_site: Callable[..., Site]) -> None:
    other = make_site("other", cable_url="/live")
    off = make_site("off", cable_url=None)
    with served(other.app) as port, Client(port, "/live") as client:
        client.subscribe("posts/7")
    assert off.app.test_client().get("/cable").status_code == 404
    with pytest.raises(ConfigError, match="LITESTACK_CABLE_URL"):
        make_site("bad", cable_url="cable")


def test_nothing_is_created_before_the_first_use(make_site: Callable[..., Site]) -> None:
    import threading

    site = make_site()
    files = {path.name for path in site.app.config["LITESTACK_DATA_PATH"].iterdir()}
    assert "cable.sqlite3" not in files
    assert [t.name for t in threading.enumerate() if t.name.startswith("litestack-cable")] == []
