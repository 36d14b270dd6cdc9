"""Proves that the images work as a server would run them, and prints what they cost."""

from __future__ import annotations

import argparse
import html
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from base import NoBaseImage, images_of
from engine import Container, Docker, Podman, run
from sockets import Sockets
from visitor import Visitor

ROOT = Path(__file__).resolve().parents[2]
BLOG = ROOT / "examples" / "blog"
WHEELS = ROOT / "wheels"

IMAGE = "litestack-image-test"
VOLUME = "litestack-image-test"
TEMPLATE = "litestack-image-test-template"

#: How often each start is measured; the median is printed.
STARTS = 3

#: What it may cost: MB of memory of an idle server, and times the start of a bare Flask app. Both
#: depend on the machine and on what else it does, so a MISS is no failure of the test.
IDLE = 90
START = 2.0

#: Comments that are written while everybody listens, each with a mail to the post's author.
COMMENTS = 100

BARE = """
from flask import Flask
app = Flask(__name__)
@app.get("/up")
def up():
    return "up"
"""

#: What an app loads that has a database.
ORM = """
import sqlalchemy.orm, sqlalchemy.dialects.sqlite
"""

#: Prints the modules of the served app that have no bytecode beside them.
WITHOUT_BYTECODE = """
import os, sys, blog, gunicorn.arbiter
blog.create_app()
cached = {name: getattr(module, "__cached__", None) for name, module in sys.modules.items()}
print(*[name for name, path in cached.items() if path and not os.path.exists(path)])
"""


def main() -> None:
    parser = argparse.ArgumentParser("scripts/image-test", description="Test the images.")
    parser.add_argument("--engine", choices=["docker", "podman"], required=True)
    parser.add_argument("--sockets", type=int, default=1000, help="default: %(default)s")
    given = parser.parse_args()
    _allow_descriptors(given.sockets + 100)
    engine = Docker() if given.engine == "docker" else Podman()

    build_wheel()
    with cleaned_up(engine):
        step("Building the image of the root")
        engine.build(ROOT, IMAGE)
        figure("image, without its base", f"{size(engine):.0f} MB")
        run([*engine.command, "volume", "create", VOLUME])
        with Container(engine, IMAGE, options=["--volume", f"{VOLUME}:/data"]) as blog:
            start, idle = use(engine, blog, given.sockets)
        bare = start_of_bare_flask(engine, "bare Flask", BARE)
        start_of_bare_flask(engine, "bare Flask, SQLAlchemy's ORM imported", ORM + BARE)
        step("Building the image of a project made from the template")
        build_template(engine)
        with Container(engine, TEMPLATE) as project:
            project.start()
            assert "<html" in Visitor(project.port, "Nobody").see("/")
            assert project.stop()[0] == 0
    step("What it may cost")
    compare("memory (PSS), idle, in MB", idle, IDLE)
    compare("start, against bare Flask", start / bare, START)
    print("images: all is well")


