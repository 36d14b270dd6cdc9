"""Stands in for the base image ``python:3.X-slim`` where no registry of images is in reach.

It is Debian's own Python of the same minor version on the release of Debian that the official
image is made from, with pip, and little else. What differs: the official Python is compiled
anew, lies in /usr/local, and is a few MB smaller; so image sizes are printed without the base.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

#: The release of Debian that has a Python.
RELEASES = {"3.11": "bookworm", "3.13": "trixie"}

PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
LEFT_OUT = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"]

#: The official image has no bytecode of the standard library.
REMOVE_BYTECODE = 'find "$1"/usr/lib/python3* -name __pycache__ -prune -exec rm -r {} +'


class NoBaseImage(Exception):
    """The stand-in cannot be made on this machine, which says nothing of our image."""


def images_of(dockerfile: Path) -> set[str]:
    """Return the images that a Dockerfile begins from."""
    return set(re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE))


def provide(image: str, buildah: Sequence[str], run: Callable[..., str]) -> None:
    """Make the image unless it is there.

    :raises NoBaseImage: if Debian's packages are not in reach.
    """
    name = f"docker.io/library/{image}"
    if run([*buildah, "images", "--quiet", name], check=False):
        return
    version = re.fullmatch(r"python:(3\.\d+)-slim", image)
    if version is None or version[1] not in RELEASES:
        raise SystemExit(f"{image} has no stand-in here; see scripts/image_test/base.py.")
    print(f"Making a stand-in for {image} ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tar = f"{folder}/root.tar"
        options = ["--quiet", "--variant=minbase", f"--include={PACKAGES}"]
        options += [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
        options += [f"--customize-hook={REMOVE_BYTECODE}"]
        try:
            run(["mmdebstrap", *options, RELEASES[version[1]], tar])
        except SystemExit as error:
            raise NoBaseImage(f"{image} cannot be had here: {error}") from None
        container = run([*buildah, "from", "scratch"])
        run([*buildah, "add", "--quiet", container, tar, "/"])
        run([*buildah, "config", "--cmd", "python3", container])
        run([*buildah, "commit", "--quiet", "--rm", container, name])
