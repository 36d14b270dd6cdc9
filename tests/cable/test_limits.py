from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flask_litestack.cable import limits

#: Asks for an event stream in a process that has but so many descriptors left.
WITHOUT_DESCRIPTORS = """
import os, resource, sys
from tests.cable.conftest import Site
from pathlib import Path

site = Site(Path(sys.argv[1]))
client = site.app.test_client()
client.get("/cable")  # what is loaded at first use
def count():
    return len(os.listdir("/proc/self/fd"))
before = count()
limit = before + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
answer = client.get("/cable?channel=posts/7")
print(answer.status_code, count() - before, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("left", [1, 3, 5, 20, 60])
def test_a_client_that_comes_when_no_descriptors_are_left_gets_503(
    tmp_path: Path, left: int
) -> None:
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS, str(tmp_path), str(left)]
    tree = Path(__file__).parents[2]
    printed = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout
    assert printed == "503 0\n"


def test_a_server_gets_as_many_connections_as_fit_beside_the_cables_clients() -> None:
    reserve = 1024 - limits.room(1024)
    assert reserve == 256
    assert limits.connections(10) == 10
    assert limits.connections(1_000_000) < 2048
