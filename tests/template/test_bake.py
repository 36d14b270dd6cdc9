from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .conftest import ROOT, Bake, git

EXAMPLE = ROOT / "examples" / "blog"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("options", [[], ["--directory", "template"]], ids=["root", "directory"])
def test_the_default_bake_is_the_example(bake: Bake, tmp_path: Path, options: list[str]) -> None:
    """Run scripts/bake after a change of the template."""
    done = bake(*options)
    assert done.returncode == 0, done.stderr
    listed = git("ls-files", "--cached", "--others", "--exclude-standard", "-z", str(EXAMPLE))
    example = {
        str((ROOT / name).relative_to(EXAMPLE)): (ROOT / name).read_bytes()
        for name in listed.split("\0")
        if name and (ROOT / name).exists()
    }
    baked = files(tmp_path / "blog")
    assert sorted(baked) == sorted(example)
    assert [name for name in baked if baked[name] != example[name]] == []


@pytest.mark.timeout(600)
def test_a_project_of_another_name_passes_its_own_tests(bake: Bake, tmp_path: Path) -> None:
    done = bake(
        project_name='Ann\'s "Notes" & <Tales>',
        project_slug="anns-notes",
        author='Ann "A." O\'Neil',
        fly_app_name="anns-notes-7",
        fly_region="fra",
    )
    assert done.returncode == 0, done.stderr
    project = tmp_path / "anns-notes"
    assert "blog" not in {path.name for path in project.iterdir()}
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"]["authors"] == [
        {"name": 'Ann "A." O\'Neil'}
    ]
    assert tomllib.loads((project / "fly.toml").read_text())["app"] == "anns-notes-7"
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr


def test_nothing_of_the_cookiecutter_is_left_in_a_project(bake: Bake, tmp_path: Path) -> None:
    bake(project_name="Other Name")
    for name, content in files(tmp_path / "other-name").items():
        assert b"cookiecutter" not in content, name


@pytest.mark.parametrize(
    "slug",
    [
        "Blog",
        "2nd",
        "my blog",
        "a--b",
        "-a",
        "a/b",
        "émile",
        'a"b',
        "click",
        "flask-wtf",
        "python-slugify",
        "tests",
        "build",
        "email",
        "class",
    ],
)
def test_a_bad_slug_is_refused_in_one_sentence(bake: Bake, tmp_path: Path, slug: str) -> None:
    done = bake(project_slug=slug)
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if "project_slug" in line]
    assert len(said) == 1
    assert said[0].startswith("ERROR: project_slug ")
    assert [name for name in files(tmp_path) if not name.startswith("home")] == []


def test_every_package_that_a_project_installs_has_a_name_that_is_refused() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["dev"]
    installed = with_all_they_need([Requirement(line) for line in listed])
    imported = {
        name
        for name, distributions in packages_distributions().items()
        if installed & {underscored(distribution) for distribution in distributions}
    }
    hook = ast.parse((ROOT / "template" / "hooks" / "pre_gen_project.py").read_text())
    [refused] = [
        ast.literal_eval(node.value)
        for node in hook.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INSTALLED"
    ]

    assert {"click", "flask_litestack", "wsproto"} <= installed | imported
    assert {name for name in installed | imported if name[0].isalpha()} - refused == set()


def with_all_they_need(requirements: list[Requirement]) -> set[str]:
    """The names of these distributions, and of those that they require, and so on."""
    todo, seen = list(requirements), set()
    while todo:
        requirement = todo.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        extras = requirement.extras | {""}
        for needed in map(Requirement, requires(requirement.name) or []):
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras):
                todo.append(needed)
    return {underscored(Requirement(line).name) for line in seen}


def underscored(distribution: str) -> str:
    return distribution.lower().replace("-", "_").replace(".", "_")


@pytest.mark.parametrize(
    ("answer", "value"), [("fly_app_name", "My App"), ("fly_region", "Frankfurt")]
)
def test_a_bad_name_for_fly_is_refused(bake: Bake, tmp_path: Path, answer: str, value: str) -> None:
    done = bake(**{answer: value})
    assert done.returncode != 0
    assert f"ERROR: {answer} {value!r}" in done.stdout + done.stderr


def test_how_a_project_installs_us_can_be_chosen(bake: Bake, tmp_path: Path) -> None:
    bake(_flask_litestack="flask-litestack[serve]==9.9")
    project = tomllib.loads((tmp_path / "blog" / "pyproject.toml").read_text())["project"]
    assert project["dependencies"][0] == "flask-litestack[serve]==9.9"
