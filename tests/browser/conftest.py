"""A blog served by gunicorn, and the system's Chromium looking at it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START = 30.0  # seconds within which the server must answer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


# Of this folder only: Playwright runs an event loop on the main thread, in which later tests could
# not run coroutines of their own.
@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing = "NOT RUN: browser tests (no Chromium; apt-get install chromium, or set CHROMIUM)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def blog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve examples/blog, seeded, by gunicorn; yield its URL."""
    data = tmp_path_factory.mktemp("blog") / "data"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LITESTACK_DATA_PATH": str(data)}
    run = {"cwd": ROOT / "examples" / "blog", "env": environment}
    flask = [sys.executable, "-m", "flask", "--app", "blog"]
    for command in (["db", "upgrade"], ["seed"]):
        subprocess.run([*flask, *command], **run, check=True, stdout=subprocess.DEVNULL)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        number = listener.fileno()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        gunicorn = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{number}"]
        gunicorn += ["--access-logfile", os.devnull]
        server = subprocess.Popen(gunicorn, pass_fds=[number], **run)
    try:
        wait_for(url + "/up", server)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


Visit = Callable[..., Page]


@pytest.fixture
def visit(chromium: Browser, blog: str) -> Iterator[Visit]:
    """Open a page of the blog in a window of its own; its options are Playwright's."""
    contexts: list[BrowserContext] = []

    def open_page(path: str = "/", **options: object) -> Page:
        context = chromium.new_context(base_url=blog, **options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
