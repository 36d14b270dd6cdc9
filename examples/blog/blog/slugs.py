"""What a title is called in a URL."""

from __future__ import annotations


def slug_of(text: str) -> str:
    """Spell a text in lower-case ASCII letters, digits and dashes: 80 of them at most, or none."""
    from slugify import slugify  # not before somebody writes: its tables are large

    slug: str = slugify(text, max_length=80)
    return slug
