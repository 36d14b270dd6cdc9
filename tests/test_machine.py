"""Two machines on diverging copies: the second one does not start while the first answers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flask_litestack import MachineError
from flask_litestack import machine as machines
from flask_litestack.machine import FILE, REFUSED, Machine, resolve, take_over, this_machine

from .disks import fill, small_disk
from .servers import PATIENCE, environment, running

NEW = Machine(id="new1", app="shop", group="app", address="fdaa::1")
OLD = replace(NEW, id="old1", address="fdaa::2")

#: Listens like Fly's SSH server, and says on which port.
LISTENER = (
    "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
    "print(s.getsockname()[1], flush=True); time.sleep(60)"
)


class Other:
    """The other machine: a process that answers on a port of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def die(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def other() -> Iterator[Other]:
    machine = Other()
    yield machine
    machine.die()


def kept(folder: Path) -> str:
    return str(json.loads((folder / FILE).read_text())["id"])


def nobody(host: str) -> list[str]:
    return []


def here(host: str) -> list[str]:
    return ["127.0.0.1"]


def test_elsewhere_than_on_fly_there_is_no_machine() -> None:
    assert this_machine({}) is None
    assert this_machine({"FLY_APP_NAME": "shop"}) is None


def test_a_machine_is_known_by_the_variables_that_fly_sets() -> None:
    variables = {
        "FLY_MACHINE_ID": "new1",
        "FLY_APP_NAME": "shop",
        "FLY_PROCESS_GROUP": "app",
        "FLY_PRIVATE_IP": "fdaa::1",
    }
    machine = this_machine(variables)

    assert machine == NEW
    assert machine.host == "new1.vm.shop.internal"
    assert machine.peers == "app.process.shop.internal"


def test_the_first_machine_is_kept_and_may_start_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take_over(tmp_path, NEW, resolve=nobody)
    take_over(tmp_path, NEW, resolve=here)

    assert kept(tmp_path) == "new1"
    assert caplog.records == []
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_dead_machine_is_replaced_with_a_line_in_the_log(
    tmp_path: Path, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    take_over(tmp_path, OLD, resolve=nobody, port=other.port)
    other.die()

    take_over(tmp_path, NEW, resolve=here, port=other.port)

    [line] = caplog.messages
    assert line == "Machine new1 takes over the data of machine old1, which does not answer."
    assert kept(tmp_path) == "new1"


def test_a_machine_that_is_stopped_is_unknown_to_the_dns_and_replaced(
    tmp_path: Path, other: Other
) -> None:
    """Its address may belong to a machine of another app by now, which answers."""
    take_over(tmp_path, OLD, resolve=nobody, port=other.port)

    take_over(tmp_path, NEW, resolve=nobody, port=other.port)

    assert kept(tmp_path) == "new1"


def test_a_machine_that_answers_keeps_its_data_and_the_other_is_told_what_to_do(
    tmp_path: Path, other: Other
) -> None:
    take_over(tmp_path, OLD, resolve=nobody, port=other.port)
    asked = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with pytest.raises(MachineError) as error:
        take_over(tmp_path, NEW, resolve=resolve, port=other.port)

    assert asked == ["old1.vm.shop.internal"]
    assert "served by machine old1, which still answers" in str(error.value)
    assert "fly machine destroy --force new1" in str(error.value)
    assert kept(tmp_path) == "old1"


def test_a_machine_that_accepts_nothing_is_dead_within_seconds(
    tmp_path: Path, other: Other
) -> None:
    """A full queue of connections: the kernel drops what comes, as a host that is gone does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            take_over(tmp_path, OLD, resolve=nobody, port=port)
            take_over(tmp_path, NEW, resolve=here, port=port)

    assert kept(tmp_path) == "new1"


def test_an_empty_volume_is_not_served_beside_a_machine_that_serves(
    tmp_path: Path, other: Other
) -> None:
    def resolve(host: str) -> list[str]:
        return ["fdaa::1", "127.0.0.1"] if host == "app.process.shop.internal" else []

    with pytest.raises(MachineError, match="fly machine destroy --force new1"):
        take_over(tmp_path, NEW, resolve=resolve, port=other.port)

    assert [path.name for path in tmp_path.iterdir()] == [REFUSED]


def test_its_own_address_is_no_other_machine_however_it_is_written(
    tmp_path: Path, other: Other
) -> None:
    me = replace(NEW, address="0:0:0:0:0:ffff:127.0.0.1")

    take_over(tmp_path, me, resolve=lambda host: ["::ffff:7f00:1"], port=other.port)

    assert kept(tmp_path) == "new1"


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_refused_machine_stays_refused_while_the_other_one_is_deployed(
    tmp_path: Path, other: Other, is_copy: bool
) -> None:
    """For some seconds of a deploy the DNS does not know the machine that serves."""
    if is_copy:
        take_over(tmp_path, OLD, resolve=nobody, port=other.port)
    with pytest.raises(MachineError) as first:
        take_over(tmp_path, NEW, resolve=here, port=other.port)

    with pytest.raises(MachineError) as second:
        take_over(tmp_path, NEW, resolve=nobody, port=other.port)

    assert str(second.value) == str(first.value)
    assert "LITESTACK_ONE_MACHINE = False" in str(second.value)


def test_a_machine_starts_on_its_own_data_without_asking_anybody(tmp_path: Path) -> None:
    def broken(host: str) -> list[str]:
        raise MachineError("the DNS is down")

    take_over(tmp_path, NEW, resolve=nobody)
    take_over(tmp_path, NEW, resolve=broken)

    assert kept(tmp_path) == "new1"


def test_the_record_of_another_app_came_with_a_backup(tmp_path: Path, other: Other) -> None:
    take_over(tmp_path, replace(OLD, app="blog"), resolve=nobody, port=other.port)

    def resolve(host: str) -> list[str]:
        return ["127.0.0.1"] if "blog" in host else []

    take_over(tmp_path, NEW, resolve=resolve, port=other.port)

    assert kept(tmp_path) == "new1"


def test_a_full_disk_does_not_keep_a_machine_from_its_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path, 1024 * 1024) as disk:
        take_over(disk, OLD, resolve=nobody)
        fill(disk / "ballast")

        take_over(disk, NEW, resolve=nobody)

        assert kept(disk) == "old1"
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", FILE]
    assert "could not be written: No space left on device" in caplog.text


class Dns:
    """Answers with these errors of getaddrinfo, one after the other, then for ever the last."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def __call__(self, *_: object, **__: object) -> list[object]:
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        raise socket.gaierror(error, "Temporary failure in name resolution")


def test_a_dns_that_hesitates_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "DNS_PAUSE", 0.01)
    dns = Dns(socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_NONAME)
    monkeypatch.setattr(socket, "getaddrinfo", dns)

    assert resolve("old1.vm.shop.internal") == []
    assert dns.errors == [socket.EAI_NONAME]


def test_a_dns_that_does_not_answer_is_no_sign_of_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_over(tmp_path, OLD, resolve=nobody)
    monkeypatch.setattr(machines, "DNS_PAUSE", 0.01)
    monkeypatch.setattr(machines, "DNS_PATIENCE", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", Dns(socket.EAI_AGAIN))

    with pytest.raises(MachineError, match="LITESTACK_ONE_MACHINE"):
        take_over(tmp_path, NEW)

    # The next start asks again: nobody has been seen.
    take_over(tmp_path, NEW, resolve=nobody)
    assert kept(tmp_path) == "new1"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": "old1"', "null"])
def test_a_damaged_file_is_written_anew(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(content)

    take_over(tmp_path, NEW, resolve=nobody)

    assert kept(tmp_path) == "new1"
    assert "is damaged" in caplog.text


SHOP = """
from flask import Flask
from flask_litestack import Litestack

litestack = Litestack()

@litestack.before_serving
def migrate():
    (litestack.settings.data_path / "migrated").touch()

def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    litestack.init_app(app)

    @app.get("/")
    def index():
        return "open"

    return app
"""

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "python:flask_litestack.gunicorn"]
FLY = {
    "FLY_MACHINE_ID": "new1",
    "FLY_APP_NAME": "shop",
    "FLY_PROCESS_GROUP": "app",
    "FLY_PRIVATE_IP": "127.0.0.1",
}


@pytest.fixture
def shop(tmp_path: Path, other: Other) -> Path:
    """A project whose data was served by another machine, on this address."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "data").mkdir(mode=0o700)
    record = {"id": "old1", "app": "shop", "host": "127.0.0.1", "port": other.port}
    (tmp_path / "data" / FILE).write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("preload", [True, False])
def test_gunicorn_ends_with_a_sentence_while_the_other_machine_answers(
    shop: Path, preload: bool
) -> None:
    config = shop / "gunicorn.conf.py"
    config.write_text(f"from flask_litestack.gunicorn import *\npreload_app = {preload}\n")

    done = subprocess.run(
        [*GUNICORN[:3], "--bind", "127.0.0.1:0", "shop:create_app()"],
        cwd=shop,
        env=environment(LITESTACK_DATA_PATH="data", **FLY),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert "served by machine old1, which still answers" in done.stderr
    if preload:
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    else:  # gunicorn itself stumbles if two workers fail at the same time
        assert done.returncode in (3, 1)
    assert not (shop / "data" / "migrated").exists()


def test_gunicorn_starts_once_the_other_machine_is_dead(shop: Path, other: Other) -> None:
    other.die()
    variables = {"LITESTACK_DATA_PATH": "data", **FLY}

    with running([*GUNICORN, "shop:create_app()"], shop, variables) as server:
        assert server.get() == "open"
        assert "Machine new1 takes over the data of machine old1" in server.output()
        assert kept(shop / "data") == "new1"
        assert (shop / "data" / "migrated").exists()
        assert server.terminate() == 0


def test_the_check_can_be_switched_off_and_forgets_its_refusals(shop: Path) -> None:
    (shop / "data" / REFUSED).write_text("refused")
    variables = {"LITESTACK_DATA_PATH": "data", "FLASK_LITESTACK_ONE_MACHINE": "false", **FLY}

    with running([*GUNICORN, "shop:create_app()"], shop, variables) as server:
        assert server.get() == "open"
    assert kept(shop / "data") == "old1"
    assert not (shop / "data" / REFUSED).exists()
