"""What the forms have in common."""

from __future__ import annotations

from typing import Any

from flask import request
from flask_wtf import FlaskForm


class TextForm(FlaskForm):
    """A form of texts: a file, or JSON, in place of a text is as if nothing had been sent."""

    class Meta:
        csrf = False  # CSRFProtect has checked the request's token already

        def wrap_formdata(self, form: FlaskForm, formdata: object) -> Any:
            return request.form if form.is_submitted() else None
