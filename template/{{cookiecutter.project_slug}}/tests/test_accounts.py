from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import select

from {{ cookiecutter.__package }} import litestack
from {{ cookiecutter.__package }}.models import User

from .conftest import PASSWORD, Visitor, registered


def test_who_registers_is_logged_in(reader: Visitor) -> None:
    assert reader.register("Ann").location == "/"
    assert "Welcome, Ann." in reader.see("/")
    assert "Log out" in reader.see("/")


def test_log_out_and_in_again(ann: Visitor) -> None:
    ann.submit("/logout", page="/")
    assert "Log in" in ann.see("/")
    ann.log_in("ANN")
    assert "Log out" in ann.see("/")


def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(
    ann: Visitor, reader: Visitor
) -> None:
    for name in ("Ann", "Nobody"):
        page = reader.log_in(name, "not the password").text
        assert "Address and password do not match." in page


def test_a_name_or_an_address_can_be_taken_once(ann: Visitor, reader: Visitor) -> None:
    page = reader.register("ann").text
    assert "Somebody else has this name." in page
    assert "There is an account with this address." in page


def test_a_taken_name_is_refused_whatever_its_letters(app: Flask, reader: Visitor) -> None:
    registered(app, "Ömer")
    page = reader.submit("/register", name="Ömer", email="o@example.com", password=PASSWORD).text
    assert "Somebody else has this name." in page


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("name", " ", "This field is required."),
        ("email", "nowhere", "That is no address."),
        ("password", "too short", "between 10 and 200"),
    ],
)
def test_a_bad_field_is_named(reader: Visitor, field: str, value: str, complaint: str) -> None:
    good = {"name": "Ann", "email": "ann@example.com", "password": "long enough"}
    page = reader.submit("/register", **{**good, field: value}).text
    assert complaint in page
    assert f'aria-describedby="{field}-help" aria-invalid="true"' in page


def test_passwords_are_kept_as_scrypt_hashes(app: Flask, ann: Visitor) -> None:
    with app.app_context():
        assert litestack.db.session.scalar(select(User.password_hash)).startswith("scrypt:")


def test_log_in_leads_on_to_the_page_that_asked_for_it(ann: Visitor, reader: Visitor) -> None:
    asked = reader.get("/write").location
    assert reader.log_in("Ann", url=asked).location == "/write"


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/%5Cevil.example",
        "/%09/evil.example",
        "/%0a/evil.example",
        "/%0d/evil.example",
        "%09//evil.example",
        "/%20/evil.example",
        "/%00/evil.example",
    ],
)
def test_log_in_never_leads_to_another_site(ann: Visitor, reader: Visitor, elsewhere: str) -> None:
    assert reader.log_in("Ann", url=f"/login?next={elsewhere}").location == "/"


def test_who_was_removed_is_not_whoever_registers_next(app: Flask, ann: Visitor) -> None:
    with app.app_context(), litestack.db.write() as session:
        session.delete(session.get(User, 1))
    registered(app, "Bob")
    assert "Log out" not in ann.see("/")


def test_nobody_logs_in_without_a_password(app: Flask, reader: Visitor) -> None:
    with app.app_context(), litestack.db.write() as session:
        session.add(User(name="Ghost", email="ghost@example.com", password_hash=User.NO_PASSWORD))
    assert reader.log_in("Ghost", User.NO_PASSWORD).status_code == 200
    assert "Log out" not in reader.see("/")


def test_a_page_that_was_under_way_at_log_out_does_not_log_in_again(ann: Visitor) -> None:
    ann.see("/")  # welcomes her
    under_way = ann.get("/")
    ann.submit("/logout", page="/")
    assert "Set-Cookie" not in under_way.headers
