"""Measure the demo blog, here and on PostgreSQL: ``python -m benchmarks.blog [--quick]``.

Gunicorns with the same command line serve the same code, and are asked for the same page in turns,
by one reader and by four at once. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

from . import _measure, _postgres
from ._measure import Result

TARGET = 2.0
ROUNDS = 8
SECONDS = 1.5
PATIENCE = 30.0
PASSWORD = "benchmark-1234"
OURS, POSTGRES, NO_CACHE = "ours", "PostgreSQL", "PostgreSQL and no cache"
ROOT = Path(__file__).parents[1]

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "python:flask_litestack.gunicorn"]
GUNICORN += ["--access-logfile", os.devnull, "--log-level", "warning"]
GUNICORN += ["benchmarks._blog_app:create_app()"]

FILL = """
import sys, tomllib
from benchmarks._blog_app import create_app
app = create_app()
from blog import litestack, migrate, seed
from blog.models import Comment, Model, Post
from sqlalchemy import func, select, text
from werkzeug.security import generate_password_hash
with app.app_context():
    Model.metadata.create_all(litestack.db.engine)
    _, newest = migrate._known_and_newest()
    with litestack.db.engine.begin() as connection:
        # There is nothing to migrate when the server starts.
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text(f"INSERT INTO alembic_version VALUES ('{max(newest)}')"))
    demo = tomllib.loads(seed.DEMO.read_text())
    with litestack.db.write() as session:
        seed.add_demo(session, demo, generate_password_hash(sys.argv[1]))
    # Of those with as many comments the first, so that both databases serve the same page.
    most = select(Post.slug).join(Comment).group_by(Post.slug)
    print(litestack.db.session.scalar(most.order_by(func.count().desc(), Post.slug)))
"""


def main() -> int:
    """Run everything; the exit code is 1 if the target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short runs: a smoke test, no figures")
    rounds, seconds = (1, 0.5) if parser.parse_args().quick else (ROUNDS, SECONDS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # the server's user walks through it
        environs = {OURS: {"LITESTACK_DATA_PATH": str(folder / "data")}}
        try:
            url = stack.enter_context(_postgres.server(folder / "postgres"))
        except _postgres.NotInstalled as missing:
            print(f"NOT RUN: PostgreSQL ({missing})")
        else:
            environs[POSTGRES] = {
                "LITESTACK_DATA_PATH": str(folder / "beside"),  # the cache stays as it is
                "BENCH_POSTGRES": url,
            }
        pages = {name: _fill(environ) for name, environ in environs.items()}
        if POSTGRES in environs:
            environs[NO_CACHE] = environs[POSTGRES] | {"BENCH_CACHE": "NullCache"}
            pages[NO_CACHE] = pages[POSTGRES]
        ports = {
            name: stack.enter_context(_serve(environ, folder / f"{name}.log"))
            for name, environ in environs.items()
        }
        table = _table(ports, pages, rounds, seconds)
    return _report(table)


def _fill(environ: dict[str, str]) -> str:
    """Make the tables with the demo's posts, and return the page with the most comments."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, PASSWORD],
        cwd=ROOT,
        env=os.environ | environ,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return f"/posts/{done.stdout.split()[-1]}"


@contextlib.contextmanager
def _serve(environ: dict[str, str], log: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [*GUNICORN, "--bind", f"127.0.0.1:{port}"],
            cwd=ROOT,
            env=os.environ | environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"gunicorn did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(PATIENCE)


def _table(
    ports: dict[str, int], pages: dict[str, str], rounds: int, seconds: float
) -> dict[str, dict[str, Result]]:
    cookies = {name: {"": "", "logged in, ": _log_in(port)} for name, port in ports.items()}
    results: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        names = list(ports) if number % 2 else list(ports)[::-1]
        for who in ("", "logged in, "):
            for readers in (1, 4):
                cell = f"a post with comments, {who}{readers} reader{'s'[: readers - 1]}"
                for name in names:
                    cookie = cookies[name][who]
                    times = _read(ports[name], pages[name], cookie, readers, seconds)
                    results[cell][name].append(times)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return {
        cell: {name: _measure.median(row[name]) for name in ports} for cell, row in results.items()
    }


def _log_in(port: int) -> str:
    """Return the Cookie header of the demo's login."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    client.request("GET", "/login")
    response = client.getresponse()
    page = response.read().decode()
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert found, page
    form = f"email=demo%40example.com&password={PASSWORD}&csrf_token={found[1]}"
    headers = {
        "Cookie": _cookie(response),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    client.request("POST", "/login", form, headers)
    response = client.getresponse()
    assert response.status == 302, (response.status, response.read().decode())
    return _cookie(response)


def _cookie(response: http.client.HTTPResponse) -> str:
    cookies = SimpleCookie("; ".join(response.headers.get_all("Set-Cookie", [])))
    return f"session={cookies['session'].value}"


def _read(port: int, page: str, cookie: str, readers: int, seconds: float) -> Result:
    start = time.monotonic()
    parts: list[list[float]] = [[] for _ in range(readers)]

    def read(times: list[float]) -> None:
        client = _Client(port, page, cookie)
        while (begun := time.monotonic()) < start + seconds:
            body = client.get()
            times.append(time.monotonic() - begun)
            assert b'class="comment"' in body
            assert (b"Log out" in body) == bool(cookie)
        client.close()

    threads = [threading.Thread(target=read, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(parts):
        raise RuntimeError("a reader failed; see its traceback above")
    return _measure.summary([time for part in parts for time in part], time.monotonic() - start)


class _Client:
    """Asks for one page again and again on one connection, at little cost of its own."""

    def __init__(self, port: int, page: str, cookie: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = f"Host: 127.0.0.1:{port}\r\n" + (f"Cookie: {cookie}\r\n" if cookie else "")
        self._request = f"GET {page} HTTP/1.1\r\n{headers}\r\n".encode()

    def get(self) -> bytes:
        self._socket.sendall(self._request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])  # type: ignore[index]
        while len(body) < length:
            body += self._receive()
        return body

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionError("the server closed the connection")
        return received


def _report(table: dict[str, dict[str, Result]]) -> int:
    missed = False
    verdicts: list[str] = []
    for cell, row in table.items():
        _measure.print_rows(cell, row)
        if POSTGRES in row:
            ratio = row[OURS].rate / row[POSTGRES].rate
            missed |= ratio < TARGET
            verdict = "PASS" if ratio >= TARGET else "MISS"
            verdicts.append(f"  {verdict} {ratio:7.3f} >= {TARGET:<5.3g} {cell} / PostgreSQL")
        else:
            verdicts.append(f"  NOT RUN               {cell} / PostgreSQL")
    print("\ntargets", *verdicts, sep="\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
