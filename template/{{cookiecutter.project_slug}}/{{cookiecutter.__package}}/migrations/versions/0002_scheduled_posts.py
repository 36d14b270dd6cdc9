"""scheduled posts"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # The default is for the release before this one, which may run on after a rollback.
    op.add_column(
        "post", sa.Column("is_public", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column("user", sa.Column("last_login_at", sa.DateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("user", "last_login_at")
    op.drop_column("post", "is_public")
