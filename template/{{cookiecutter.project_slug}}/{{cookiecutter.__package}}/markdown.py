"""Markdown in, safe HTML out."""

from __future__ import annotations

import html
import re
from typing import Any

import mistune
import nh3

#: What a comment may contain: no headings, pictures or tables.
COMMENT_TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "li", "ol", "p", "pre", "strong", "ul",
}  # fmt: skip
POST_TAGS = COMMENT_TAGS | {
    "h2", "h3", "h4", "h5", "h6", "hr", "img", "table", "tbody", "td", "th", "thead", "tr",
}  # fmt: skip

SUMMARY_LENGTH = 240


def render(text: str) -> str:
    """Return a post's text as HTML."""
    return _clean(text, POST_TAGS)


def render_comment(text: str) -> str:
    """Return a comment's text as HTML."""
    return _clean(text, COMMENT_TAGS)


def summary(body_html: str, length: int = SUMMARY_LENGTH) -> str:
    """Return the plain words of the first paragraph, cut at a word."""
    paragraph = re.search(r"<p>(.*?)</p>", body_html, re.DOTALL)
    words = html.unescape(nh3.clean(paragraph[1] if paragraph else "", tags=set())).split()
    text = " ".join(words)
    return text if len(text) <= length else text[: length + 1].rpartition(" ")[0] + " …"


class _Renderer(mistune.HTMLRenderer):
    """Headings begin at h2: the h1 of a page is its title."""

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        return super().heading(text, min(level + 1, 6), **attrs)


_to_html = mistune.create_markdown(
    renderer=_Renderer(escape=True), plugins=["strikethrough", "table", "url"]
)


def _clean(text: str, tags: set[str]) -> str:
    return nh3.clean(
        str(_to_html(text)),
        tags=tags,
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow ugc noopener",
    )
