"""The lock file: what a Dockerfile's images and sources were when it was written.

It is TOML of one fixed form, for version control: an entry a line, sorted, so that a change of
one image is a change of one line, and each fault of it has a line to be shown::

    version = 1
    platforms = ["linux/amd64"]

    [images]
    "docker.io/library/alpine:3.20 linux/amd64" = { digest = "sha256:…", index = "sha256:…" }

    [files]
    "https://example.com/x.tar.gz" = "sha256:…"

    [commits]
    "https://example.com/x.git#main" = "…"
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NoReturn

from pybuild.errors import LockError, SourceRange, UsageError, located
from pybuild.oci.descriptor import is_digest
from pybuild.oci.platform import parse_platform
from pybuild.oci.reference import parse_reference
from pybuild.remotes.locations import is_commit
from pybuild.values import dataclass, field

FILE = "pybuild.lock"
HEAD = (
    "# What the images and sources of the Dockerfile are; made by: pybuild lock\n"
    "# and used by: pybuild --locked\n"
)
_VERSION = "1"
_ANEW = "remove the file, and pybuild lock writes it anew"
_LARGEST = 1 << 20
_TEXT = r'"((?:[^"\\\x00-\x1f\x7f]|\\["\\])*)"'
_TABLE = re.compile(r"\[([a-z]+)\]")
_VALUE = re.compile(r"([a-z]+) *= *(.*)")
# Possessive quantifiers keep hostile input linear.
_PLATFORMS = re.compile(rf"\[(?: *+{_TEXT} *+,?+ *+)*+\]")
_ENTRY = re.compile(rf"{_TEXT} *= *(.*)")
_IMAGE = re.compile(rf"\{{ *digest *= *{_TEXT}(?: *, *index *= *{_TEXT})? *\}}")
_WHOLE_TEXT = re.compile(_TEXT)


@dataclass(frozen=True, slots=True)
class LockedImage:
    """An image for one platform: its manifest's digest, and that of the index which leads to it.

    ``index`` is None where the registry has the manifest alone under the name.
    """

    digest: str
    index: str | None = None

    def __str__(self) -> str:
        return f"{self.digest} of {self.index}" if self.index else self.digest


@dataclass(frozen=True, slots=True)
class Lock:
    """What a lock file says.

    ``images`` are by full name, with a tag, and platform, as ``linux/amd64``; ``files`` are
    digests by sha256 of what ADD fetches, by URL; ``commits`` whole commit ids, by the
    repository with ``#`` and the ref. ``platforms`` are those that it was made for.
    """

    platforms: tuple[str, ...] = ()
    images: Mapping[tuple[str, str], LockedImage] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    commits: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The file's text."""
        lines = [
            f"version = {_VERSION}",
            f"platforms = [{', '.join(map(_quoted, self.platforms))}]",
        ]
        images = {
            f"{name} {platform}": f"{{ digest = {_quoted(image.digest)}"
            + (f", index = {_quoted(image.index)}" if image.index else "")
            + " }"
            for (name, platform), image in self.images.items()
        }
        for table, entries in (
            ("images", images),
            ("files", {url: _quoted(digest) for url, digest in self.files.items()}),
            ("commits", {name: _quoted(commit) for name, commit in self.commits.items()}),
        ):
            if entries:
                lines += ["", f"[{table}]"]
                lines += [f"{_quoted(name)} = {entries[name]}" for name in sorted(entries)]
        return HEAD + "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class LockChange:
    """An entry that two locks don't have in common; None is where there is none."""

    what: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.what} is new: {self.after}"
        if self.after is None:
            return f"{self.what} is not asked for any more"
        return f"{self.what} changed from {self.before} to {self.after}"


