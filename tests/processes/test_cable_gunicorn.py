"""The cable under real gunicorn workers, which are killed, restarted and starved."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cable.client import Client, Refused, make_frame
from tests.servers import Server, environment, running, wait_until

SUBSCRIBE = b'{"type":"subscribe","channel":"numbers"}'


@contextmanager
def gunicorn(folder: Path, *options: str, **settings: str) -> Iterator[Server]:
    variables = {f"FLASK_LITESTACK_{name.upper()}": value for name, value in settings.items()}
    variables["FLASK_LITESTACK_DATA_PATH"] = str(folder / "data")
    command = [sys.executable, "-m", "gunicorn", "-c", "python:flask_litestack.gunicorn"]
    with running(
        [*command, "--workers", "1", *options, "tests.cable.app:create_app()"], folder, variables
    ) as server:
        yield server


def post(server: Server, path: str) -> str:
    url = f"http://127.0.0.1:{server.port}{path}"
    with urllib.request.urlopen(url, b"", timeout=60) as answer:
        return str(answer.read().decode())


class Listener(threading.Thread):
    """A client on a thread: connects again whenever it is cut off, and resumes."""

    def __init__(self, port: int, expected: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.expected = expected
        self.got: list[tuple[int, list[int]]] = []
        self.codes: list[int | None] = []
        self.since: int | None = None
        self.subscribed = threading.Event()
        self.missed = False

    def run(self) -> None:
        deadline = time.monotonic() + 90
        while len(self.got) < self.expected and time.monotonic() < deadline:
            with suppress(OSError, Refused):
                self._listen()
            time.sleep(0.05)

    def _listen(self) -> None:
        with Client(self.port, timeout=20) as client:
            answer = client.subscribe("numbers", self.since)
            self.since = answer["id"]
            self.subscribed.set()
            try:
                while len(self.got) < self.expected:
                    message = client.read()
                    if message["type"] == "missed":
                        self.missed = True
                        continue
                    self.got.append((message["id"], message["data"]))
                    self.since = message["id"]
            finally:
                self.codes.append(client.close_code)


def listeners(server: Server, count: int, expected: int) -> list[Listener]:
    started = [Listener(server.port, expected) for _ in range(count)]
    for listener in started:
        listener.start()
    for listener in started:
        assert listener.subscribed.wait(30)
    return started


def check(started: Sequence[Listener], writers: dict[int, int]) -> None:
    """Every client got every writer's numbers once, in order, and all in the same order."""
    for listener in started:
        listener.join(100)
        assert not listener.missed
        for writer, count in writers.items():
            numbers = [n for _, (w, n) in listener.got if w == writer]
            assert numbers == list(range(count))
        assert listener.got == started[0].got


#: Stands for a job worker: a process of the app without any client.
WORKER = """
import time
from tests.cable.app import create_app, numbers
with create_app().app_context():
    for number in range({count}):
        numbers.broadcast([9, number])
        time.sleep({pause})
"""


def worker_process(folder: Path, count: int, pause: float = 0.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER.format(count=count, pause=pause)],
        env=environment(FLASK_LITESTACK_DATA_PATH=str(folder / "data")),
    )


