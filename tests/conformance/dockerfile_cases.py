"""Our own Dockerfiles, which say in comments what they prove and what comes of them.

The comments at a file's top, after any parser directives, are first the proof, in words,
then lines of these forms. A PATH or TEXT with spaces is a JSON string; ``#`` and what is
expected of a failure stand alone in a file.

::

    # args: --build-arg A=b             flags of docker build; {web}, {git}, {layout}, {agent}
                                        and {context} are what the tests offer
    # expect: file PATH ["content"]     a regular file, with that content
    # expect: folder PATH
    # expect: link PATH TARGET
    # expect: absent PATH
    # expect: mode PATH 0755
    # expect: owner PATH 1:2
    # expect: time PATH 1600000000
    # expect: config Cmd ["a"]          a member of the config, as JSON; null if it is left out
    # expect: author "name"
    # expect: history TEXT              a line of the history
    # expect: layers 2                  how many the image has; busybox has two
    # expect: fails TEXT at TEXT        the message has the first, the line at fault begins
                                        with the second
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pybuild import PybuildError
from pybuild.files.trees import Tree
from pybuild.oci.layerindex import Entry, Kind

FOLDER = Path(__file__).with_name("dockerfiles")
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


@dataclass(frozen=True)
class DockerfileCase:
    """A Dockerfile, what it proves, the flags it is built with, and what is expected, in words."""

    path: Path
    proof: str
    flags: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(FOLDER).with_suffix(""))

    @property
    def failure(self) -> tuple[str, str] | None:
        """Parts of the message and of the line at fault, if the build has to fail."""
        for line in self.expected:
            match split_words(line):
                case ["fails", message, "at", place]:
                    return message, place
        return None


def read_cases() -> list[DockerfileCase]:
    return [_read_case(path) for path in sorted(FOLDER.glob("*/*.Dockerfile"))]


def _read_case(path: Path) -> DockerfileCase:
    proof, flags, expected = [], [], []
    for line in path.read_text("utf-8-sig").splitlines():
        if not line.startswith("#"):
            break
        match re.split(r"^# (args|expect): ", line):
            case [_, "args", rest]:
                flags += shlex.split(rest)
            case [_, "expect", rest]:
                expected.append(rest)
            case _ if not _DIRECTIVE.match(line):
                proof.append(line.lstrip("# "))
    return DockerfileCase(path, " ".join(proof), tuple(flags), tuple(expected))


def split_words(line: str) -> list[str]:
    """The words of an expectation; JSON strings without their quotes."""
    found = _WORD.findall(line)
    return [str(json.loads(word)) if word.startswith('"') else word for word in found]


def check_failure(case: DockerfileCase, error: PybuildError) -> None:
    assert case.failure is not None, f"{case.name} failed: {error!s}"
    message, place = case.failure
    assert message in str(error), str(error)
    assert error.where is not None, str(error)
    lines = case.path.read_text("utf-8-sig").splitlines()
    assert lines[error.where.start_line - 1].startswith(place), str(error)


def check_image(expected: str, tree: Tree, config: dict[str, Any]) -> None:
    """Check one expectation against an image's files and its config document."""
    match split_words(expected):
        case ["config", field, *_]:
            wanted = json.loads(expected.split(maxsplit=2)[2])
            assert config["config"].get(field) == wanted
        case ["author", author]:
            assert config["author"] == author
        case ["history", text]:
            assert text in [entry.get("created_by") for entry in config["history"]]
        case ["layers", count]:
            assert len(config["rootfs"]["diff_ids"]) == int(count)
        case ["absent", path]:
            assert tree.get(_inside(path)) is None
        case [what, path, *rest]:
            entry = tree.get(_inside(path))
            assert entry is not None, f"{path} is missing"
            _check_entry(what, rest, tree, entry)
        case _:
            raise AssertionError(f"unknown expectation: {expected}")


def _inside(path: str) -> bytes:
    return path.lstrip("/").encode()


def _check_entry(what: str, rest: list[str], tree: Tree, entry: Entry) -> None:
    match what, rest:
        case "file", [*content]:
            assert entry.kind is Kind.FILE
            if content:
                with tree.open(entry.path) as file:
                    assert file.read().decode() == content[0]
        case "folder", []:
            assert entry.kind is Kind.DIRECTORY
        case "link", [target]:
            assert (entry.kind, entry.link.decode()) == (Kind.SYMLINK, target)
        case "mode", [mode]:
            assert f"{entry.mode:04o}" == mode
        case "owner", [owner]:
            assert f"{entry.uid}:{entry.gid}" == owner
        case "time", [seconds]:
            assert entry.mtime == int(seconds)
        case _:
            raise AssertionError(f"unknown expectation: {what} {rest}")
