"""The SQLite files: driver, tuning, transactions, schema versions, health. Knows no Flask."""
