"""The Dockerfile, as far as it can be tried without a container engine.

Its own commands are run in a folder of their own. Only what comes from the package index is taken from where the tests
themselves have it: the part of the lock that would be installed is compared with what the project needs.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import composed
from tests.support.composed import DOCKERFILE, Image
from tests.support.forking import ROOT

PROJECT = "webhook-dispatcher"
LOCK = (ROOT / "requirements.lock").read_text("utf-8")


def steps(stage: int) -> list[tuple[str, str]]:
    """The instructions of a stage and what they say."""
    text = DOCKERFILE.read_text("utf-8").replace("\\\n", "")
    said = text.split("\nFROM ")[stage + 1]
    return re.findall(r"^([A-Z]+) +(.*)$", said, re.MULTILINE)


def part_of_lock(root: str) -> str:
    """What `scripts/lib/part_of_lock.py` prints."""
    command = [sys.executable, "-I", str(ROOT / "scripts/lib/part_of_lock.py"), root]
    return subprocess.run(command, input=LOCK, capture_output=True, text=True, check=True).stdout


def pinned(lock: str) -> dict[str, str]:
    """Names and versions of those that are for this machine's kind."""
    lines = [line.removesuffix("\\").strip() for line in lock.splitlines() if re.match(r"[a-z0-9]", line)]
    found = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in found
        if one.marker is None or one.marker.evaluate()
    }


def requirements_of(name: str) -> list[str]:
    """What a package says that it needs; one that is not for this kind of machine says nothing."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def needed(wanted: list[Requirement], **machine: str) -> set[str]:
    """What is needed for these, by the packages' own word: an account of it that knows nothing of the lock.

    It is for this kind of machine, or another.
    """
    seen: set[tuple[str, str]] = set()
    left = [(one, extra) for one in wanted for extra in ("", *one.extras)]
    while left:
        one, extra = left.pop()
        if (place := (canonicalize_name(one.name), extra)) in seen:
            continue
        seen.add(place)
        for text in requirements_of(one.name):
            other = Requirement(text)
            if other.marker is None or other.marker.evaluate({"extra": extra, **machine}):
                left += [(other, more) for more in ("", *other.extras)]
    return {name for name, _ in seen}


def test_what_is_installed_is_what_the_project_needs_to_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    part = pinned(part_of_lock(PROJECT))
    # A package that tests need here, and we on Windows only, is in the lock for both.
    assert needed(wanted) <= part.keys() <= needed(wanted) | needed(wanted, platform_system="Windows")
    assert part.items() <= pinned(LOCK).items()
    assert not {"pytest", "mypy", "hatchling"} & part.keys()
    assert pinned(part_of_lock("hatchling")).keys() == needed([Requirement("hatchling")])


def test_each_package_keeps_its_hashes() -> None:
    part = part_of_lock(PROJECT)
    packages = re.split(r"^(?=[a-z0-9])", part, flags=re.MULTILINE)[1:]
    assert len(packages) > 40
    for package in packages:
        assert "--hash=sha256:" in package
        assert package in LOCK


def test_for_a_package_that_is_not_there_there_is_no_part() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        part_of_lock("not-in-the-lock")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    taken = {name for kind, said in steps(0) if kind == "COPY" for name in said.split()[:-1]}
    assert taken == kept
    assert all((ROOT / name).exists() for name in taken)


def test_it_runs_as_nobody_in_particular_and_hears_signals() -> None:
    image = Image.read()
    user, _, group = image.user.partition(":")
    assert int(user) > 10_000
    assert int(group) > 10_000
    assert (image.entrypoint, image.command) == (["dispatcher"], ["serve"])
    services = composed.read({"POSTGRES_PASSWORD": "x", "RECEIVER_SECRET": "y"})
    assert image.healthcheck == services["api"].healthcheck


def copied(said: str, source: Path) -> None:
    """Follow one COPY."""
    *names, target = said.split()
    for name in names:
        into = source / (Path(name).name if target == "./" else target)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, into, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, into)


def built(source: Path, opt: Path) -> None:
    """Follow the stage that builds, with a folder in place of /opt."""
    for kind, said in steps(0):
        if kind == "COPY":
            copied(said, source)
        elif kind == "RUN" and "--require-hashes" in said:
            # In place of the index: what is installed for the tests, which is the same lock's; pip, too.
            (opt / "build/bin/pip").symlink_to(Path(sys.executable).with_name("pip"))
            [packages] = (opt / "dispatcher").glob("lib/python*/site-packages")
            (packages / "tests.pth").write_text("\n".join(site.getsitepackages()))
        elif kind == "RUN":
            command = re.sub(r"\bpython -m venv (?:--without-pip )?", "python -m venv --without-pip ", said)
            # There `python` is the image's own; here it may have another name.
            command = re.sub(r"\bpython (?=-m |\w+\.py)", f"{sys.executable} ", command)
            run("/bin/sh", "-ec", command.replace("/opt/", f"{opt}/"), within=source)


def run(*command: str, within: Path) -> str:
    """What a command prints; this checkout is not on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=within, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of(package: Path) -> set[str]:
    return {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file() and file.suffix != ".pyc"}


def test_the_wheel_that_it_installs_works(tmp_path: Path) -> None:
    source, opt = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    built(source, opt)
    # The migrations, the pages and all that is no code are installed, too.
    [packages] = (opt / "dispatcher").glob("lib/python*/site-packages")
    for name in ("dispatcher", "subscriptions"):
        assert files_of(packages / name) == files_of(source / name)
    # And that is what runs.
    python = str(opt / "dispatcher/bin/python")
    assert run(python, "-c", "import dispatcher; print(dispatcher.__file__)", within=tmp_path).startswith(str(opt))
    made = run(str(opt / "dispatcher/bin/dispatcher"), "init", "--data-dir", "data", within=tmp_path)
    assert made.startswith("installation ready: ")
    assert {"dispatcher.db", "keyring.json"} <= {file.name for file in (tmp_path / "data").iterdir()}
