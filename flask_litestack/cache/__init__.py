"""The cache: a backend of Flask-Caching over one SQLite file. See docs/cache.md."""

from .backend import SQLiteCache as SQLiteCache
