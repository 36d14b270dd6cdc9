from __future__ import annotations

from pathlib import Path

from flask import Flask
from flask_litestack.testing import JobTester

from .conftest import Visitor


def test_a_folder_of_markdown_files_becomes_posts_once(
    app: Flask, ann: Visitor, jobs: JobTester, tmp_path: Path
) -> None:
    (tmp_path / "first-one.md").write_text("# The first\n\nIt is **bold**.\n")
    (tmp_path / "second.md").write_text("No title here.\n")
    (tmp_path / "notes.txt").write_text("Not a post.\n")
    command = ["import-posts", str(tmp_path), "--author", "ann@example.com"]
    for _ in range(2):
        done = app.test_cli_runner().invoke(args=command)
        assert done.output == "Files that the worker will import: 2\n"
    assert len(jobs.run()) == 4
    assert "It is <strong>bold</strong>." in ann.see("/posts/first-one")
    page = ann.see("/")
    assert page.count('class="teaser"') == 2
    assert "The first" in page
    assert "No title here." in page


def test_a_file_that_is_no_text_is_named_and_nothing_is_imported(
    app: Flask, ann: Visitor, jobs: JobTester, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("Fine.")
    (tmp_path / "b.md").write_bytes(b"\xff\xfe")
    command = ["import-posts", str(tmp_path), "--author", "ann@example.com"]
    done = app.test_cli_runner().invoke(args=command)
    assert done.exit_code == 1
    assert "b.md is not UTF-8" in done.output
    jobs.assert_none_enqueued()


def test_an_author_who_is_not_registered_is_refused(app: Flask, tmp_path: Path) -> None:
    command = ["import-posts", str(tmp_path), "--author", "nobody@example.com"]
    done = app.test_cli_runner().invoke(args=command)
    assert done.exit_code == 2
    assert "nobody is registered as nobody@example.com" in done.output
