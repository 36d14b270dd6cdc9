"""Refuse names that would make a project that cannot run, before anything is written."""

import keyword
import re
import sys

SLUG = {{ cookiecutter.project_slug | tojson }}
PACKAGE = {{ cookiecutter.__package | tojson }}
FLY_APP = {{ cookiecutter.fly_app_name | tojson }}
FLY_REGION = {{ cookiecutter.fly_region | tojson }}

#: What the project and its tests install, by the names of imports and of distributions: a package
#: of that name would hide it.
INSTALLED = {
    "alembic",
    "blinker",
    "cachelib",
    "click",
    "cronsim",
    "flask",
    "flask_caching",
    "flask_litestack",
    "flask_login",
    "flask_sock",
    "flask_wtf",
    "greenlet",
    "gunicorn",
    "h11",
    "iniconfig",
    "itsdangerous",
    "jinja2",
    "mako",
    "markupsafe",
    "mistune",
    "nh3",
    "packaging",
    "pluggy",
    "py",
    "pygments",
    "pysqlite3",
    "pytest",
    "python_slugify",
    "simple_websocket",
    "slugify",
    "sqlalchemy",
    "text_unidecode",
    "typing_extensions",
    "tzdata",
    "werkzeug",
    "wsproto",
    "wtforms",
}

#: Folders that the project itself has, or that its .gitignore leaves out.
OWN = {"build", "dist", "instance", "tests", "wheels"}

TAKEN = INSTALLED | OWN | sys.stdlib_module_names


def problem() -> str | None:
    """Return what is wrong with the answers, in one sentence."""
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", SLUG):
        return (
            f"project_slug {SLUG!r} must be lower-case letters, digits, single - or _, "
            "beginning with a letter, for example 'my-blog'."
        )
    if PACKAGE in TAKEN or keyword.iskeyword(PACKAGE):
        return (
            f"project_slug {SLUG!r} would hide Python's, a library's or the project's own "
            f"{PACKAGE!r}; add a word."
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", FLY_APP):
        return (
            f"fly_app_name {FLY_APP!r} must be lower-case letters, digits and single -, "
            "beginning with a letter."
        )
    if not re.fullmatch(r"[a-z]{3}", FLY_REGION):
        return f"fly_region {FLY_REGION!r} must be a code of three letters, for example 'iad'."
    return None


if found := problem():
    sys.exit(f"ERROR: {found}")
