"""The gunicorn configuration, with a real gunicorn."""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from flask_litestack.sqlite import connect
from tests.servers import BIN, PATIENCE, Server, environment, running, wait_until

GUNICORN = [
    str(BIN / "gunicorn"),
    "--config",
    "python:flask_litestack.gunicorn",
    "shop:create_app()",
]

SHOP = """
import os, threading, time
from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from flask_litestack import Litestack

class Model(DeclarativeBase):
    pass

class Item(Model):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)

litestack = Litestack(metadata=Model.metadata)

def create_app():
    app = Flask(__name__, instance_path=os.path.abspath("data"))
    app.config.from_prefixed_env()
    litestack.init_app(app)
    with app.app_context():
        litestack.db.create_all()

    @app.get("/")
    def index():
        return "version 1"

    @app.get("/add")
    def add():
        with litestack.db.write() as session:
            session.add(Item())
        return str(litestack.db.session.query(Item).count())

    @app.get("/slow")
    def slow():
        time.sleep(1)
        return "done"

    @app.get("/thread")
    def thread():
        return threading.current_thread().name

    @app.get("/broken")
    def broken():
        def chunks():
            yield "half of it"
            raise ValueError("on purpose")
        return chunks()

    @app.get("/workers")
    def workers():
        return " ".join(str(worker.pid) for worker in litestack.jobs.workers())

    return app
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with an app that writes, its database opened before the workers are forked."""
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def effective(shop: Path, *arguments: str, **variables: str) -> dict[str, str]:
    """What gunicorn itself says its settings are."""
    printed = subprocess.run(
        [*GUNICORN, "--print-config", *arguments],
        cwd=shop,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pairs = (line.partition(" = ") for line in printed.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def test_the_settings_are_those_for_one_box(shop: Path) -> None:
    found = effective(shop)

    assert "RoleWorker" in found["worker_class"]
    assert found["workers"] == "1"
    assert found["threads"] == "4"
    assert found["preload_app"] == "True"
    assert found["control_socket_disable"] == "True"
    assert found["max_requests"] == "0"
    assert found["bind"] == "['127.0.0.1:8000']"
    assert found["forwarded_allow_ips"] in ("127.0.0.1,::1", "['127.0.0.1', '::1']")


def test_the_environment_sets_address_and_number_of_workers(shop: Path) -> None:
    found = effective(shop, PORT="9123", WEB_CONCURRENCY="3")

    assert found["bind"] == "['0.0.0.0:9123']"
    assert found["workers"] == "3"


def test_the_app_is_not_preloaded_where_it_is_to_be_reloaded(shop: Path) -> None:
    assert effective(shop, "--reload")["preload_app"] == "False"
    assert effective(shop, GUNICORN_CMD_ARGS="--reload")["preload_app"] == "False"


def test_a_configuration_of_ones_own_imports_ours_and_overrides_it(shop: Path) -> None:
    (shop / "gunicorn.conf.py").write_text(
        "from flask_litestack.gunicorn import *\n\nthreads = 7\n"
    )

    found = effective(shop, "--config", "gunicorn.conf.py")

    assert found["threads"] == "7"
    assert found["preload_app"] == "True"
    assert found["control_socket_disable"] == "True"


def both_workers(server: Server) -> set[int]:
    """The ids of the web worker and the jobs worker, once both are there."""
    wait_until(lambda: len(server.children()) == 2, server.output)
    return set(server.children())


def wait_for_roles(server: Server, *, web: int) -> None:
    """Wait until so many workers serve and, beside them, one runs jobs."""

    def are_there() -> bool:
        jobs = server.get("/workers").split()
        return len(jobs) == 1 and len(set(server.children()) - {int(jobs[0])}) == web

    wait_until(are_there, server.output)


def test_one_worker_more_runs_jobs_unless_the_app_does_not_want_it(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        both_workers(server)
    with running(GUNICORN, shop, {"FLASK_LITESTACK_JOBS_IN_SERVER": "false"}) as server:
        assert len(server.children()) == 1


def test_sigterm_lets_a_request_end_and_exits_with_0(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        answers: list[str] = []
        request = threading.Thread(target=lambda: answers.append(server.get("/slow")))
        request.start()
        time.sleep(0.3)
        assert server.terminate() == 0
        request.join()
    assert answers == ["done"]


@pytest.mark.skipif(
    int(importlib.metadata.version("gunicorn").partition(".")[0]) < 27,
    reason="before version 27 gunicorn waits graceful_timeout for idle connections",
)
def test_an_idle_connection_does_not_delay_the_stop(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"version 1"
            begin = time.monotonic()
            assert server.terminate() == 0
            assert time.monotonic() - begin < 8


def ask_until(stop: threading.Event, server: Server, failures: list[BaseException]) -> None:
    while not stop.is_set():
        try:
            server.get("/add")
        except Exception as error:
            failures.append(error)


def ask(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


def test_requests_of_a_connection_that_come_at_once_are_served_by_one_thread(shop: Path) -> None:
    with (
        running(GUNICORN, shop) as server,
        closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection,
    ):
        threads = [ask(connection, "/thread") for _ in range(200)]
    changes = sum(first != second for first, second in pairwise(threads))
    assert changes < 100  # one for each request, if it were anybody's turn


def ask_without_pause(port: int, done: threading.Event) -> None:
    """Always have some requests on their way: the server never has to wait for the next one."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request * 500)
        while not done.is_set() and (answers := connection.recv(2**16)):
            connection.sendall(request * answers.count(b"HTTP/1.1 200"))


@contextmanager
def busy_clients(server: Server, count: int) -> Iterator[None]:
    """So many clients who each ask again and again, without a pause, on one connection."""
    done = threading.Event()
    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(ask_without_pause, server.port, done)
        try:
            yield
        finally:
            done.set()


@pytest.mark.parametrize("broken", [0, 5])
def test_nobody_waits_for_a_thread_that_waits_for_requests(shop: Path, broken: int) -> None:
    with running(GUNICORN, shop) as server:
        for _ in range(broken):  # gunicorn counts down twice for a response that breaks off
            with pytest.raises(http.client.IncompleteRead):
                server.get("/broken")
        with busy_clients(server, 4):  # as many as there are threads
            for _ in range(20):
                began = time.monotonic()
                assert server.get() == "version 1"
                assert time.monotonic() - began < 1


def test_a_worker_without_its_master_ends_although_it_is_asked_without_pause(shop: Path) -> None:
    with running([*GUNICORN, "--graceful-timeout", "1"], shop) as server:
        wait_for_roles(server, web=1)
        workers = both_workers(server)
        with busy_clients(server, 2):
            time.sleep(0.3)
            server.process.kill()
            server.process.wait(PATIENCE)
            wait_until(lambda: not any(is_running(pid) for pid in workers))


def is_running(pid: int) -> bool:
    """Whether a process lives that is not ours to wait for; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_hup_changes_the_workers_and_no_request_fails(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        old = both_workers(server)
        stop = threading.Event()
        failures: list[BaseException] = []
        client = threading.Thread(target=ask_until, args=(stop, server, failures))
        client.start()
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: len(pids := server.children()) == 2 and old.isdisjoint(pids))
        time.sleep(0.3)
        stop.set()
        client.join()
        assert failures == []
        assert server.terminate() == 0


def test_usr2_brings_a_second_server_up_beside_the_first(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        old = both_workers(server)
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(
            lambda: len(server.children()) == 3 and server.output().count("Booting worker") == 4,
            server.output,
        )
        [new_master] = [pid for pid in server.children() if pid not in old]
        assert server.terminate() == 0
        before = int(server.get("/add"))
        assert int(server.get("/add")) == before + 1
        os.kill(new_master, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{new_master}").exists(), server.output)


def test_ttin_and_ttou_change_the_number_of_workers_that_serve(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        for _ in range(3):
            os.kill(server.pid, signal.SIGTTIN)
            wait_for_roles(server, web=2)
            os.kill(server.pid, signal.SIGTTOU)
            wait_for_roles(server, web=1)
        assert int(server.get("/add")) == 1
        assert server.terminate() == 0


def test_a_factory_may_use_the_database_before_the_workers_are_forked(shop: Path) -> None:
    created = "        litestack.db.create_all()\n"
    used = created + (
        "        with litestack.db.write() as session:\n"
        "            session.add(Item())\n"
        "        litestack.db.session.query(Item).all()\n"
    )
    answer = "return str(litestack.db.session.query(Item).count())"
    source = SHOP.replace(created, used).replace(answer, "return str(os.getpid())")
    (shop / "shop.py").write_text(source)
    with running(GUNICORN, shop, {"WEB_CONCURRENCY": "2"}) as server:
        writers: list[str] = []
        with ThreadPoolExecutor(4) as clients:
            while len(set(writers)) < 2 or len(writers) < 200:
                writers += clients.map(server.get, ["/add"] * 50)
        assert server.terminate() == 0
        assert "Error" not in server.output()

    with closing(connect(shop / "data" / "data.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        [count] = connection.execute("SELECT count(*) FROM item").fetchone()
    assert count == 1 + len(writers)


def test_the_last_worker_that_serves_is_not_ended(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        before = both_workers(server)
        os.kill(server.pid, signal.SIGTTOU)
        wait_until(lambda: "Handling signal: ttou" in server.output())
        time.sleep(1.5)  # gunicorn looks at its workers once a second
        assert set(server.children()) == before
        wait_for_roles(server, web=1)


@pytest.mark.parametrize("victims", ["web", "jobs", "both"])
def test_whoever_dies_the_roles_come_back(shop: Path, victims: str) -> None:
    with running([*GUNICORN, "--workers", "2"], shop) as server:
        wait_for_roles(server, web=2)
        os.kill(server.pid, signal.SIGTTOU)
        wait_for_roles(server, web=1)
        [jobs] = map(int, server.get("/workers").split())
        [web] = set(server.children()) - {jobs}
        for pid in {"web": [web], "jobs": [jobs], "both": [web, jobs]}[victims]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: {web, jobs}.isdisjoint(server.children()) or victims != "both")
        wait_for_roles(server, web=1)
        os.kill(server.pid, signal.SIGTTIN)
        wait_for_roles(server, web=2)
        os.kill(server.pid, signal.SIGTTOU)
        wait_for_roles(server, web=1)


def test_the_role_comes_back_although_there_are_workers_enough(shop: Path) -> None:
    """SIGTTIN comes between a death and gunicorn's noticing it; SIGTTOU makes one too many."""
    with running(GUNICORN, shop) as server:
        for _ in range(10):
            wait_for_roles(server, web=1)
            os.kill(int(server.get("/workers")), signal.SIGKILL)
            os.kill(server.pid, signal.SIGTTIN)
            time.sleep(0.05)
            os.kill(server.pid, signal.SIGTTOU)
            wait_until(lambda: server.get("/workers") != "", server.output)


def test_reload_serves_the_code_that_was_changed(shop: Path) -> None:
    with running([*GUNICORN, "--reload"], shop) as server:
        assert server.get() == "version 1"

        def changed() -> bool:
            # Again and again: gunicorn does not see what is changed before its first look.
            (shop / "shop.py").write_text(SHOP.replace("version 1", "version two"))
            try:
                return server.get() == "version two"
            except OSError:
                return False

        wait_until(changed, server.output)


def test_reload_runs_jobs_with_the_code_that_was_changed(shop: Path) -> None:
    with running([*GUNICORN, "--reload"], shop) as server:
        wait_for_roles(server, web=1)
        before = server.get("/workers")

        def changed() -> bool:
            os.utime(shop / "shop.py")
            try:
                return server.get("/workers") not in ("", before)
            except OSError:
                return False

        wait_until(changed, server.output)


def test_a_configuration_that_reloads_preloaded_code_is_told_so(shop: Path) -> None:
    (shop / "gunicorn.conf.py").write_text(
        "from flask_litestack.gunicorn import *\n\nreload = True\n"
    )
    command = [str(BIN / "gunicorn"), "shop:create_app()"]

    with running(command, shop) as server:
        assert "[WARNING] reload = True does nothing for code that is preloaded" in server.output()


def test_a_worker_that_has_just_been_forked_hears_sigterm(shop: Path) -> None:
    """Until it sets its own handlers, it has those of gunicorn's master, which do nothing in it."""
    (shop / "gunicorn.conf.py").write_text(
        "import time\n"
        "from flask_litestack.gunicorn import *\n\n"
        "def post_fork(server, worker):\n"
        "    if worker.runs_jobs:\n"
        "        print('here it is', flush=True)\n"
        "        time.sleep(2)\n"
    )
    with running([str(BIN / "gunicorn"), "shop:create_app()"], shop) as server:
        wait_until(lambda: "here it is" in server.output())
        begin = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - begin < 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_end_the_tree_at_once(shop: Path, number: signal.Signals) -> None:
    with running(GUNICORN, shop) as server:
        wait_for_roles(server, web=1)
        workers = both_workers(server)
        begin = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - begin < 5
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_the_master_runs_no_thread_and_leaves_nothing_in_the_home(shop: Path) -> None:
    home = shop / "home"
    home.mkdir()
    variables = {"HOME": str(home), "XDG_RUNTIME_DIR": ""}
    with running(GUNICORN, shop, variables) as server:
        # The thread that brings the factory's own commits to the disk ends by itself.
        wait_until(lambda: len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1)
        assert list(home.iterdir()) == []


def test_the_access_log_has_a_line_for_each_request(shop: Path) -> None:
    with running(GUNICORN, shop) as server:
        server.get("/add?x=1")
        wait_until(lambda: '127.0.0.1 "GET /add?x=1 HTTP/1.1" 200 ' in server.output())
