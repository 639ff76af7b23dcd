"""Small projects as values: a Dockerfile, a context and the options of a build.

Every instruction is written so that a real shell and the simulated one of the memory backend
do the same. What they mean is told by `modelling`, which projects are tried by `generating`.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Node:
    """A file, folder or link. ``content`` is a file's bytes or a link's target.

    ``members`` are those of a tar archive, by their paths; its content is made of them.
    """

    kind: Literal["file", "folder", "link"] = "file"
    mode: int = 0o644
    content: bytes = b""
    uid: int = 0
    gid: int = 0
    members: tuple[tuple[str, Node], ...] = ()


FOLDER = Node("folder", 0o755)
Files = Mapping[str, Node]
"""By path, without a leading slash. The folders above a path are always there."""


def link_to(target: str) -> Node:
    return Node("link", 0o777, target.encode())


def archive_of(members: Mapping[str, Node]) -> Node:
    """A file that is a tar of `members`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, node in members.items():
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid = node.mode, node.uid, node.gid
            info.type = tarfile.DIRTYPE if node.kind == "folder" else tarfile.REGTYPE
            info.size = len(node.content)
            tar.addfile(info, io.BytesIO(node.content))
    return Node("file", 0o644, buffer.getvalue(), members=tuple(members.items()))


@dataclass(frozen=True, slots=True)
class Arg:
    name: str
    default: str | None


@dataclass(frozen=True, slots=True)
class Env:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Workdir:
    path: str


@dataclass(frozen=True, slots=True)
class User:
    uid: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """LABEL and CMD, which change no file."""

    text: str


@dataclass(frozen=True, slots=True)
class Copy:
    """COPY or ADD of files in the context, or in the stage `stage`."""

    patterns: tuple[str, ...]
    destination: str
    stage: int | None = None
    chown: int | None = None
    chmod: int | None = None
    exclude: str | None = None
    parents: bool = False
    link: bool = False
    instruction: Literal["COPY", "ADD"] = "COPY"


@dataclass(frozen=True, slots=True)
class Inline:
    """COPY of a heredoc, with variables expanded."""

    body: str
    destination: str


@dataclass(frozen=True, slots=True)
class Show:
    """RUN that writes what the file at `path` holds, or "none", to `out`."""

    path: str
    out: str
    as_heredoc: bool = False


@dataclass(frozen=True, slots=True)
class ShowMounted:
    """The same of a file in a folder that is mounted from the context or a stage."""

    stage: int | None
    folder: str
    name: str
    out: str


@dataclass(frozen=True, slots=True)
class Tell:
    """RUN that writes a variable and its user to `out`."""

    name: str
    out: str


@dataclass(frozen=True, slots=True)
class Make:
    """RUN that makes a folder with a file in it, and that file's mode."""

    folder: str
    word: str
    mode: int


@dataclass(frozen=True, slots=True)
class Remove:
    """RUN that removes what is at `path`."""

    path: str


@dataclass(frozen=True, slots=True)
class Lend:
    """RUN that sees a secret and a cache, and writes `word` to `out`.

    It fails if the secret is ``bad``.
    """

    word: str
    out: str


Instruction = (
    Arg
    | Env
    | Workdir
    | User
    | Metadata
    | Copy
    | Inline
    | Show
    | ShowMounted
    | Tell
    | Make
    | Remove
    | Lend
)


def text_of(instruction: Instruction) -> str:
    """The instruction as it stands in a Dockerfile."""
    match instruction:
        case Arg(name, default):
            return f"ARG {name}" if default is None else f"ARG {name}={default}"
        case Env(name, value):
            return f"ENV {name}={value}"
        case Workdir(path):
            return f"WORKDIR {path}"
        case User(uid):
            return f"USER {uid}:{uid}"
        case Metadata(text):
            return text
        case Copy():
            return _copy_text(instruction)
        case Inline(body, destination):
            return f"COPY <<EOF {destination}\n{body}\nEOF"
        case _:
            return _run_text(instruction)


def _copy_text(copy: Copy) -> str:
    flags = [
        *([f"--from=s{copy.stage}"] if copy.stage is not None else []),
        *([f"--chown={copy.chown}:{copy.chown}"] if copy.chown is not None else []),
        *([f"--chmod={copy.chmod:o}"] if copy.chmod is not None else []),
        *([f"--exclude={copy.exclude}"] if copy.exclude else []),
        *(["--parents"] if copy.parents else []),
        *(["--link"] if copy.link else []),
    ]
    return " ".join([copy.instruction, *flags, *copy.patterns, copy.destination])


