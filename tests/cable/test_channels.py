from __future__ import annotations

import pytest
from flask import Flask
from werkzeug.routing import BaseConverter

from flask_litestack import ChannelError, Litestack
from flask_litestack.cable.channels import ChannelMap


def declare(*patterns: str) -> tuple[ChannelMap, Litestack]:
    litestack = Litestack()
    app = Flask("x")
    channels = []
    for pattern in patterns:
        channels.append(litestack.channel(pattern)(lambda **params: True))
    return ChannelMap(channels, app.url_map.converters), litestack


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("posts/7", {"post_id": 7}),
        ("users/ann/wall", {"name": "ann"}),
        ("users/näme with space/wall", {"name": "näme with space"}),
        ("users/a%2Fb/wall", {"name": "a%2Fb"}),
        ("files/a/b/c.txt", {"path": "a/b/c.txt"}),
        ("news", {}),
    ],
)
def test_parameters_are_converted_as_in_a_url_and_back(
    name: str, params: dict[str, object]
) -> None:
    channels, _ = declare(
        "posts/<int:post_id>", "users/<string(maxlength=20):name>/wall", "files/<path:path>", "news"
    )
    channel, found = channels.match(name)
    assert found == params
    assert channels.name(channel, found) == name


@pytest.mark.parametrize("name", ["posts/07", "posts/", "news/", "/news", "News", "x" * 256, "\0"])
def test_other_spellings_are_other_names(name: str) -> None:
    channels, _ = declare("posts/<int:post_id>", "news")
    with pytest.raises(ChannelError):
        channels.match(name)


def test_parameters_that_lead_to_another_channel_are_refused() -> None:
    channels, _ = declare("posts/<name>", "posts/<name>/secret")
    channel, _ = channels.match("posts/x")
    with pytest.raises(ChannelError, match="does not fit the channel 'posts/<name>'"):
        channels.name(channel, {"name": "x/secret"})


def test_the_apps_converters_are_known() -> None:
    class Upper(BaseConverter):
        regex = "[A-Z]+"

    litestack = Litestack()
    channel = litestack.channel("codes/<upper:code>")(lambda code: True)
    channels = ChannelMap([channel], {"upper": Upper})
    assert channels.match("codes/ABC")[1] == {"code": "ABC"}
    with pytest.raises(ChannelError):
        channels.match("codes/abc")


def test_a_channel_declared_later_is_found() -> None:
    litestack = Litestack()
    declared = [litestack.channel("a")(lambda: True)]
    channels = ChannelMap(declared, {})
    channels.match("a")
    declared.append(litestack.channel("b")(lambda: True))
    assert channels.match("b")[0] is declared[1]


def test_a_channel_is_still_the_function() -> None:
    litestack = Litestack()

    @litestack.channel("posts/<int:post_id>")
    def posts(post_id: int) -> bool:
        """Comments."""
        return post_id > 0

    assert posts(7) is True
    assert posts.__doc__ == "Comments."
    assert repr(posts) == "<Channel 'posts/<int:post_id>'>"
