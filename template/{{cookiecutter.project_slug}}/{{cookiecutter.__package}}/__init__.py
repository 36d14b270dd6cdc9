"""The blog: its app factory, and the objects its parts share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flask import Flask
from flask_litestack import Litestack
from flask_wtf import CSRFProtect

from .models import Model

litestack = Litestack(metadata=Model.metadata)
csrf = CSRFProtect()


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the app. Its settings: these defaults, then ``FLASK_*`` variables, then ``config``."""
    app = Flask(__name__)
    app.config.from_mapping(
        SITE_NAME={{ cookiecutter.project_name | tojson }},
        MAIL_URL=None,
        MAIL_FROM="blog@localhost",
        MAX_CONTENT_LENGTH=1024 * 1024,
        SESSION_COOKIE_SAMESITE="Lax",
        # A page under way at log-out must not bring the cookie back. A log-in lasts 31 days.
        SESSION_REFRESH_EACH_REQUEST=False,
        WTF_CSRF_TIME_LIMIT=None,  # a form may stay open for as long as its writer thinks
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})

    litestack.init_app(app)
    csrf.init_app(app)

    # The views need the objects above, so they are imported here.
    from . import accounts, errors, health, imports, migrate, posts, secret_key, seed, web

    if not app.secret_key:
        with app.app_context():
            folder = litestack.db.path.parent
        app.secret_key = os.environ.get("SECRET_KEY") or secret_key.load(folder)

    web.init_app(app)
    errors.init_app(app)
    accounts.login_manager.init_app(app)
    app.register_blueprint(accounts.blueprint)
    app.register_blueprint(posts.blueprint)
    app.register_blueprint(health.blueprint)
    app.cli.add_command(imports.command)
    app.cli.add_command(migrate.commands)
    app.cli.add_command(seed.command)
    return app
