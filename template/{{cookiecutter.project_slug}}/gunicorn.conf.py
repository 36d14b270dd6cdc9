"""How gunicorn serves the blog: as flask-litestack recommends."""

from flask_litestack.gunicorn import *  # noqa: F403

wsgi_app = "{{ cookiecutter.__package }}:create_app()"
