from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from flask_litestack.testing import JobTester
from sqlalchemy import select

from {{ cookiecutter.__package }} import litestack, tasks
from {{ cookiecutter.__package }}.models import User, now

from .conftest import Visitor, registered


def test_a_posts_author_is_told_about_a_comment(
    ann: Visitor, bob: Visitor, jobs: JobTester, capsys: pytest.CaptureFixture[str]
) -> None:
    bob.comment(ann.publish("Tea"), "With *milk*?")
    jobs.run()
    printed = capsys.readouterr().out
    assert "To: ann@example.com\n" in printed
    assert "Subject: Bob commented on “Tea”\n" in printed
    assert "With *milk*?" in printed
    assert "http://localhost/posts/tea#comment-1" in printed


def test_a_title_of_two_lines_is_one_in_a_mail(
    ann: Visitor, bob: Visitor, jobs: JobTester, capsys: pytest.CaptureFixture[str]
) -> None:
    bob.comment(ann.publish("Tea\nand\u2028cake"), "Yes.")
    [job] = jobs.run()
    assert job.state == "succeeded"
    assert "Subject: Bob commented on “Tea and cake”\n" in capsys.readouterr().out


def test_nobody_is_told_of_their_own_comment_or_of_a_deleted_one(
    ann: Visitor, bob: Visitor, jobs: JobTester, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ann.publish("Tea")
    ann.comment(url, "Mine")
    bob.comment(url, "Sorry")
    bob.submit("/comments/2/delete", page=url)
    assert len(jobs.run()) == 2
    assert capsys.readouterr().out == ""


def test_a_refused_comment_tells_nobody(ann: Visitor, bob: Visitor, jobs: JobTester) -> None:
    bob.comment(ann.publish("Tea"), " ")
    jobs.assert_none_enqueued(tasks.tell_author)


class Mailbox(socketserver.StreamRequestHandler):
    """As much of a mail server as it takes to receive one."""

    received: list[str] = []

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.received.append(text.decode())
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
            if word == b"QUIT":
                return


@contextmanager
def mail_server() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def test_mail_goes_to_the_server_that_is_set_and_waits_for_one_that_is_down(
    app: Flask, ann: Visitor, bob: Visitor, jobs: JobTester
) -> None:
    app.config.update(MAIL_URL="smtp://127.0.0.1:1", MAIL_FROM="blog@example.com")
    bob.comment(ann.publish("Tea"), "Milk?")
    with jobs.freeze() as clock:
        jobs.run(raise_errors=False)  # nobody listens on port 1
        jobs.assert_enqueued(tasks.tell_author)
        with mail_server() as port:
            app.config["MAIL_URL"] = f"smtp://127.0.0.1:{port}"
            clock.advance(timedelta(hours=1))
            jobs.run()
    assert "From: blog@example.com\r\nTo: ann@example.com\r\n" in Mailbox.received.pop()
    jobs.assert_none_enqueued()


def in_two_hours() -> str:
    return f"{now() + timedelta(hours=2):%Y-%m-%dT%H:%M}"


def test_a_scheduled_post_is_its_authors_alone_until_its_time(
    ann: Visitor, bob: Visitor, reader: Visitor, jobs: JobTester
) -> None:
    url = ann.submit("/write", title="Later", body="Wait.", published_at=in_two_hours()).location
    assert "Only you can see this until" in ann.see(url)
    assert f'href="{url}"' in ann.see("/write")
    for other in (bob, reader):
        assert other.get(url).status_code == 404
        assert "Later" not in other.see("/")
    jobs.run()
    assert reader.get(url).status_code == 404
    jobs.assert_enqueued(tasks.publish, 1)


def test_a_scheduled_post_is_published_when_its_time_has_come(
    app: Flask, ann: Visitor, reader: Visitor, jobs: JobTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = ann.submit("/write", title="Later", body="Wait.", published_at=in_two_hours()).location
    later = now() + timedelta(hours=2)
    monkeypatch.setattr(tasks, "now", lambda: later)
    with jobs.freeze(later):
        jobs.run()
    assert "Only you" not in reader.see(url)
    assert "Later" in reader.see("/")


def test_a_post_that_was_put_off_is_not_published_at_the_first_time(
    ann: Visitor, reader: Visitor, jobs: JobTester
) -> None:
    url = ann.submit("/write", title="Later", body="Wait.", published_at=in_two_hours()).location
    ann.submit(f"{url}/edit", title="Later", body="Wait.", published_at="2999-01-01T08:00")
    with jobs.freeze(now() + timedelta(hours=3)):
        assert [job.task for job in jobs.run()] == [tasks.publish.name]
    assert reader.get(url).status_code == 404
    assert ann.submit(f"{url}/edit", title="Now", body="!", published_at="").location == url
    assert "Now" in reader.see("/")


def test_accounts_that_were_never_used_are_removed_after_a_year(
    app: Flask, ann: Visitor, bob: Visitor, jobs: JobTester
) -> None:
    ann.publish("Tea")
    bob.comment("/posts/tea", "Milk?")
    for name in ("Cleo", "Dora"):
        registered(app, name)
    with app.app_context(), litestack.db.write() as session:
        for user in session.scalars(select(User)):
            user.created_at -= timedelta(days=400)
    registered(app, "Emil")
    Visitor(app.test_client()).log_in("Cleo")
    night = (now() + timedelta(days=1)).replace(hour=3, minute=29)
    with jobs.freeze(night) as clock:
        jobs.run(crons=True)
        clock.advance(timedelta(minutes=2))
        assert tasks.tidy_up.name in [job.task for job in jobs.run(crons=True)]
    with app.app_context():
        names = litestack.db.session.scalars(select(User.name).order_by(User.id)).all()
    assert names == ["Ann", "Bob", "Cleo", "Emil"]


def test_each_night_a_backup_is_made(
    app: Flask, ann: Visitor, jobs: JobTester, tmp_path: Path
) -> None:
    ann.publish("Tea")
    with jobs.freeze((now() + timedelta(days=1)).replace(hour=2, minute=59)) as clock:
        jobs.run(crons=True)
        clock.advance(timedelta(minutes=2))
        jobs.run(crons=True)
    (backup,) = [path for path in (tmp_path / "data" / "backups").iterdir() if path.is_dir()]
    names = {path.name for path in backup.iterdir()}
    assert names >= {"data.sqlite3", "secret_key", "manifest.json"}
