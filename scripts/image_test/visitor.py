"""Uses the blog as a person with a browser does: forms, cookies, pages."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar

PASSWORD = "correct horse battery staple"


class Visitor:
    """One person, who stays logged in by a cookie."""

    def __init__(self, port: int, name: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.name = name
        self.email = f"{name.lower()}@example.org"
        self.cookies = CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies)
        )

    def see(self, path: str) -> str:
        """Return a page; an error status raises."""
        with self._opener.open(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def submit(self, page: str, action: str | None = None, **fields: str) -> tuple[str, str]:
        """Fill in the form of a page; return the address and the text that it leads to."""
        fields["csrf_token"] = token(self.see(page))
        data = urllib.parse.urlencode(fields).encode()
        with self._opener.open(self.url + (action or page), data, timeout=30) as answer:
            return urllib.parse.urlsplit(answer.url).path, answer.read().decode()

    def register(self) -> None:
        self.submit("/register", name=self.name, email=self.email, password=PASSWORD)

    def log_in(self) -> None:
        self.submit("/login", email=self.email, password=PASSWORD)

    def publish(self, title: str, body: str) -> str:
        """Return the path of the new post."""
        path, _ = self.submit("/write", title=title, body=body)
        assert path.startswith("/posts/"), path
        return path

    def comment(self, post: str, body: str) -> None:
        _, page = self.submit(post, f"{post}/comments", body=body)
        assert body in page, f"the comment {body!r} is not on the page"


def token(page: str) -> str:
    found = re.search(r'<input[^>]*name="csrf_token"[^>]*value="([^"]+)"', page)
    assert found, "the page has no form"
    return found[1]
