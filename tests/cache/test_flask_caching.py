"""Flask-Caching's own tests, from its source distribution, run with our backend.

They are downloaded by pip, once, into pytest's cache folder. Without a package index they are
NOT RUN, which in CI is a failure.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = importlib.metadata.version("flask-caching")

#: Their tests of cached, memoize, fragments and signals. Their other modules test the backends
#: and the configuration of Flask-Caching itself.
MODULES = ("cache", "memoize", "view", "templates", "hash_method", "signals", "subclassing")

#: A class of theirs with our fixtures; see flask_caching_plugin.
GENERIC = """
import pytest
from test_backend_cache import GenericCacheTests


class TestSQLiteCache(GenericCacheTests):
    @pytest.fixture
    def make_cache(self, make_cache):
        return make_cache
"""


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest) -> Path:
    """The folder of their tests."""
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("flask-caching-sdist")
    tests = folder / f"flask_caching-{VERSION}" / "tests"
    if not tests.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps"]
        done = subprocess.run(
            [*command, "--dest", str(folder), f"flask-caching=={VERSION}"],
            capture_output=True,
            text=True,
            timeout=240,
        )
        if done.returncode:
            message = f"NOT RUN: pip cannot download Flask-Caching's tests: {done.stderr[-500:]}"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        (archive,) = folder.glob(f"flask_caching-{VERSION}.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (tests / "conftest.py").unlink()  # it needs servers, and has the fixtures that we replace
        (tests / "test_ours.py").write_text(GENERIC)
    return tests


def run(suite: Path, modules: tuple[str, ...], cache: str) -> int:
    """Run some of their modules; return how many tests passed."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.cache.flask_caching_plugin"),
            *("-p", "no:cacheprovider", "-W", "error", "-c", "/dev/null", "--rootdir", str(suite)),
            *("--deselect", "test_cache.py::test_cache_unlink"),  # of Redis
            *(f"test_{module}.py" for module in modules),
        ],
        cwd=suite,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LITESTACK_SUITE_CACHE": cache},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    return int(passed[1])


def test_their_generic_backend_tests_pass(suite: Path) -> None:
    assert run(suite, ("ours",), "flask_caching") >= 12


def test_their_tests_of_cached_and_memoize_pass(suite: Path) -> None:
    assert run(suite, MODULES, "flask_caching") >= 139


def test_their_tests_pass_with_our_cache_object(suite: Path) -> None:
    assert run(suite, MODULES, "flask_litestack") >= 139
