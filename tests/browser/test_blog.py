from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import Visit

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1100, "height": 900}
POST = "/posts/one-box-is-plenty"
PAGES = ["/", POST, "/login", "/register", "/write", "/nowhere"]


def log_in(page: Page) -> None:
    page.goto("/login")
    page.get_by_label("Email").fill("demo@example.com")
    page.get_by_label("Password").fill("litestack-demo")
    page.get_by_role("main").get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Welcome, Demo.")).to_be_visible()


@pytest.mark.parametrize("javascript", [True, False])
def test_a_person_registers_writes_comments_edits_and_deletes(
    visit: Visit, javascript: bool
) -> None:
    page = visit("/", java_script_enabled=javascript)
    name = f"Robin {javascript}"
    page.get_by_role("link", name="Register").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Email").fill(f"robin-{javascript}@example.com")
    page.get_by_label("Password").fill("a long enough password")
    page.get_by_role("button", name="Register").click()
    expect(page.get_by_text(f"Welcome, {name}.")).to_be_visible()

    page.get_by_role("link", name="Write").click()
    page.get_by_label("Title").fill("A fine day")
    page.get_by_label("Text").fill("The sun **shone**.\n\n- on me\n- on the cat\n")
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_role("heading", name="A fine day")).to_be_visible()
    expect(page.locator(".prose strong")).to_have_text("shone")

    page.get_by_label("Your comment").fill("It did, I was there.")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator("article.comment")).to_contain_text("It did, I was there.")

    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Title").fill("A rainy day")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="A rainy day")).to_be_visible()

    page.get_by_role("link", name="Edit").click()
    page.get_by_text("Delete this post").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("status")).to_have_text("“A rainy day” is deleted.")

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("link", name="Log in")).to_be_visible()


def test_a_reader_pages_through_all_posts(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("article.teaser")).to_have_count(10)
    page.get_by_role("link", name="Older posts").click()
    expect(page.get_by_role("link", name="Hello", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Older posts")).to_have_count(0)


def test_a_wrong_password_is_said_beside_the_field(visit: Visit) -> None:
    page = visit("/login")
    page.get_by_label("Email").fill("demo@example.com")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("main").get_by_role("button", name="Log in").click()
    expect(page.get_by_label("Password")).to_have_accessible_description(
        "Address and password do not match."
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_pages_fit_their_window_and_break_no_rule_of_their_own(
    visit: Visit, tmp_path: Path, scheme: str, size: dict[str, int]
) -> None:
    """Leaves a picture of each page in $SCREENSHOTS, where that is set, to be looked at."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    page = visit("/", color_scheme=scheme, viewport=size)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    log_in(page)
    for path in PAGES:
        if path in ("/login", "/register"):
            page.context.clear_cookies()
        elif path == "/write":
            log_in(page)
        problems.clear()
        page.goto(path)
        if path == "/nowhere":  # Chromium reports the 404 that was asked for
            problems.clear()
        assert problems == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        picture = f"{path.strip('/').replace('/', '-') or 'front'}-{scheme}-{size['width']}.png"
        page.screenshot(path=pictures / picture, full_page=True)
