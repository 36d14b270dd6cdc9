"""The documentation says what the code does."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from blinker import NamedSignal

import flask_litestack
from flask_litestack.cli import COMMANDS
from flask_litestack.config import PREFIX, Settings

from .servers import TREE, environment, running

PAGES = [
    TREE / "README.md",
    TREE / "CHANGES.md",
    TREE / "CONTRIBUTING.md",
    *sorted((TREE / "docs").glob("*.md")),
]
TEXTS = {page: page.read_text() for page in PAGES}
DOCS = "\n".join(text for page, text in TEXTS.items() if page.parent.name == "docs")

GENERATED = runpy.run_path(str(TREE / "scripts" / "docs.py"))["PAGES"]

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("name", GENERATED)
def test_a_page_that_follows_from_the_code_is_up_to_date(name: str) -> None:
    """If not, run scripts/docs.py."""
    assert (TREE / "docs" / name).read_text() == GENERATED[name]()


def test_every_public_name_is_documented() -> None:
    names = [
        name
        for name, value in vars(flask_litestack).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]

    assert [name for name in names if not re.search(rf"\b{name}\b", DOCS)] == []


def test_every_signal_is_documented() -> None:
    if find_spec("flask_litestack.signals") is None:
        pytest.skip("there are no signals yet")
    from flask_litestack import signals

    names = [name for name, value in vars(signals).items() if isinstance(value, NamedSignal)]
    assert [name for name in names if not re.search(rf"\b{name}\b", DOCS)] == []


@by_name
def test_every_setting_that_is_mentioned_exists(page: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.__dataclass_fields__}

    assert set(re.findall(r"LITESTACK_[A-Z_]+", TEXTS[page])) <= known


@by_name
def test_every_command_that_is_mentioned_exists(page: Path) -> None:
    mentioned = re.findall(r"flask (?:--app \S+ )?litestack ([a-z]+)", TEXTS[page])

    assert set(mentioned) <= set(COMMANDS)


@by_name
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


@by_name
def test_every_piece_of_python_can_be_parsed(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL):
        ast.parse(block)


@by_name
def test_every_script_that_is_mentioned_exists(page: Path) -> None:
    for script in re.findall(r"\b(scripts/[a-z_.-]+|\.ci/[a-z]+)", TEXTS[page]):
        assert (TREE / script.rstrip(".")).exists(), script


def test_every_page_is_listed_in_the_index() -> None:
    index = TEXTS[TREE / "docs" / "index.md"]

    for page in (TREE / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_the_app_of_the_readme_counts_its_visitors(tmp_path: Path) -> None:
    [block] = re.findall(r"```python\n(.*?)```", TEXTS[TREE / "README.md"], re.DOTALL)
    (tmp_path / "shop.py").write_text(block)

    command = [sys.executable, "-m", "flask", "--app", "shop", "litestack", "serve"]
    with running(command, tmp_path) as server:  # the first visit is the wait for its answer
        assert server.get() == "Visitor 2"
        assert server.get() == "Visitor 3"


def test_the_settings_of_gunicorn_in_the_docs_are_those_in_the_code(tmp_path: Path) -> None:
    program = (
        "from flask_litestack import gunicorn as g\n"
        "print(g.threads, g.graceful_timeout, g.keepalive)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    threads, grace, keepalive = done.stdout.split()
    page = TEXTS[TREE / "docs" / "deploy.md"]

    assert f"| `threads` | {threads} |" in page
    assert f"| `graceful_timeout` | {grace} s |" in page
    assert f"| `keepalive` | {keepalive} s |" in page
