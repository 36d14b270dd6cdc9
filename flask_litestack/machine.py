"""One machine at a time: a second one would go on with data of its own.

On Fly.io a volume belongs to one machine. A second machine of the app has another volume, empty
or a copy, and visitors would get now the one site and now the other. So the id of the machine
that serves is kept in the data folder, and a machine that finds another one's id there takes over
only if that one is gone; that is how a dead machine is replaced on its old volume.

A machine that was refused leaves a note in its own volume and stays refused: the other one is gone
for seconds at each of its deploys, and that must not hand the site to an empty volume. Only
``LITESTACK_ONE_MACHINE = False`` takes the note away.

"Gone" is what Fly's own DNS and SSH server say: a name below ``.internal`` resolves for started
machines only, and each of them listens on port 22 of its private address
(https://fly.io/docs/networking/private-networking/).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .config import Settings
from .errors import MachineError

log = logging.getLogger("flask_litestack")

#: Where the id is kept, in the data folder.
FILE = "machine"

#: The note of a refusal, beside it: the sentence that says why.
REFUSED = "machine-refused"

#: Fly's SSH server in each machine, which ``fly ssh console`` talks to.
SSH_PORT = 22

#: Seconds that a machine has to answer.
PATIENCE = 2.0

#: Seconds that the DNS has to say whether a name exists, and between two questions.
DNS_PATIENCE = 15.0
DNS_PAUSE = 1.0

#: What the DNS says of a name that leads to no machine.
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


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
    app: str
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
    """Return the addresses of a name, none if it does not exist. Waits for a DNS that is slow.

    :raises MachineError: if it says neither within ``DNS_PATIENCE`` seconds.
    """
    deadline = time.monotonic() + DNS_PATIENCE
    while True:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                return []
            if time.monotonic() > deadline:
                raise MachineError(
                    f"the DNS does not say whether {host}, another machine of the app, is there: "
                    f"{error.strerror}. Start again later, or set LITESTACK_ONE_MACHINE = False."
                ) from error
            time.sleep(DNS_PAUSE)
        else:
            return [str(address[0]) for *_, address in found]


def claim(settings: Settings) -> None:
    """Make this machine the one that serves the data folder, if it is a machine of Fly.io.

    :raises MachineError: if another one serves the app and answers, or did so when this one was
        started before.
    """
    machine = this_machine()
    if machine is None:
        return
    if settings.one_machine:
        take_over(settings.data_path, machine)
    else:
        (settings.data_path / REFUSED).unlink(missing_ok=True)


def take_over(
    data_path: Path,
    machine: Machine,
    *,
    resolve: Callable[[str], list[str]] = resolve,
    port: int = SSH_PORT,
) -> None:
    """Write the machine into the data folder, unless another one serves the app and answers.

    :raises MachineError: if it does, or did, or if ``resolve`` says so.
    """
    note = data_path / REFUSED
    if note.exists():
        raise MachineError(note.read_text())
    file = data_path / FILE
    recorded = _read(file)
    if recorded is not None and recorded.app != machine.app:
        recorded = None  # a backup of another app was restored here
    reason = _objection(data_path, machine, recorded, resolve, port)
    if reason is not None:
        _write(note, reason)
        raise MachineError(reason)
    wanted = Record(machine.id, machine.app, machine.host, port)
    if recorded != wanted:
        _write(file, json.dumps(dataclasses.asdict(wanted)))


def running_beside(
    machine: Machine,
    *,
    resolve: Callable[[str], list[str]] = resolve,
    port: int = SSH_PORT,
) -> list[str]:
    """Return the addresses of the other machines that serve the app, and answer.

    :raises MachineError: if ``resolve`` does.
    """
    # As numbers: the DNS writes an IPv6 address shorter than the environment does.
    own = ipaddress.ip_address(machine.address)
    peers = [a for a in resolve(machine.peers) if ipaddress.ip_address(a) != own]
    return [address for address in peers if _answers(address, port)]


def _objection(
    data_path: Path,
    machine: Machine,
    recorded: Record | None,
    resolve: Callable[[str], list[str]],
    port: int,
) -> str | None:
    """Say why the machine may not serve the data, unless it may."""
    if recorded is None:
        others = running_beside(machine, resolve=resolve, port=port)
        if others:
            return (
                f"another machine of {machine.app} is running, at {', '.join(others)}, and this "
                f"one ({machine.id}) has a volume of its own, which knows nothing of its data. "
                f"Destroy this one (`fly machine destroy --force {machine.id}`). {_GO_ON}"
            )
    elif recorded.id != machine.id:
        if any(_answers(address, recorded.port) for address in resolve(recorded.host)):
            return (
                f"the data in {data_path} is served by machine {recorded.id}, which still "
                f"answers; this machine ({machine.id}) has a copy of it. Destroy this one "
                f"(`fly machine destroy --force {machine.id}`). {_GO_ON}"
            )
        log.warning(
            "Machine %s takes over the data of machine %s, which does not answer.",
            machine.id,
            recorded.id,
        )
    return None


#: It stays refused, so this is what takes the note away.
_GO_ON = (
    "Or, to go on with this volume for good, destroy the other one and start this one with "
    "LITESTACK_ONE_MACHINE = False."
)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def _read(file: Path) -> Record | None:
    try:
        found = json.loads(file.read_text())
        return Record(str(found["id"]), str(found["app"]), str(found["host"]), int(found["port"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged; this machine writes it anew.", file)
        return None


def _write(file: Path, text: str) -> None:
    """Write a file whole or, on a full disk, not at all, which is no reason not to serve."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
            output.write(text)
            output.flush()
            os.fsync(output.fileno())
        os.replace(draft, file)
    except OSError as error:
        log.warning("%s could not be written: %s.", file, error.strerror)
    finally:
        draft.unlink(missing_ok=True)
