"""Mail: sent by the server that MAIL_URL names; printed where there is none."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate
from urllib.parse import unquote, urlsplit

import click
from flask import current_app

TIMEOUT = 30.0  # seconds for each answer of the server

#: Servers that are asked without encryption: the way to them is inside this machine.
LOCAL = {"localhost", "127.0.0.1", "::1"}


def send(to: str, subject: str, text: str) -> None:
    """Send a mail, or print it.

    ``MAIL_URL`` is ``smtps://user:password@host`` (port 465), or ``smtp://…`` (port 587), where
    STARTTLS is demanded. Special characters in the password are written as in URLs: ``%40``.

    :raises OSError: if the server cannot be reached, or refuses: SMTPException is one.
    """
    subject = " ".join(subject.split())  # a header is one line, and somebody's title may be two
    message = EmailMessage()
    message["From"] = current_app.config["MAIL_FROM"]
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = formatdate(localtime=False)
    message.set_content(text)
    url = current_app.config["MAIL_URL"]
    if url is None:
        click.echo(f"To: {to}\nSubject: {subject}\n\n{text}")
        return
    with _connected(url) as server:
        server.send_message(message)


def _connected(url: str) -> smtplib.SMTP:
    parts = urlsplit(url)
    host, tls = parts.hostname or "localhost", ssl.create_default_context()
    server: smtplib.SMTP
    if parts.scheme == "smtps":
        server = smtplib.SMTP_SSL(host, parts.port or 465, timeout=TIMEOUT, context=tls)
    else:
        server = smtplib.SMTP(host, parts.port or 587, timeout=TIMEOUT)
    try:
        if parts.scheme != "smtps" and host not in LOCAL:
            server.starttls(context=tls)
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
    except BaseException:
        server.close()
        raise
    return server
