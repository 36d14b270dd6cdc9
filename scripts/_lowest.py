"""Prints pip constraints for the lowest versions that pyproject.toml allows."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
requirements = list(project["dependencies"])
for extra in project["optional-dependencies"].values():
    requirements += extra
for requirement in requirements:
    print(requirement.replace(">=", "==", 1))
