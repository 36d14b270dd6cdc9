"""How gunicorn serves the blog: as flask-litestack recommends, and never on an old database."""

from flask_litestack import gunicorn
from flask_litestack.gunicorn import *  # noqa: F403

wsgi_app = "blog:create_app()"


def on_starting(server: object) -> None:
    """Migrate before the first request and the first job."""
    from blog import create_app, migrate

    migrate.run_pending(create_app())
    gunicorn.on_starting(server)


on_reload = on_starting
