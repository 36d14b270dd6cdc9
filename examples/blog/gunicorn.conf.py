"""How gunicorn serves the blog: as flask-litestack recommends, and never on an old database."""

from flask_litestack.gunicorn import *  # noqa: F403
from flask_litestack.jobs.gunicorn_role import add_worker

wsgi_app = "blog:create_app()"

#: Web workers, and one more that runs the jobs.
worker_class = "flask_litestack.jobs.gunicorn_role.RoleWorker"


def on_starting(server: object) -> None:
    """Migrate before the first request and the first job."""
    from blog import create_app, migrate

    migrate.run_pending(create_app())
    add_worker(server)


on_reload = on_starting
