"""Register, log in, log out."""

from __future__ import annotations

import re

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask import session as cookie
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, current_user, login_user, logout_user
from sqlalchemy import bindparam, func, select
from werkzeug.security import check_password_hash, generate_password_hash
from wtforms import EmailField, PasswordField, StringField
from wtforms.validators import DataRequired, Length, Regexp

from . import litestack
from .forms import TextForm
from .models import User, now

blueprint = Blueprint("accounts", __name__)

login_manager = LoginManager()
login_manager.login_view = "accounts.login"
login_manager.login_message = "Please log in first."

#: Checked for an unknown address, so that the answer takes as long as for a known one.
NOBODYS_HASH = f"scrypt:32768:8:1$nobody${'0' * 128}"

#: Built once, because it is run for each page of who is logged in.
USER_BY_ID = select(User).where(User.id == bindparam("id"))

#: A path on this site: "//elsewhere" and "/\elsewhere" lead away from it, and so does
#: "/<tab>/elsewhere", for browsers drop such characters.
OWN_PATH = re.compile(r"/(?!/)[^\\\s\x00-\x1f\x7f]*")


def stripped(text: str | None) -> str | None:
    return text.strip() if text else text


def lowered(text: str | None) -> str | None:
    return text.strip().lower() if text else text


class RegisterForm(TextForm):
    name = StringField(
        "Name",
        [DataRequired(), Length(max=50)],
        filters=[stripped],
        description="Shown beside what you write.",
        render_kw={"autocomplete": "nickname"},
    )
    email = EmailField(
        "Email",
        [DataRequired(), Length(max=254), Regexp(r"[^@\s]+@[^@\s]+$", 0, "That is no address.")],
        filters=[lowered],
        description="You log in with it. It is never shown.",
        render_kw={"autocomplete": "email"},
    )
    password = PasswordField(
        "Password",
        [DataRequired(), Length(min=10, max=200)],
        description="At least 10 characters.",
        render_kw={"autocomplete": "new-password"},
    )


class LoginForm(TextForm):
    email = EmailField(
        "Email", [DataRequired()], filters=[lowered], render_kw={"autocomplete": "email"}
    )
    password = PasswordField(
        "Password", [DataRequired()], render_kw={"autocomplete": "current-password"}
    )


@login_manager.user_loader
def load_user(user_id: str) -> User | None:
    return litestack.db.session.scalar(USER_BY_ID, {"id": int(user_id)})


@blueprint.route("/register", methods=["GET", "POST"])
def register() -> ResponseReturnValue:
    form = RegisterForm()
    if form.validate_on_submit():
        user = User(
            name=form.name.data,
            email=form.email.data,
            password_hash=generate_password_hash(form.password.data),
        )
        if save_new(user, form):
            return logged_in(user)
    return render_template("accounts/register.html", form=form)


def save_new(user: User, form: RegisterForm) -> bool:
    """Save a user unless the name or the address is taken; the form then says so."""
    with litestack.db.write() as session:  # nobody else can take them between look and leap
        # SQLite lowers both sides: it knows A to Z alone, Python would make more of the new one.
        same_name = select(User.id).where(func.lower(User.name) == func.lower(user.name))
        same_email = select(User.id).where(User.email == user.email)
        if session.scalar(same_name):
            form.name.errors.append("Somebody else has this name.")
        if session.scalar(same_email):
            form.email.errors.append("There is an account with this address. Log in instead?")
        if form.errors:
            return False
        session.add(user)
        return True


@blueprint.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    if current_user.is_authenticated:
        return redirect(url_for("posts.index"))
    form = LoginForm()
    if form.validate_on_submit():
        user = litestack.db.session.scalar(select(User).where(User.email == form.email.data))
        known_hash = user.password_hash if user else NOBODYS_HASH
        if check_password_hash(known_hash, form.password.data) and user:
            user.last_login_at = now()
            litestack.db.session.commit()
            return logged_in(user)
        form.password.errors.append("Address and password do not match.")
    return render_template("accounts/login.html", form=form)


@blueprint.post("/logout")
def logout() -> ResponseReturnValue:
    litestack.cable.disconnect(current_user.get_id())  # other windows go on as nobody
    logout_user()
    flash("You are logged out.")
    return redirect(url_for("posts.index"))


def logged_in(user: User) -> ResponseReturnValue:
    """Begin the user's session, and go on to the page that asked for it."""
    cookie.permanent = True
    login_user(user)
    flash(f"Welcome, {user.name}.")
    page = request.args.get("next", "")
    return redirect(page if OWN_PATH.fullmatch(page) else url_for("posts.index"))