def use(engine: Docker, blog: Container, sockets: int) -> tuple[float, float]:
    """Use the blog in a container, end and start it in several ways, and measure it.

    Return the seconds of the quickest start (what else this machine does makes one slower, never
    quicker), and the MB of memory when nothing happens.
    """
    step("Starting it on an empty volume, as user 1000, with 256 MB")
    figure("start on an empty volume, to the first 200", f"{blog.start():.2f} s")
    inspect(engine, blog)

    step("Registering, posting, commenting")
    ann = Visitor(blog.port, "Ann")
    ann.register()
    post = ann.publish("A first post", "With *some* text.")
    ann.comment(post, "The first comment")
    bob = Visitor(blog.port, "Bob")
    bob.register()
    bob.comment(post, "A comment by somebody else")
    wait_until(lambda: "Subject: Bob commented on" in blog.logs(), "the mail to Ann")

    step("Importing a file, and reading it from the cache")
    text = "mkdir /tmp/posts; printf '# From a file\\n\\nImported.' >/tmp/posts/from-a-file.md"
    blog.execute("sh", "-c", text)
    blog.execute("flask", "import-posts", "/tmp/posts", "--author", ann.email)
    reader = Visitor(blog.port, "Nobody")
    wait_until(lambda: "From a file" in reader.see("/"), "the import")
    for _ in range(3):
        assert "Imported." in reader.see("/posts/from-a-file")

    step("SIGTERM, and a start on the same volume")
    code, seconds = blog.stop()
    assert code == 0, f"it ended with {code}:\n{blog.logs()}"
    figure("SIGTERM to its end", f"{seconds:.2f} s")
    starts = [blog.start()]
    for _ in range(STARTS - 1):
        blog.stop()
        starts.append(blog.start())
    figure("start, to the first 200", f"{statistics.median(starts):.2f} s")
    settle()
    idle = blog.memory()
    figure("memory (PSS) of all processes, idle", f"{idle:.0f} MB")
    assert "The first comment" in ann.see(post)
    ann.comment(post, "Still logged in")
    again = Visitor(blog.port, "Ann")
    again.log_in()
    again.comment(post, "Logged in anew")

    step("SIGTERM while it starts")
    blog.stop()
    blog.begin()
    code, seconds = blog.stop()
    assert code == 0, f"it ended with {code}, after {seconds:.1f} s"
    blog.start()

    written = under_load(blog, bob, post, sockets)

    step("SIGKILL, and another start")
    blog.kill()
    blog.start()
    comments = every_page(ann, post)
    missing = [text for text in [*written, "The first comment"] if text not in comments]
    assert not missing, f"acknowledged comments are gone: {missing[:3]}"

    step("Commands as root, as in fly ssh console")
    json.loads(blog.execute("flask", "litestack", "status", "--json", user="0"))
    blog.execute("flask", "litestack", "backup", "/data/backups", user="0")
    blog.execute("flask", "litestack", "dbconsole", "DELETE FROM comment WHERE 0", user="0")
    foreign = blog.execute("find", "/data", "!", "-user", "1000", user="0")
    assert not foreign, f"files that the app cannot write: {foreign}"
    ann.comment(post, "The last comment")
    assert cache_hits(blog) > 0  # a process notes them now and then, and at its end
    assert blog.stop()[0] == 0, blog.logs()
    assert "Traceback" not in blog.logs(), blog.logs()
    return min(starts), idle


def inspect(engine: Docker, blog: Container) -> None:
    """Look at what the image says of itself, from inside."""
    assert blog.execute("sh", "-c", "stat -c %u /proc/[0-9]* | sort -u") == "1000"
    blog.execute(*engine.health_check(IMAGE))
    program = "from flask_litestack.sqlite import driver as d; print(d.name, d.version)"
    name, version = blog.execute("python", "-c", program).split(" ", 1)
    figure("SQLite", f"{version} ({name})")
    blog.execute("flask", "litestack", "doctor")
    slow = blog.execute("python", "-c", WITHOUT_BYTECODE)
    assert not slow, f"each start compiles {slow}"
    # The package index of this machine was there during RUN alone.
    assert blog.execute("sh", "-c", "cat /etc/pip.conf 2>/dev/null; env | grep ^PIP || :") == ""


def under_load(blog: Container, bob: Visitor, post: str, count: int) -> list[str]:
    """Comment while many websockets listen and the worker sends mails; return what was written."""
    channel = re.search(r'data-cable="([^"]+)"', bob.see(post))
    assert channel, "the blog's pages subscribe to nothing"
    step(f"{count} websockets, and {COMMENTS} comments that all of them get, each with a mail")
    before = jobs_done(blog)
    with Sockets(blog.port, channel[1], count) as sockets:
        assert not sockets.failures, sockets.failures[:3]
        settle()
        figure(f"memory (PSS) with {count} websockets", f"{blog.memory():.0f} MB")
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            writing = pool.submit(comment_much, bob, post)
            busy = [blog.memory()]
            while not writing.done():
                busy.append(blog.memory())
            written = writing.result()
        seconds = time.monotonic() - began
        wait_until(lambda: min(sockets.received) >= COMMENTS, "all messages at all websockets")
        assert not sockets.failures, sockets.failures[:3]
    figure("memory (PSS) with them, comments and mails, at most", f"{max(busy):.0f} MB")
    figure("comments a second, each to all of them", f"{COMMENTS / seconds:.0f}")
    wait_until(lambda: jobs_done(blog) - before >= COMMENTS, "all mails")
    return written


