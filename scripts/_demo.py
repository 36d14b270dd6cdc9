"""Builds flask-litestack from this checkout, bakes the template, and serves the blog.

Everything is made in .demo/; remove that folder to start afresh. What was made before is used
again while the sources are the same, and the blog's data stays in any case.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
VENV = DEMO / "venv"
BLOG = DEMO / "blog"
WHEELS = DEMO / "wheels"
MADE_FROM = DEMO / "made-from"

#: What the demo is made from.
SOURCES = ("pyproject.toml", "README.md", "cookiecutter.json", "flask_litestack", "template")

PREFERRED_PORT = 8000
START = 30.0  # seconds within which the server must answer

#: Variables that would change what the blog is; the demo is the same everywhere.
UNSET = ("FLY_APP_NAME", "GUNICORN_CMD_ARGS", "PYTHONHOME", "PYTHONPATH", "SECRET_KEY")


def main() -> None:
    port = free_port(arguments().port)
    made_from = f"{sys.version}\n{ROOT}\n{fingerprint()}"
    if not MADE_FROM.exists() or MADE_FROM.read_text() != made_from:
        make()
        MADE_FROM.write_text(made_from)
    run("flask", "db", "upgrade", quiet=True)
    login = run("flask", "seed", quiet=True).strip().splitlines()[-1]
    serve(port, login)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/demo", description="Serve the blog, made from this checkout."
    )
    parser.add_argument(
        "port",
        nargs="?",
        type=int,
        default=os.environ.get("PORT") or None,
        help=f"default: $PORT, else {PREFERRED_PORT} or any that is free",
    )
    return parser.parse_args()


def make() -> None:
    """Make the virtual environment, unless it is there, and the blog in it."""
    print("Making the demo in .demo/ (a minute or so; the next start is quick) ...", flush=True)
    try:
        DEMO.mkdir(exist_ok=True)
        MADE_FROM.unlink(missing_ok=True)
        for folder in (WHEELS, BLOG):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        fail(f"cannot write to {error.filename}: {error.strerror}.")
    if not works(str(VENV / "bin/python"), "-m", "pip", "--version"):
        make_venv()
    run("pip", "wheel", "--no-deps", "--wheel-dir", str(WHEELS), str(ROOT))
    (wheel,) = map(str, WHEELS.glob("*.whl"))
    run("pip", "install", "cookiecutter", f"{wheel}[serve]")
    run("pip", "install", "--no-deps", "--force-reinstall", wheel)  # of the same version as before
    run("cookiecutter", str(ROOT), "--no-input", "--output-dir", str(DEMO))
    run("pip", "install", "--find-links", str(WHEELS), "--editable", str(BLOG))


def make_venv() -> None:
    python = sys.executable
    shutil.rmtree(VENV, ignore_errors=True)
    if works(python, "-m", "venv", str(VENV)):
        return
    # Debian's Python comes without ensurepip; the pip of the system, if there is one, will do.
    shutil.rmtree(VENV, ignore_errors=True)
    pip = [python, "-m", "pip", "--python", str(VENV / "bin/python")]
    if works(python, "-m", "venv", "--without-pip", str(VENV)) and works(*pip, "install", "pip"):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    fail(
        f"{python} cannot make a virtual environment; on Debian and Ubuntu run "
        f"`apt-get install python{version}-venv`."
    )


def works(*command: str) -> bool:
    """Tell whether a command can be run, and ends well."""
    try:
        done = subprocess.run(command, capture_output=True, env=environment(), check=False)
        return done.returncode == 0
    except OSError:
        return False


def run(program: str, *arguments: str, quiet: bool = False) -> str:
    """Run a program of the virtual environment in the blog's folder; return what it printed."""
    done = subprocess.run(
        [str(VENV / "bin" / program), *arguments],
        cwd=BLOG if BLOG.exists() else DEMO,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, done.stderr or "", sep="", end="", file=sys.stderr)
        fail(f"`{program} {' '.join(arguments)}` did not succeed; it says why above.")
    return done.stdout


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return kept | {
        "FLASK_APP": "blog",
        "HOME": str(DEMO),  # where cookiecutter and pip's helpers keep notes
        "LITESTACK_DATA_PATH": str(DEMO / "data"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_QUIET": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


def serve(port: int, login: str) -> NoReturn:
    """Run gunicorn until Ctrl-C or SIGTERM."""
    url = f"http://localhost:{port}"
    command = [str(VENV / "bin/gunicorn"), "--bind", f"127.0.0.1:{port}"]
    command += ["--log-level", "warning", "--access-logfile", os.devnull]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with subprocess.Popen(command, cwd=BLOG, env=environment()) as server:
        try:
            wait_for(f"{url}/up", server)
            print(f"\nThe blog is at {url}\n{login}\nCtrl-C ends it.", flush=True)
            code = server.wait()
        except KeyboardInterrupt:
            server.terminate()
            code = server.wait()
    if code == 0:
        print("\nStopped. The data stays in .demo/data.")
    sys.exit(code)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            if server.poll() is not None:
                fail("the server ended at once; it says why above.")
            if time.monotonic() > deadline:
                server.terminate()
                fail(f"{url} did not answer within {START:.0f} seconds.")
            time.sleep(0.05)


def free_port(wanted: int | None) -> int:
    """Return the port that is wanted, or one that nobody listens on."""
    try:
        return bindable(PREFERRED_PORT if wanted is None else wanted)
    except (OSError, OverflowError) as error:
        if wanted is not None:
            fail(f"port {wanted} cannot be had: {getattr(error, 'strerror', None) or error}.")
        return bindable(0)


def bindable(port: int) -> int:
    with socket.create_server(("127.0.0.1", port)) as server:
        bound: int = server.getsockname()[1]
        return bound


def fingerprint() -> str:
    """Return a hash of the sources."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def fail(message: str) -> NoReturn:
    sys.exit(f"scripts/demo: {message}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted.")
