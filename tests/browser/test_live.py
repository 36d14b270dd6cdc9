"""Several windows of the blog's pages, which know of each other's comments and readers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from .conftest import Visit
from .test_blog import log_in

POST = "/posts/twelve-tomatoes"


def watched(page: Page) -> list[str]:
    """Collect what the browser complains about."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    return problems


def test_a_comment_appears_in_every_window_and_so_does_its_removal(
    visit: Visit, tmp_path: Path
) -> None:
    writer, reader = visit("/"), visit(POST)
    problems = watched(reader)
    log_in(writer)
    writer.goto(POST)
    for page in (writer, reader):
        expect(page.get_by_text("2 reading now")).to_be_visible()
    writer.get_by_label("Your comment").fill("The *thirteenth* was eaten.")
    writer.get_by_role("button", name="Comment").click()
    for page in (writer, reader):
        newest = page.locator("article.comment").first
        expect(newest).to_contain_text("The thirteenth was eaten.")
        expect(newest.locator("em")).to_have_text("thirteenth")
        expect(page.get_by_text("The thirteenth was eaten.")).to_have_count(1)
    expect(reader.get_by_role("button", name="Delete")).to_have_count(0)
    reader.screenshot(path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / "live.png")
    writer.locator("article.comment").first.get_by_role("button", name="Delete").click()
    for page in (writer, reader):
        expect(page.get_by_text("The thirteenth was eaten.")).to_have_count(0)
    assert problems == []


def test_the_first_comment_takes_the_place_of_the_word_that_there_is_none(visit: Visit) -> None:
    writer = visit("/")
    log_in(writer)
    writer.goto("/write")
    writer.get_by_label("Title").fill("Quiet")
    writer.get_by_label("Text").fill("Is anybody here?")
    writer.get_by_role("button", name="Publish").click()
    reader = visit(re.sub(r"^https?://[^/]+", "", writer.url))
    expect(reader.get_by_text("2 reading now")).to_be_visible()
    expect(reader.get_by_text("No comments yet.")).to_be_visible()
    writer.get_by_label("Your comment").fill("I am.")
    writer.get_by_role("button", name="Comment").click()
    expect(reader.locator("article.comment")).to_contain_text("I am.")
    expect(reader.get_by_text("No comments yet.")).to_be_hidden()


def test_who_logs_out_is_nobody_in_their_other_windows_too(visit: Visit) -> None:
    page = visit("/")
    log_in(page)
    page.goto("/write")
    page.get_by_label("Title").fill("A secret")
    page.get_by_label("Text").fill("For now.")
    page.get_by_label("Publish at").fill("2999-01-01T08:00")
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_text("1 reading now")).to_be_visible()
    page.evaluate(
        "document.addEventListener('cable:rejected', () => document.title = 'no longer told')"
    )
    other = page.context.new_page()
    other.goto("/")
    other.get_by_role("button", name="Log out").click()
    expect(page).to_have_title("no longer told")


def test_without_javascript_a_reload_shows_what_came(visit: Visit) -> None:
    writer, reader = visit("/"), visit(POST, java_script_enabled=False)
    log_in(writer)
    writer.goto(POST)
    writer.get_by_label("Your comment").fill("By post.")
    writer.get_by_role("button", name="Comment").click()
    expect(writer.get_by_text("By post.")).to_be_visible()
    expect(reader.get_by_text("reading now")).to_be_hidden()
    reader.reload()
    expect(reader.get_by_text("By post.")).to_be_visible()
