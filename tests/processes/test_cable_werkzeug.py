"""The cable on the development server, as ``flask run --debug`` starts it."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

from tests.cable.client import Client
from tests.servers import free_port, running, wait_until

APP = "from tests.cable.app import create_app\n"


def test_the_reloader_sends_clients_away_and_they_resume(tmp_path: Path) -> None:
    script = tmp_path / "developed.py"
    script.write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "flask", "--app", "developed", "run", "--debug"]
    variables = {"FLASK_LITESTACK_DATA_PATH": str(tmp_path / "data")}
    with running([*command, "--port", str(port)], tmp_path, variables, port=port) as server:

        def broadcast() -> None:
            url = f"http://127.0.0.1:{port}/broadcast/1/1"
            with urllib.request.urlopen(url, b"", timeout=30) as answer:
                assert answer.status == 200

        with Client(port, timeout=30) as client:
            client.subscribe("numbers")
            broadcast()
            since = client.read()["id"]
            broadcast()
            script.write_text(APP + "# changed\n")
            assert client.read()["id"] == since + 1
            assert client.read_until_close() == 1001
        wait_until(lambda: _is_up(port))
        with Client(port, timeout=30) as client:
            client.subscribe("numbers", since)
            assert client.read()["id"] == since + 1
            broadcast()
            assert client.read()["id"] == since + 2
        assert "Traceback" not in server.output()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/pid", timeout=30):
            return True
    except OSError:
        return False