def test_two_web_workers_and_another_process_broadcast_at_once(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--workers", "2") as server:
        clients = listeners(server, 20, expected=900)
        worker = worker_process(tmp_path, 300)
        pids: set[str] = set()

        def web(writer: int) -> None:
            for _ in range(10):
                # Requests of one writer follow each other, so its numbers restart in order.
                pids.add(post(server, f"/broadcast/{writer}/30"))

        threads = [threading.Thread(target=web, args=(writer,)) for writer in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert worker.wait(60) == 0
        for client in clients:
            client.join(100)
            for writer, rounds in ((1, 10), (2, 10)):
                numbers = [n for _, (w, n) in client.got if w == writer]
                assert numbers == list(range(30)) * rounds
            assert [n for _, (w, n) in client.got if w == 9] == list(range(300))
            assert client.got == clients[0].got
        assert len(pids) == 2, "both web workers should have broadcast"


def test_the_clients_of_a_killed_worker_resume_without_loss(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--workers", "2") as server:
        clients = listeners(server, 20, expected=600)
        worker = worker_process(tmp_path, 600)
        victim = server.children()[0]
        wait_until(lambda: any(len(client.got) > 20 for client in clients))
        os.kill(victim, signal.SIGKILL)
        assert worker.wait(60) == 0
        check(clients, {9: 600})
        assert max(len(client.codes) for client in clients) > 1, "some were cut off"


def test_hup_and_a_restart_lose_nothing_and_send_clients_away_with_1001(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        clients = listeners(server, 10, expected=600)
        worker = worker_process(tmp_path, 600, pause=0.005)  # beyond the restart
        wait_until(lambda: all(len(client.got) > 20 for client in clients))
        os.kill(server.pid, signal.SIGHUP)
        assert worker.wait(60) == 0
        check(clients, {9: 600})
        assert {client.codes[0] for client in clients} == {1001}


def test_sigterm_ends_the_server_at_once_though_clients_are_connected(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        clients = [Client(server.port) for _ in range(50)]
        for client in clients:
            client.subscribe("numbers")
        codes: list[int | None] = []

        def read() -> None:
            for client in clients:
                codes.append(client.read_until_close())
                client.close()

        reader = threading.Thread(target=read)
        reader.start()
        before = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - before < 5
        reader.join()
        assert codes == [1001] * 50


def test_sigterm_sends_clients_away_at_once_beside_a_slow_request(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server, Client(server.port) as client:
        client.subscribe("numbers")
        request = threading.Thread(target=server.get, args=("/sleep/4.0",))
        request.start()
        time.sleep(0.5)
        before = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert client.read_until_close() == 1001
        assert time.monotonic() - before < 2
        assert request.is_alive()
        request.join()
        assert server.process.wait(20) == 0


def test_sigterm_sends_clients_away_at_once_beside_a_connection_without_a_request(
    tmp_path: Path,
) -> None:
    with gunicorn(tmp_path) as server, Client(server.port) as client:
        client.subscribe("numbers")
        with socket.create_connection(("127.0.0.1", server.port)):
            time.sleep(0.5)
            before = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert client.read_until_close() == 1001
            assert time.monotonic() - before < 2
        assert server.process.wait(20) == 0


def test_clients_that_do_not_answer_cannot_hold_up_the_end(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        clients = [Client(server.port, receive_buffer=4096) for _ in range(5)]
        for client in clients:
            client.subscribe("numbers")
        before = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - before < 6
        for client in clients:
            client.close()


def test_four_threads_serve_requests_beside_a_hundred_sockets(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--worker-connections", "20") as server:
        clients = [Client(server.port) for _ in range(100)]
        for client in clients:
            client.subscribe("numbers")
        for _ in range(50):
            server.get("/pid")
        post(server, "/broadcast/1/1")
        assert all(client.read()["data"] == [1, 0] for client in clients)
        for client in clients:
            client.close()


def test_frames_behind_the_handshake_are_not_lost(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        for count in (1, 30):
            early = make_frame(0x81, SUBSCRIBE) + make_frame(0x89, b"x" * 100) * (count - 1)
            with Client(server.port, early=early) as client:
                wait_until(lambda c=client: c.read()["type"] == "subscribed")


def test_the_access_log_has_one_clean_line_for_each_client(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        with Client(server.port) as client:
            client.subscribe("numbers")
        wait_until(lambda: '"GET /cable HTTP/1.1" 101' in server.output())
        server.terminate()
        output = server.output()
        assert output.count('"GET /cable HTTP/1.1" 101') == 1
        assert "Traceback" not in output
        assert "[ERROR]" not in output


@contextmanager
def with_few_files(folder: Path) -> Iterator[Server]:
    limited = [
        "sh",
        "-c",
        'ulimit -n 256; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        "python:flask_litestack.gunicorn",
        "tests.cable.app:create_app()",
    ]
    variables = {
        "FLASK_LITESTACK_DATA_PATH": str(folder / "data"),
        "FLASK_LITESTACK_JOBS_IN_SERVER": "false",
    }
    with running(limited, folder, variables) as server:
        yield server


WRAPPED = """
from werkzeug.middleware.proxy_fix import ProxyFix
from tests.cable.app import create_app

def generator(inner):
    def middleware(environ, start_response):
        body = inner(environ, start_response)
        try:
            yield from body
        finally:
            body.close()
    return middleware

app = create_app()
app.wsgi_app = ProxyFix(generator(app.wsgi_app), x_for=1, x_host=1)
"""

CONFIGURED = [sys.executable, "-m", "gunicorn", "-c", "python:flask_litestack.gunicorn"]


def test_middleware_and_the_access_log_see_a_clean_101_and_the_client_behind_a_proxy(
    tmp_path: Path,
) -> None:
    (tmp_path / "wrapped.py").write_text(WRAPPED)
    variables = {"FLASK_LITESTACK_DATA_PATH": str(tmp_path / "data")}
    headers = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Host": "example.org",
        "Origin": "https://example.org",
    }
    with running([*CONFIGURED, "wrapped:app"], tmp_path, variables) as server:
        with Client(server.port, headers=headers) as client:
            client.subscribe("numbers")
            post(server, "/broadcast/1/1")
            assert client.read()["data"] == [1, 0]
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/cable?channel=numbers", headers=headers
        )
        with urllib.request.urlopen(request, timeout=30) as events:
            assert events.readline().startswith(b"retry: ")
        wait_until(lambda: '203.0.113.9 "GET /cable HTTP/1.1" 101' in server.output())
        wait_until(
            lambda: '203.0.113.9 "GET /cable?channel=numbers HTTP/1.1" 200' in server.output()
        )
        server.terminate()
        assert server.output().count("GET /cable") == 2
        assert "Traceback" not in server.output()
        assert "[ERROR]" not in server.output()


WITH_JOBS = """
from tests.cable.app import create_app as create, litestack, numbers

@litestack.task(retries=0)
def count(writer, to, fails):
    for number in range(to):
        numbers.broadcast([writer, number])
    if fails:
        raise RuntimeError("after its broadcasts")

def create_app():
    app = create()

    @app.post("/count/<int:writer>/<int:to>/<int:fails>")
    def start(writer, to, fails):
        return str(count.enqueue(writer, to, bool(fails)).id)

    return app
"""


def test_what_a_job_broadcasts_reaches_all_web_workers_and_that_of_a_failed_one_nobody(
    tmp_path: Path,
) -> None:
    (tmp_path / "with_jobs.py").write_text(WITH_JOBS)
    variables = {
        "FLASK_LITESTACK_DATA_PATH": str(tmp_path / "data"),
        "FLASK_LITESTACK_JOBS_THREADS": "1",
    }
    command = [*CONFIGURED, "--workers", "2", "with_jobs:create_app()"]
    with running(command, tmp_path, variables) as server:
        clients = listeners(server, 12, expected=80)
        post(server, "/count/1/50/0")
        post(server, "/count/2/50/1")
        post(server, "/count/3/30/0")
        for client in clients:
            client.join(60)
            assert [data for _, data in client.got] == [
                *([1, number] for number in range(50)),
                *([3, number] for number in range(30)),
            ]


def test_connections_without_a_request_cannot_take_all_descriptors(tmp_path: Path) -> None:
    with with_few_files(tmp_path) as server, Client(server.port) as client:
        [worker] = server.children()
        client.subscribe("numbers")
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(400)]
        time.sleep(1)
        for connection in silent:
            connection.close()
        post(server, "/broadcast/1/1")
        assert client.read()["data"] == [1, 0]
        assert server.children() == [worker]


def test_a_small_limit_of_open_files_refuses_new_clients_and_drops_nobody(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with with_few_files(tmp_path) as server:
        worker = server.children()[0]
        clients: list[Client] = []
        statuses: list[int] = []
        for _ in range(400):
            try:
                clients.append(Client(server.port))
                clients[-1].subscribe("numbers")
            except Refused as error:
                statuses.append(error.status)
        assert 100 < len(clients) < 256
        assert statuses == [503] * (400 - len(clients))
        assert server.get("/pid") == str(worker), "the worker still lives"
        post(server, "/broadcast/1/1")
        assert all(client.read()["data"] == [1, 0] for client in clients)
        for client in clients:
            client.close()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_the_members_of_a_killed_worker_vanish_at_once(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--workers", "2") as server:
        clients: list[Client] = []
        wait_until(lambda: len(server.children()) == 3)
        killed, _, other = server.children()  # the second one runs jobs
        for stopped in (killed, other):  # half of the clients to each of those that serve
            os.kill(stopped, signal.SIGSTOP)
            for n in range(len(clients), len(clients) + 20):
                clients.append(Client(server.port, f"/cable?user={n}"))
                clients[-1].subscribe("posts/7")
            os.kill(stopped, signal.SIGCONT)
        for client in clients:
            wait_until(lambda c=client: c.read()["data"] == {"count": 40})
        os.kill(killed, signal.SIGKILL)
        before = time.monotonic()
        counts = dict.fromkeys(clients, 40)
        while len(counts) == 40 or set(counts.values()) != {len(counts)}:
            assert time.monotonic() - before < 5
            for client in list(counts):
                count = _latest_count(client)
                if count is None:
                    del counts[client]
                else:
                    counts[client] = count or counts[client]
        for client in clients:
            client.close()


def _latest_count(client: Client) -> int | None:
    """Return the last count that has arrived, 0 for no news, None if the client is cut off."""
    client.socket.settimeout(0.01)
    count = 0
    try:
        while True:
            count = client.read()["data"]["count"]
    except TimeoutError:
        return count
    except OSError:
        return None


def _memory(pid: int) -> int:
    """Private and shared memory of a process, in bytes, each page in proportion."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def test_slow_readers_and_floods_do_not_fill_the_memory(tmp_path: Path) -> None:
    with gunicorn(tmp_path, cable_buffer="100000") as server:
        worker = server.children()[0]
        with Client(server.port) as client:
            client.subscribe("numbers")
        before = _memory(worker)
        slow = [Client(server.port, receive_buffer=4096) for _ in range(100)]
        for client in slow:
            client.subscribe("numbers")
        flood = make_frame(0x81, b'{"type":"subscribe","channel":"posts/1"}') * 2000
        for client in slow[:20]:
            client.socket.setblocking(False)
            with suppress(OSError):
                client.socket.send(flood)
        endless = b"\x01\xff" + (2**50).to_bytes(8, "big") + b"mask" + b"x" * 60_000
        for client in slow[20:40]:
            client.socket.setblocking(False)
            with suppress(OSError):
                client.socket.send(endless)
        for _ in range(20):
            post(server, "/broadcast/1/500")
        grown = _memory(worker) - before
        assert grown < 30_000_000, f"{grown} bytes more"
        with Client(server.port) as client:
            client.subscribe("numbers")
            post(server, "/broadcast/2/1")
            # The hub may still be busy with those from before.
            while client.read()["data"] != [2, 0]:
                pass
        for client in slow:
            client.close()


@pytest.mark.parametrize("worker_class", ["gthread", "sync"])
def test_the_preloaded_app_may_use_the_cable_before_the_fork(
    tmp_path: Path, worker_class: str
) -> None:
    script = tmp_path / "preloaded.py"
    script.write_text(
        "from tests.cable.app import create_app, numbers\n"
        "app = create_app()\n"
        "with app.app_context():\n"
        "    numbers.broadcast([0, 0])\n"
    )
    variables = {"FLASK_LITESTACK_DATA_PATH": str(tmp_path / "data")}
    command = [sys.executable, "-m", "gunicorn", "-c", "python:flask_litestack.gunicorn"]
    options = ["--workers", "2", "--preload", "--worker-class", worker_class]
    with running([*command, *options, "preloaded:app"], tmp_path, variables) as server:
        clients = listeners(server, 6, expected=20)
        for _ in range(4):
            post(server, "/broadcast/1/5")
        for client in clients:
            client.join(60)
            assert [data for _, data in client.got] == [[1, n] for n in range(5)] * 4