def _run_text(run: Show | ShowMounted | Tell | Make | Remove | Lend) -> str:
    match run:
        case Show(path, out, as_heredoc):
            script = f"[ -f {path} ] && cat {path} > {out} || echo none > {out}"
            return f"RUN <<EOF\n{script}\nEOF" if as_heredoc else f"RUN {script}"
        case ShowMounted(stage, folder, name, out):
            origin = f"from=s{stage}," if stage is not None else ""
            path = f"/mnt/seen/{name}"
            return (
                f"RUN --mount=type=bind,{origin}source={folder},target=/mnt/seen "
                f"[ -f {path} ] && cat {path} > {out} || echo none > {out}"
            )
        case Tell(name, out):
            return f'RUN echo "{name}=${name}" > {out} && id -u >> {out}'
        case Make(folder, word, mode):
            path = f"{folder}/made"
            return f"RUN mkdir -p {folder} && echo {word} > {path} && chmod {mode:o} {path}"
        case Remove(path):
            return f"RUN rm -rf {path}"
        case Lend(word, out):
            secret = "--mount=type=secret,id=s,env=S"
            cache = "--mount=type=cache,target=/mnt/cache"
            keep = '[ ! "$S" = bad ] && echo "$S" >> /mnt/cache/kept'
            return f"RUN {secret} {cache} {keep} && echo {word} > {out}"


@dataclass(frozen=True, slots=True)
class Stage:
    """``base`` is the base image, scratch, or the number of an earlier stage."""

    base: Literal["base", "scratch"] | int
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Project:
    """What is built. ``variant`` chooses one of the base image's contents.

    ``touched`` are paths of the context whose modification time is another one.
    """

    context: Files
    stages: tuple[Stage, ...]
    build_args: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    variant: int = 0
    secret: str = "secret"
    label: str = ""
    touched: frozenset[str] = frozenset()

    @cached_property
    def files(self) -> Files:
        """The context's files with its .dockerignore."""
        if not self.ignored:
            return self.context
        rules = "".join(f"{rule}\n" for rule in self.ignored)
        return {**self.context, ".dockerignore": Node("file", 0o644, rules.encode())}

    @property
    def heads(self) -> list[int]:
        """The lines of the FROMs."""
        lengths = [
            1 + sum(text_of(line).count("\n") + 1 for line in stage.instructions)
            for stage in self.stages
        ]
        return [1 + sum(lengths[:number]) for number in range(len(lengths))]

    @cached_property
    def lines(self) -> Mapping[tuple[int, int], int]:
        """The line of each instruction, by the numbers of its stage and of itself."""
        found = {}
        for number, (head, stage) in enumerate(zip(self.heads, self.stages, strict=True)):
            line = head + 1
            for position, instruction in enumerate(stage.instructions):
                found[number, position] = line
                line += text_of(instruction).count("\n") + 1
        return found

    @property
    def dockerfile(self) -> str:
        lines = []
        for number, stage in enumerate(self.stages):
            base = f"s{stage.base}" if isinstance(stage.base, int) else stage.base
            lines += [f"FROM {base} AS s{number}", *map(text_of, stage.instructions)]
        return "\n".join(lines) + "\n"


def write_context(project: Project, folder: Path, before: Project | None = None) -> None:
    """Make `folder` the context of `project`, touching nothing that is as it was `before`."""
    old = before.files if before is not None else {}
    for path in sorted(old.keys() - project.files.keys(), reverse=True):
        _remove(folder / path)
    for path, node in sorted(project.files.items()):
        if old.get(path) == node:
            continue
        place = folder / path
        if path in old and (node.kind, old[path].kind) != ("folder", "folder"):
            _remove(place)
        _write(place, node)
    touched_before = before.touched if before is not None else frozenset()
    for path in project.touched - touched_before:
        os.utime(folder / path, (2_000_000_000, 2_000_000_000), follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, node: Node) -> None:
    match node.kind:
        case "folder":
            path.mkdir(exist_ok=True)
            path.chmod(node.mode)
        case "link":
            path.symlink_to(node.content.decode())
        case "file":
            path.write_bytes(node.content)
            path.chmod(node.mode)