def comment_much(bob: Visitor, post: str) -> list[str]:
    written = [f"Comment number {number:04}" for number in range(COMMENTS)]
    for text in written:
        bob.comment(post, text)
    return written


def every_page(ann: Visitor, post: str) -> str:
    """Return all pages of a post's comments, one after the other."""
    pages = [ann.see(post)]
    while older := re.search(r'href="([^"]*[?&]before=[^"]+)"', pages[-1]):
        pages.append(ann.see(html.unescape(older[1])))
    return "".join(pages)


def jobs_done(blog: Container) -> int:
    """Return how many jobs have succeeded, as far as they are kept."""
    status = json.loads(blog.execute("flask", "litestack", "status", "--json"))
    return int(status.get("jobs", {}).get("counts", {}).get("succeeded", 0))


def cache_hits(blog: Container) -> int:
    return int(json.loads(blog.execute("flask", "litestack", "cache", "stats", "--json"))["hits"])


def start_of_bare_flask(engine: Docker, name: str, source: str) -> float:
    """Start a Flask app of five lines in the same image; return the seconds of the quickest."""
    step(f"In the same image: {name}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "bare.py").write_text(source)
        mount = ["--volume", f"{folder}:/bare:ro", "--workdir", "/bare"]
        with Container(engine, IMAGE, options=mount, command=["gunicorn", "bare:app"]) as bare:
            starts = []
            for _ in range(STARTS):
                starts.append(bare.start())
                bare.stop()
            bare.start()
            settle()
            figure("start, to the first 200", f"{statistics.median(starts):.2f} s")
            figure("memory (PSS), idle", f"{bare.memory():.0f} MB")
    return min(starts)


def build_wheel() -> None:
    """Put the wheel of this checkout, and no other one, into wheels/."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(WHEELS)]
    run([sys.executable, *command, str(ROOT)])


def build_template(engine: Docker) -> None:
    """Build the template's default bake, which is examples/blog, with our wheel in wheels/."""
    listed = subprocess.run(
        ["git", "-C", str(BLOG), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, listed.stdout.split("\0")):
            if (BLOG / name).exists():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(BLOG / name, Path(folder) / name)
        shutil.copytree(WHEELS, Path(folder) / "wheels")
        engine.build(Path(folder), TEMPLATE)


def size(engine: Docker) -> float:
    """Return the size of the image above its base image, in MB."""
    [name] = images_of(ROOT / "Dockerfile")
    return float(engine.image(IMAGE)["Size"] - engine.image(name)["Size"]) / 1e6


@contextmanager
def cleaned_up(engine: Docker) -> Iterator[None]:
    """Remove our images and volumes, those of an earlier run too."""
    engine.remove(images=[], volumes=[VOLUME])
    try:
        yield
    finally:
        engine.remove(images=[IMAGE, TEMPLATE], volumes=[VOLUME])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.2)


def settle() -> None:
    """Let what a start or a handshake has begun come to its end."""
    time.sleep(2)


def step(text: str) -> None:
    print(f"{text} ...", flush=True)


def figure(name: str, value: str) -> None:
    print(f"  {name}: {value}", flush=True)


def compare(name: str, value: float, limit: float) -> None:
    """Print whether a value is within its limit."""
    verdict = "PASS" if value <= limit else "MISS"
    print(f"  {verdict} {name}: {value:.2f}, at most {limit:g}", flush=True)


def _allow_descriptors(count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(count, 1024)), hard))


if __name__ == "__main__":
    try:
        main()
    except NoBaseImage as error:
        print(f"NOT RUN: images ({error})")
