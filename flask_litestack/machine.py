"""One machine at a time: a second one would go on with data of its own.

On Fly.io a volume belongs to one machine. A second machine of the app has another volume, empty
or a copy, and visitors would get now the one site and now the other. So the id of the machine
that serves is kept in the data folder, and a machine that finds another one's id there takes over
only if that one is gone; that is how a dead machine is replaced on its old volume.

"Gone" is what Fly's own DNS and SSH server say: a name below ``.internal`` resolves for started
machines only, and each of them listens on port 22 of its private address
(https://fly.io/docs/networking/private-networking/).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .config import Settings
from .errors import MachineError
from .sqlite import filesystem

log = logging.getLogger("flask_litestack")

#: Where the id is kept, in the data folder.
FILE = "machine"

#: Fly's SSH server in each machine, which ``fly ssh console`` talks to.
SSH_PORT = 22

#: Seconds that a machine has to answer.
PATIENCE = 2.0


@dataclass(frozen=True)
class Machine:
    """This machine, as its environment describes it.

    The variables: https://fly.io/docs/machines/runtime-environment/
    """

    id: str
    app: str
    group: str
    """The process group; the machines of ``fly console`` and of release commands have others."""
    address: str

    @property
    def host(self) -> str:
        """The name that leads to this machine as long as it is started."""
        return f"{self.id}.vm.{self.app}.internal"

    @property
    def peers(self) -> str:
        """The name that leads to all started machines that serve the app."""
        return f"{self.group}.process.{self.app}.internal"


@dataclass(frozen=True)
class Record:
    """What the data folder says: who serves it, and where to ask whether that machine is there."""

    id: str
    host: str
    port: int


def this_machine(environ: Mapping[str, str] = os.environ) -> Machine | None:
    """Return the machine that this process runs on; None elsewhere than on Fly.io."""
    try:
        return Machine(
            id=environ["FLY_MACHINE_ID"],
            app=environ["FLY_APP_NAME"],
            group=environ["FLY_PROCESS_GROUP"],
            address=environ["FLY_PRIVATE_IP"],
        )
    except KeyError:
        return None


def resolve(host: str) -> list[str]:
    """Return the addresses of a name; none if it does not exist, or cannot be asked for."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]


def claim(settings: Settings) -> None:
    """Make this machine the one that serves the data folder, if it is a machine of Fly.io.

    :raises MachineError: if another one serves the app and answers.
    """
    machine = this_machine()
    if machine is not None and settings.one_machine:
        filesystem.prepare(settings.data_path)
        take_over(settings.data_path, machine)


def take_over(
    data_path: Path,
    machine: Machine,
    *,
    resolve: Callable[[str], list[str]] = resolve,
    port: int = SSH_PORT,
) -> None:
    """Write the machine into the data folder, unless another one serves the app and answers.

    :raises MachineError: if it does.
    """
    file = data_path / FILE
    recorded = _read(file)
    if recorded is None:
        others = [a for a in resolve(machine.peers) if a != machine.address and _answers(a, port)]
        if others:
            raise MachineError(
                f"another machine of {machine.app} is running, at {', '.join(others)}, and this "
                f"one ({machine.id}) has a volume of its own, which knows nothing of its data. "
                f"Destroy this one (`fly machine destroy --force {machine.id}`, or "
                "`fly scale count 1`); or, to go on with this volume, stop the other one first."
            )
    elif recorded.id != machine.id:
        if any(_answers(a, recorded.port) for a in resolve(recorded.host)):
            raise MachineError(
                f"the data in {data_path} is served by machine {recorded.id}, which still "
                f"answers; this machine ({machine.id}) has a copy of it. Stop the other one to "
                f"go on here (`fly machine stop {recorded.id}`), or destroy this one "
                f"(`fly machine destroy --force {machine.id}`)."
            )
        log.warning(
            "Machine %s takes over the data of machine %s, which does not answer.",
            machine.id,
            recorded.id,
        )
    wanted = Record(machine.id, machine.host, port)
    if recorded != wanted:
        _write(file, wanted)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def _read(file: Path) -> Record | None:
    try:
        found = json.loads(file.read_text())
        return Record(str(found["id"]), str(found["host"]), int(found["port"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged; this machine writes it anew.", file)
        return None


def _write(file: Path, record: Record) -> None:
    draft = file.with_name(f"{FILE}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
            json.dump(dataclasses.asdict(record), output)
            output.flush()
            os.fsync(output.fileno())
        os.replace(draft, file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
