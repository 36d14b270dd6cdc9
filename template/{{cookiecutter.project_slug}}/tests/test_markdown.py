from __future__ import annotations

import re

import pytest

from {{ cookiecutter.__package }} import markdown


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "![x](data:text/html,<script>)",
        '<a href="https://x" onclick="alert(1)">x</a>',
        "[x](https://x 'onmouseover=alert(1)')",
        "<style>body{display:none}</style>",
        "`<script>`",
    ],
)
def test_nothing_in_a_text_can_run(text: str) -> None:
    for rendered in (markdown.render(text), markdown.render_comment(text)):
        tags = " ".join(re.findall(r"<[^>]*>", rendered)).replace('title="onmouseover', "")
        assert not re.search(r"<script|<style| on|javascript:|data:", tags)


def test_headings_begin_below_the_title() -> None:
    assert markdown.render("# One") == "<h2>One</h2>\n"


def test_a_post_has_pictures_and_tables_and_a_comment_has_not() -> None:
    text = "![map](https://example.com/map.png)\n\n|a|\n|-|\n|1|\n"
    assert '<img src="https://example.com/map.png" alt="map">' in markdown.render(text)
    assert "<table>" in markdown.render(text)
    assert "<img" not in markdown.render_comment(text)
    assert "<table>" not in markdown.render_comment(text)


def test_links_vouch_for_nothing() -> None:
    assert 'rel="nofollow ugc noopener"' in markdown.render("https://example.com")


def test_a_summary_is_the_plain_first_paragraph_cut_at_a_word() -> None:
    body_html = markdown.render("# Title\n\nSalt & *pepper* [here](https://x.example)\n\nMore")
    assert markdown.summary(body_html) == "Salt & pepper here"
    assert markdown.summary("<p>one two three</p>", length=9) == "one two …"
    assert markdown.summary("<p>one two three</p>", length=7) == "one two …"
    assert markdown.summary("<ul><li>a</li></ul>") == ""
