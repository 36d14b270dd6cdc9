"""SQLAlchemy's own tests of its SQLite dialect and of transactions, on tuned engines.

Its source archive, of the version that is installed, is downloaded once and kept in pytest's
cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest

#: What passes on untuned engines and fails on tuned ones, on one release of SQLAlchemy or another,
#: and why it must.
FOREIGN_KEY_MISMATCH = (
    "its tables have a foreign key to columns that are not unique together, which SQLite refuses "
    "once foreign keys are enforced, and we enforce them"
)
DIFFERENCES = {
    "test.dialect.test_suite.UnicodeSchemaTest::test_col_targeting": FOREIGN_KEY_MISMATCH,
    "test.dialect.test_suite.UnicodeSchemaTest::test_insert": FOREIGN_KEY_MISMATCH,
    "test.dialect.test_suite.UnicodeSchemaTest::test_reflect": FOREIGN_KEY_MISMATCH,
    "test.dialect.test_suite.UnicodeSchemaTest::test_repr": FOREIGN_KEY_MISMATCH,
}

FILES = (
    "test/dialect/test_suite.py",
    "test/engine/test_transaction.py",
    "test/orm/test_transaction.py",
)

ROOT = Path(__file__).parents[2]


def test_what_passes_untuned_passes_tuned_but_for_the_listed_differences(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    archive = _archive(pytestconfig)
    runs = [_start(archive, tmp_path / kind, kind) for kind in ("untuned", "tuned")]
    try:
        for run in runs:
            run.wait(timeout=280)
    finally:
        for run in runs:
            run.kill()
            run.wait()
    untuned = _outcomes(tmp_path / "untuned")
    tuned = _outcomes(tmp_path / "tuned")

    worse = {name for name, passed in untuned.items() if passed and not tuned.get(name, False)}
    assert worse - set(DIFFERENCES) == set()
    # The tests of savepoints run on tuned engines only; they have nothing to be compared with.
    savepoints = {name: passed for name, passed in tuned.items() if name not in untuned}
    assert len(savepoints) > 50
    assert all(savepoints.values()), [name for name, passed in savepoints.items() if not passed]
    assert sum(tuned.values()) > 1400


def _archive(pytestconfig: pytest.Config) -> Path:
    """Return SQLAlchemy's source archive, from the cache or the package index."""
    release = version("sqlalchemy")
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("sqlalchemy")
    name = f"[sS][qQ][lL][aA]lchemy-{release}.tar.gz"  # its spelling has changed
    if not list(folder.glob(name)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        wanted = ["--no-deps", "--no-binary", "sqlalchemy", f"sqlalchemy=={release}"]
        done = subprocess.run(
            [*pip, *wanted, "--dest", folder], capture_output=True, text=True, timeout=200
        )
        if done.returncode:
            reason = f"NOT RUN: SQLAlchemy's own tests (no source archive: {done.stderr.strip()})"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return next(folder.glob(name))


def _start(archive: Path, folder: Path, kind: str) -> subprocess.Popen[bytes]:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = next(folder.iterdir())
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environ |= {"LITESTACK_SUITE": kind, "PYTHONPATH": str(ROOT)}
    # -s: the installed SQLAlchemy is tested, not the one of the archive.
    pytest_command = [sys.executable, "-s", "-m", "pytest", "-p", "tests.sqlalchemy_suite.plugin"]
    options = ["-q", "--maxfail=10000", "-p", "no:cacheprovider", "-p", "no:randomly"]
    report = ["--db", "sqlite_file", f"--junit-xml={folder / 'report.xml'}"]
    with open(folder / "output.txt", "wb") as output:
        return subprocess.Popen(
            [*pytest_command, *options, *report, *FILES],
            cwd=source,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _outcomes(folder: Path) -> dict[str, bool]:
    """Return which tests that were not skipped passed, from set-up to tear-down."""
    report = folder / "report.xml"
    assert report.exists(), (folder / "output.txt").read_text()[-5000:]
    outcomes: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        group = re.sub(r"_sqlite\+pysqlite_[\d_]+$", "", case.attrib["classname"])
        name = f"{group}::{case.attrib['name']}"
        failed = case.find("failure") is not None or case.find("error") is not None
        outcomes[name] = outcomes.get(name, True) and not failed
    return outcomes
