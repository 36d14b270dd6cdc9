from __future__ import annotations

from pathlib import Path

from .commands import as_json, flask, litestack

APP = """
from flask import Flask
from flask_litestack import Litestack

litestack = Litestack()

def create_app():
    app = Flask(__name__)
    app.config["LITESTACK_DATA_PATH"] = "data"
    app.config.from_prefixed_env()
    litestack.init_app(app)

    @app.cli.command()
    def fill():
        for i in range(10):
            litestack.cache.set(f"key-{i}", i)
        litestack.cache.get("key-1")
        litestack.cache.get("none")

    return app
"""


def test_stats_shows_what_other_processes_did_and_clear_empties(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    assert flask(tmp_path, "fill").returncode == 0
    found = as_json(litestack(tmp_path, "cache", "stats", "--json"))
    assert (found["entries"], found["hits"], found["misses"], found["writes"]) == (10, 1, 1, 10)
    assert found["hit_percent"] == 50.0
    assert found["most_size"] == 128 * 1024 * 1024
    assert as_json(litestack(tmp_path, "status", "--json"))["cache"]["entries"] == 10
    assert "hit percent" in litestack(tmp_path, "cache", "stats").stdout
    done = litestack(tmp_path, "cache", "clear")
    assert (done.returncode, done.stdout) == (0, "The cache is empty.\n")
    assert as_json(litestack(tmp_path, "cache", "stats", "--json"))["entries"] == 0


def test_status_makes_no_cache_file(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "data").mkdir()
    assert as_json(litestack(tmp_path, "status", "--json"))["cache"] == {"entries": 0}
    assert not (tmp_path / "data" / "cache.sqlite3").exists()


def test_another_backend_is_told(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "data").mkdir()
    done = litestack(tmp_path, "cache", "stats", FLASK_CACHE_TYPE="SimpleCache")
    assert done.returncode == 1
    assert "CACHE_TYPE is SimpleCache" in done.stderr
    status = as_json(litestack(tmp_path, "status", "--json", FLASK_CACHE_TYPE="SimpleCache"))
    assert status["cache"] == {"backend": "SimpleCache"}
