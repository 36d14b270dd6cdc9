"""What a text says about the transaction it needs."""

import pytest

from flask_litestack.sqlite.statements import FOR_UPDATE, Kind, classify


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "  \n\tselect * FROM post",
        "-- INSERT\nSELECT 1",
        "/* DELETE\n */ SELECT 1",
        "/* a */ -- b\n /* c */ VALUES (1)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "WITH a AS MATERIALIZED (SELECT ') DELETE (') SELECT * FROM a",
        'WITH "insert" AS (SELECT 1) SELECT * FROM "insert"',
        "EXPLAIN QUERY PLAN DELETE FROM post",
        "PRAGMA journal_mode",
        "PRAGMA user_version",
        "PRAGMA foreign_keys = ON",
        "PRAGMA table_info(post)",
        "PRAGMA main.table_info('post')",
        "VACUUM INTO '/tmp/copy'",
        "ATTACH 'other' AS other",
        "",
        "-- nothing",
    ],
)
def test_reading_statements_need_no_transaction(sql: str) -> None:
    assert classify(sql).kind is Kind.READ


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("PRAGMA foreign_keys = OFF", "foreign_keys"),
        ("pragma main.cache_size(100)", "cache_size"),
        ("PRAGMA something_new = 1", "something_new"),
        ("ATTACH 'other' AS other", "attach"),
        ("PRAGMA foreign_keys", ""),
        ("PRAGMA main.table_info('post')", ""),
        ("PRAGMA foreign_key_check(post)", ""),
        ("PRAGMA wal_checkpoint(PASSIVE)", ""),
        ("PRAGMA defer_foreign_keys = ON", ""),
        ("SELECT 1", ""),
    ],
)
def test_what_changes_the_connection_is_named(sql: str, name: str) -> None:
    assert classify(sql).name == name


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO post VALUES (1)",
        "insert into post values (1) returning id",
        "REPLACE INTO post VALUES (1)",
        "UPDATE post SET id = 1",
        "DELETE FROM post",
        "CREATE TABLE a (b)",
        "DROP TABLE a",
        "ALTER TABLE a RENAME TO b",
        "REINDEX",
        "ANALYZE",
        "-- SELECT\nDELETE FROM post",
        "WITH a AS (SELECT 1) INSERT INTO post SELECT * FROM a",
        "WITH a(x) AS (VALUES (1)), b AS (SELECT 1) DELETE FROM post",
        "WITH a AS (SELECT 1) UPDATE post SET id = 2 RETURNING id",
        "PRAGMA user_version = 3",
        "PRAGMA main.application_id(7)",
        f"SELECT * FROM post {FOR_UPDATE}",
        f"WITH a AS (SELECT 1) SELECT * FROM a {FOR_UPDATE}",
        "SOMETHING NEW IN SQLITE",
    ],
)
def test_writing_and_unknown_statements_need_the_lock(sql: str) -> None:
    assert classify(sql).kind is Kind.WRITE


@pytest.mark.parametrize(
    "sql", ["VACUUM", "vacuum main", "PRAGMA journal_mode = WAL", "PRAGMA optimize"]
)
def test_statements_that_refuse_a_transaction_are_told_apart(sql: str) -> None:
    assert classify(sql).kind is Kind.ALONE


@pytest.mark.parametrize(
    ("sql", "kind", "name"),
    [
        ("BEGIN", Kind.BEGIN, ""),
        ("begin deferred transaction", Kind.BEGIN, ""),
        ("BEGIN IMMEDIATE", Kind.BEGIN_WRITE, ""),
        ("BEGIN EXCLUSIVE", Kind.BEGIN_WRITE, ""),
        ("COMMIT", Kind.END, ""),
        ("END TRANSACTION", Kind.END, ""),
        ("ROLLBACK", Kind.END, ""),
        ("SAVEPOINT sa_savepoint_1", Kind.SAVEPOINT, "sa_savepoint_1"),
        ('SAVEPOINT "Mine"', Kind.SAVEPOINT, "mine"),
        ("RELEASE SAVEPOINT sp", Kind.RELEASE, "sp"),
        ("ROLLBACK TO SAVEPOINT sp", Kind.ROLLBACK_TO, "sp"),
        ("ROLLBACK TRANSACTION TO sp", Kind.ROLLBACK_TO, "sp"),
    ],
)
def test_transaction_control_is_recognised_with_its_savepoint(
    sql: str, kind: Kind, name: str
) -> None:
    statement = classify(sql)
    assert (statement.kind, statement.name) == (kind, name)