def changes(before: Lock, after: Lock) -> tuple[LockChange, ...]:
    """What differs, sorted by name."""
    old, new = _entries(before), _entries(after)
    return tuple(
        LockChange(name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def beside(context: object, dockerfile: object) -> Path:
    """Where the lock file of a build is: in its Dockerfile's folder. Raises UsageError."""
    if isinstance(dockerfile, str | Path) and os.path.lexists(dockerfile):
        return Path(dockerfile).parent / FILE
    # as for the Dockerfile, what isn't in the working directory may be in the context
    if isinstance(context, str | Path) and Path(context).is_dir():
        inside = Path(dockerfile).parent if isinstance(dockerfile, str | Path) else Path()
        return Path(context) / inside / FILE
    raise UsageError(
        "the Dockerfile is in no folder, and so is its lock file",
        hint="name the lock file: --locked=FILE, or pybuild lock --output FILE",
    )


def chosen_lock(locked: Lock | str | Path | bool, context: object, dockerfile: object) -> Lock:
    """The lock of a build: `locked`, the file of that name, or for True that beside the Dockerfile.

    Raises LockError, UsageError.
    """
    if isinstance(locked, Lock):
        return locked
    if isinstance(locked, bool):
        return read_lock(beside(context, dockerfile), follow=False)
    return read_lock(Path(locked))


def read_lock(path: Path, *, follow: bool = True) -> Lock:
    """Read a lock file, and check all of it. Raises LockError.

    Without `follow` it must not be a symbolic link: what comes with a context may be a
    stranger's.
    """
    try:
        with _opened(path, follow=follow) as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise LockError(f'there is no lock file "{path}"', hint="pybuild lock writes one") from None
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise LockError(f'can\'t read the lock file "{path}": {reason}') from error
    if len(content) > _LARGEST:
        raise LockError(f'the lock file "{path}" has more than {_LARGEST} bytes')
    return parse_lock(content, str(path))


def parse_lock(content: bytes, name: str) -> Lock:
    """The lock in `content`; `name` is the file's, for errors. Raises LockError with the line."""
    try:
        return _Reader(name).read(content)
    except LockError as error:
        error.files = {name: content}
        raise


def _opened(path: Path, *, follow: bool) -> BinaryIO:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # open() wouldn't close that of a folder
        raise OSError(errno.EINVAL, "it is no regular file")
    return open(descriptor, "rb")  # noqa: PTH123 - a descriptor; the caller closes it


class _Reader:
    """Reads the lines of one file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: set[tuple[str, str]] = set()
        self._platforms: tuple[str, ...] = ()
        self._images: dict[tuple[str, str], LockedImage] = {}
        self._files: dict[str, str] = {}
        self._commits: dict[str, str] = {}

    def read(self, content: bytes) -> Lock:
        table = ""
        # not splitlines(), which knows more ends of lines than TOML does
        for number, whole in enumerate(content.split(b"\n"), start=1):
            raw = whole.strip(b" \t\r")
            if not raw or raw.startswith(b"#"):
                continue
            with located(SourceRange(self._name, number, number)):
                try:
                    line = raw.decode()
                except UnicodeDecodeError:
                    raise LockError("this line of the lock file is no UTF-8 text") from None
                if match := _TABLE.fullmatch(line):
                    table = self._begin(match[1])
                elif not table:
                    self._setting(line)
                else:
                    self._entry(table, line)
        if ("", "version") not in self._seen:
            where = SourceRange(self._name, 1, 1)
            raise LockError(f"the lock file says no version = {_VERSION}", where=where)
        return Lock(self._platforms, self._images, self._files, self._commits)

    def _begin(self, table: str) -> str:
        if table not in {"images", "files", "commits"}:
            raise LockError(f'a lock file has no table "{table}"')
        self._once(table, "")
        return table

    def _setting(self, line: str) -> None:
        match = _VALUE.fullmatch(line)
        if match is None:
            _refuse()
        name, value = match.groups()
        self._once("", name)
        match name:
            case "version":
                if value != _VERSION:
                    raise LockError(
                        f"the lock file has the version {value[:20]}, not {_VERSION}",
                        hint=f"another pybuild made it; {_ANEW}",
                    )
            case "platforms":
                if not _PLATFORMS.fullmatch(value):
                    _refuse()
                self._platforms = tuple(_WHOLE_TEXT.findall(value))
                for text in self._platforms:
                    _check_platform(text)
            case _:
                raise LockError(f'a lock file has no value "{name[:100]}"')

    def _entry(self, table: str, line: str) -> None:
        match = _ENTRY.fullmatch(line)
        if match is None:
            _refuse()
        name, value = _unquoted(match[1]), match[2]
        self._once(table, name)
        if table == "images":
            self._image(name, value)
            return
        text = _WHOLE_TEXT.fullmatch(value)
        if text is None:
            _refuse()
        if table == "files":
            self._files[name] = _digest(text[1])
        elif is_commit(text[1]):
            self._commits[name] = text[1]
        else:
            raise LockError(f'"{text[1][:100]}" is no whole commit id')

    def _image(self, name: str, value: str) -> None:
        match = _IMAGE.fullmatch(value)
        if match is None:
            _refuse()
        text, _, platform = name.rpartition(" ")
        try:
            reference = parse_reference(text)
        except UsageError as error:
            raise LockError(error.message, hint=error.hint) from error
        if str(reference) != text or reference.tag is None or reference.digest is not None:
            raise LockError(f'"{text[:100]}" is no full name with a tag')
        _check_platform(platform)
        index = None if match[2] is None else _digest(match[2])
        self._images[text, platform] = LockedImage(_digest(match[1]), index)

    def _once(self, table: str, name: str) -> None:
        if (table, name) in self._seen:
            raise LockError(f'"{(name or table)[:200]}" is in the lock file twice')
        self._seen.add((table, name))


def _refuse() -> NoReturn:
    raise LockError("this line is not what pybuild lock writes", hint=_ANEW)


def _digest(text: str) -> str:
    if not is_digest(text):
        raise LockError(f'"{text[:100]}" is no digest: sha256: and 64 hexadecimal digits')
    return text


def _check_platform(text: str) -> None:
    try:
        known = str(parse_platform(text)) == text
    except UsageError:
        known = False
    if not known:
        raise LockError(f'"{text[:100]}" is no platform, as linux/amd64 is one')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _entries(lock: Lock) -> dict[str, str]:
    images = {f"{name} {platform}": str(image) for (name, platform), image in lock.images.items()}
    return {**images, **lock.files, **lock.commits}
