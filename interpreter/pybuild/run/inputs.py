"""The Dockerfile, its .dockerignore and the build context, from wherever the caller has them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast

from pybuild.dockerfile.instructions import MAX_SIZE, Dockerfile
from pybuild.errors import ContextError, UsageError
from pybuild.files.context import (
    ContextTree,
    is_archive,
    open_context_directory,
    open_context_tar,
    read_file,
)
from pybuild.files.ignore import IgnoreMatcher, read_patterns
from pybuild.files.trees import MemoryTree, Tree
from pybuild.oci.http import Activity
from pybuild.remotes.fetching import Remotes
from pybuild.remotes.locations import (
    GitLocation,
    Location,
    WebLocation,
    parse_context_location,
)
from pybuild.values import dataclass, replace

if TYPE_CHECKING:
    from pybuild.files.memorycontext import FilesInMemory

DEFAULT_NAMES = ("Dockerfile", "Containerfile")
_IGNORE_FILE = ".dockerignore"
_HEAD = 512
_SINGLE = "context"  # what BuildKit calls a file that is a context by itself

Context: TypeAlias = "str | Path | BinaryIO | FilesInMemory | None"
DockerfileSource = str | Path | bytes | Dockerfile | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a build reads. ``name`` is the Dockerfile's for messages.

    ``context`` is what `.dockerignore` leaves of the build context; ``excluded`` tells whether
    it leaves nothing of a source of COPY.
    """

    name: str
    dockerfile: bytes
    context: Tree
    excluded: Callable[[str], bool] | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A Dockerfile, and the .dockerignore that belongs to it alone."""

    name: str
    data: bytes
    ignore: bytes | None = None


@contextmanager
def read_inputs(
    context: Context,
    dockerfile: DockerfileSource,
    remotes: Remotes,
    activity: Activity,
    *,
    keep_git_dir: bool = False,
) -> Iterator[Inputs]:
    """Read the Dockerfile and open the context; see :func:`pybuild.api.build`.

    With `keep_git_dir` a context from git has its ``.git``. Raises ContextError, UsageError,
    FetchFailed.
    """
    with ExitStack() as stack:
        if context is None:
            yield Inputs(*_outside(dockerfile), MemoryTree(()))
            return
        location = _location(context) if isinstance(context, str) else None
        if isinstance(location, GitLocation):
            location = replace(location, keep_git_dir=location.keep_git_dir or keep_git_dir)
            tree = remotes.repository(location, activity)
            text = _find_in_tree(tree, dockerfile, str(location))
        elif isinstance(location, WebLocation):
            file = remotes.file(location, activity)
            with file.open() as stream:
                archive = is_archive(stream.read(_HEAD))
            if not archive:
                with file.open() as stream:
                    yield Inputs(*_from_stream(stream, dockerfile), file.tree(_SINGLE))
                return
            tree = stack.enter_context(_unpacked(file.open()))
            text = _find_in_tree(tree, dockerfile, str(location))
        elif isinstance(context, Mapping):
            tree = _in_memory(context)
            text = _find_in_tree(tree, dockerfile, "the files of the context")
        elif isinstance(context, str | Path):
            tree = stack.enter_context(_open_folder(context))
            text = _find_in_folder(tree, Path(context), dockerfile)
        else:
            stream, head = _peek(context)
            if not is_archive(head):
                yield Inputs(*_from_stream(stream, dockerfile), MemoryTree(()))
                return
            tree = stack.enter_context(open_context_tar(stream))
            text = _find_in_tree(tree, dockerfile, "the tar archive")
        matcher = _matcher(tree, text.ignore)
        if matcher is None:
            yield Inputs(text.name, text.data, tree)
        else:
            yield Inputs(text.name, text.data, tree.ignoring(matcher), matcher.excludes_source)


@contextmanager
def open_files(
    location: str | Path | FilesInMemory, remotes: Remotes, activity: Activity
) -> Iterator[Tree]:
    """The files of a named context: of a folder or in memory, less what its .dockerignore
    excludes; of a repository; of an archive on the web, or the one file there as ``context``.

    Raises ContextError, UsageError, FetchFailed.
    """
    if isinstance(location, Mapping):
        yield _less_ignored(_in_memory(location))
        return
    found = _location(location) if isinstance(location, str) else None
    if isinstance(found, GitLocation):
        yield remotes.repository(found, activity)
        return
    if found is None:
        with _open_folder(location) as folder:
            yield _less_ignored(folder)
        return
    file = remotes.file(found, activity)
    with file.open() as stream:
        archive = is_archive(stream.read(_HEAD))
    if not archive:
        yield file.tree(_SINGLE)
        return
    with _unpacked(file.open()) as tree:
        yield tree


def read_limited(stream: BinaryIO, what: str) -> bytes:
    """All of a Dockerfile that comes as a stream. Raises ContextError if it doesn't end."""
    parts, size = [], 0
    while part := stream.read(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_SIZE:
            raise ContextError(f"{what} is larger than {MAX_SIZE} bytes")
    return b"".join(parts)


def _in_memory(files: FilesInMemory) -> ContextTree:
    from pybuild.files.memorycontext import MemoryContext  # noqa: PLC0415 - few builds have one

    return MemoryContext(files)


def _less_ignored(tree: ContextTree) -> ContextTree:
    matcher = _matcher(tree)
    return tree if matcher is None else tree.ignoring(matcher)


def _matcher(tree: ContextTree, ignore: bytes | None = None) -> IgnoreMatcher | None:
    """What is excluded by `ignore`, by default by the tree's own .dockerignore; None if nothing."""
    if ignore is None:
        ignore = read_file(tree, _IGNORE_FILE)
    return None if ignore is None else IgnoreMatcher(read_patterns(ignore))


def _location(context: str) -> Location | None:
    """What the context names on the network; None if it is, or must be, a path."""
    return None if os.path.lexists(context) else parse_context_location(context)


@contextmanager
def _unpacked(archive: BinaryIO) -> Iterator[ContextTree]:
    with archive, open_context_tar(archive) as tree:
        yield tree


def _open_folder(path: str | Path) -> ContextTree:
    if not os.path.lexists(path):
        raise ContextError(
            f'there is no folder "{path}" to be the build context',
            hint="a path is relative to the working directory; for that itself: pybuild .",
        )
    return open_context_directory(path)


def _outside(dockerfile: DockerfileSource) -> tuple[str, bytes]:
    if dockerfile is None:
        raise UsageError("without a build context a Dockerfile must be given")
    text = _given(dockerfile)
    return text.name, text.data


def _from_stream(stream: BinaryIO, dockerfile: DockerfileSource) -> tuple[str, bytes]:
    """A stream that is no archive is the Dockerfile, and there is no context."""
    if dockerfile is not None:
        raise ContextError(
            "the build context is no tar archive",
            hint="a Dockerfile given as the context needs no other one",
        )
    return "Dockerfile", read_limited(stream, "the Dockerfile")


def _find_in_folder(tree: Tree, root: Path, dockerfile: DockerfileSource) -> _Text:
    if dockerfile is None or isinstance(dockerfile, bytes | Dockerfile):
        return _find_in_tree(tree, dockerfile, f'"{root}"')
    path = Path(dockerfile)
    if not path.is_absolute() and not os.path.lexists(path):
        # As in buildah: what isn't in the working directory may be in the context.
        return _find_in_tree(tree, path, f'the working directory and not in "{root}"')
    inside = _inside(path, root)
    return _given(path) if inside is None else _find_in_tree(tree, inside, f'"{root}"')


def _inside(path: Path, root: Path) -> Path | None:
    """`path` relative to the context, None if it lies elsewhere.

    What lies in the context is read as part of it: a context from a stranger may hold a
    Dockerfile that is a link to a file of this machine.
    """
    # Only the lexical form sees that a link inside the context was named; only the real one
    # that the context was reached by a link.
    lexical, real = Path(os.path.normpath(path.absolute())), path.parent.resolve() / path.name
    for base in (Path(os.path.normpath(root.absolute())), root.resolve()):
        for name in (lexical, real):
            if name.is_relative_to(base):
                return name.relative_to(base)
    return None


def _find_in_tree(tree: Tree, dockerfile: DockerfileSource, place: str) -> _Text:
    if isinstance(dockerfile, bytes | Dockerfile):
        return _given(dockerfile)
    names = DEFAULT_NAMES if dockerfile is None else (Path(dockerfile).as_posix(),)
    for name in names:
        data = read_file(tree, name, MAX_SIZE)
        if data is not None:
            ignore = read_file(tree, f"{name}{_IGNORE_FILE}", MAX_SIZE)
            return _Text(name, data, ignore)
    raise ContextError(
        f"there is no {' or '.join(names)} in {place}",
        hint="give its path with --file" if dockerfile is None else "correct the path of --file",
    )


def _given(dockerfile: str | Path | bytes | Dockerfile) -> _Text:
    """A Dockerfile that isn't part of the context: the caller's own file, or text."""
    if isinstance(dockerfile, bytes):
        return _Text("Dockerfile", dockerfile)
    if isinstance(dockerfile, Dockerfile):
        return _Text(dockerfile.name, dockerfile.source)
    path = Path(dockerfile)
    beside = path.with_name(path.name + _IGNORE_FILE)
    ignore = _read_path(beside) if beside.is_file() else None
    return _Text(str(dockerfile), _read_path(path), ignore)


def _read_path(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return read_limited(stream, f'"{path}"')
    except OSError as error:
        reason = error.strerror or str(error)
        raise ContextError(f'can\'t read "{path}": {reason}') from error


def _peek(stream: BinaryIO) -> tuple[BinaryIO, bytes]:
    """The first bytes of a stream, and a stream that still has them."""
    head = b""
    while len(head) < _HEAD and (part := stream.read(_HEAD - len(head))):
        head += part
    return cast("BinaryIO", io.BufferedReader(_Joined(head, stream))), head


class _Joined(io.RawIOBase):
    """`head`, then the rest of `stream`."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        size = len(buffer)
        part = self._head[:size] or self._stream.read(size)
        self._head = self._head[size:]
        buffer[: len(part)] = part
        return len(part)
