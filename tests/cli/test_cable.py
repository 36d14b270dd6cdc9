from __future__ import annotations

import sys
from pathlib import Path

from tests.cable.client import Client
from tests.servers import running, wait_until

from .commands import as_json, litestack

APP = """
from flask import Flask
from flask_litestack import Litestack

litestack = Litestack()

@litestack.channel("posts/<int:post_id>")
def posts(post_id):
    return True

def create_app():
    app = Flask(__name__)
    app.config["LITESTACK_DATA_PATH"] = "data"
    litestack.init_app(app)
    return app
"""


def test_a_message_from_the_command_line_reaches_the_browser(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    command = [sys.executable, "-m", "flask", "--app", "shop", "run", "--port"]
    with running(["sh", "-c", f'{" ".join(command)} "$PORT"'], tmp_path) as server:
        with Client(server.port) as client:
            client.subscribe("posts/7")
            assert litestack(tmp_path, "cable", "send", "posts/7", '{"text": "hé"}').returncode == 0
            assert client.read()["data"] == {"text": "hé"}
            done = litestack(tmp_path, "cable", "send", "--text", "posts/7", "plain")
            assert (done.returncode, done.stdout) == (0, "")
            assert client.read()["data"] == "plain"

            def reported() -> bool:
                status = as_json(litestack(tmp_path, "status", "--json"))["cable"]
                return bool(status["clients"] == 1 and status["messages"] == 3)

            wait_until(reported)


def test_a_wrong_channel_or_wrong_data_is_told(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    done = litestack(tmp_path, "cable", "send", "post/7", "1")
    assert done.returncode == 1
    assert "no channel is declared for the name 'post/7'" in done.stderr
    done = litestack(tmp_path, "cable", "send", "posts/7", "hello")
    assert done.returncode == 2
    assert "use --text" in done.stderr


def test_status_creates_no_file(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "data").mkdir()
    assert as_json(litestack(tmp_path, "status", "--json"))["cable"]["clients"] == 0
    assert not (tmp_path / "data" / "cable.sqlite3").exists()
