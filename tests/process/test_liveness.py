from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flask_litestack.process.liveness import Life, holder, is_alive, living


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def _start(run: Path, then: str = "") -> tuple[subprocess.Popen[str], str]:
    """Start another process with a life of its own; return it and the life's name."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from flask_litestack.process.liveness import Life\n"
        f"life = Life(Path({str(run)!r}), 'worker')\n"
        f"{then}\n"
        "print(life.name, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_my_own_life(run: Path) -> None:
    life = Life(run, "worker")
    assert is_alive(run, life.name)
    assert holder(run, life.name) == os.getpid()
    assert living(run, "worker") == [life.name]
    life.close()
    life.close()
    assert not is_alive(run, life.name)
    assert os.listdir(run) == []


def test_looking_at_my_own_life_does_not_end_it(run: Path) -> None:
    life = Life(run, "worker")
    for _ in range(3):
        assert is_alive(run, life.name)
        assert living(run, "worker") == [life.name]
    code = (
        "from pathlib import Path; from flask_litestack.process.liveness import is_alive\n"
        f"assert is_alive(Path({str(run)!r}), {life.name!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    life.close()


def test_another_process_and_its_pid(run: Path) -> None:
    process, name = _start(run)
    assert holder(run, name) == process.pid
    assert living(run, "worker") == [name]
    assert living(run, "web") == []
    _kill(process)


def test_a_killed_process_is_dead_at_once_and_its_file_removed(run: Path) -> None:
    process, name = _start(run)
    _kill(process)
    assert not is_alive(run, name)
    assert living(run, "worker") == []
    assert os.listdir(run) == []


def test_a_stopped_process_is_alive(run: Path) -> None:
    process, name = _start(run)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    assert is_alive(run, name)
    os.kill(process.pid, signal.SIGCONT)
    _kill(process)


@pytest.mark.parametrize(
    "fork",
    [
        "child = os.fork()\nif not child: time.sleep(60)",
        "import subprocess; child = subprocess.Popen(['sleep', '60']).pid",
    ],
)
def test_a_child_that_outlives_its_killed_parent_does_not_keep_it_alive(
    run: Path, fork: str
) -> None:
    process, child = _start(run, fork + "\nprint(child, flush=True)")
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert is_alive(run, name)
    _kill(process)
    assert not is_alive(run, name)
    os.kill(int(child), signal.SIGKILL)


def test_a_child_does_not_end_the_life_of_its_parent(run: Path) -> None:
    life = Life(run, "worker")
    pid = os.fork()
    if pid == 0:
        ok = is_alive(run, life.name) and holder(run, life.name) == os.getppid()
        life.close()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    code = (
        "from pathlib import Path; from flask_litestack.process.liveness import is_alive\n"
        f"assert is_alive(Path({str(run)!r}), {life.name!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    life.close()


def test_a_name_never_heard_of_is_dead(run: Path) -> None:
    assert not is_alive(run, "worker-0")
    assert living(run, "worker") == []


def test_no_moment_at_which_a_newborn_looks_dead(run: Path) -> None:
    """Another process looks all the time while lives begin: none of them is removed."""
    code = (
        "import time; from pathlib import Path\n"
        "from flask_litestack.process.liveness import living\n"
        f"run = Path({str(run)!r}); print('ready', flush=True)\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end: living(run, 'worker')\n"
    )
    looker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert looker.stdout is not None
    looker.stdout.readline()
    lives = []
    while looker.poll() is None and len(lives) < 500:
        lives.append(Life(run, "worker"))
    looker.wait()
    looker.stdout.close()
    assert living(run, "worker") == sorted(life.name for life in lives)
    assert len(os.listdir(run)) == len(lives)
    for life in lives:
        life.close()


def test_a_kind_with_a_dash_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="no '-'"):
        Life(run, "a-b")
