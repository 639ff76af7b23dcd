"""The instructions of a Dockerfile, as it is written: before any variable is expanded.

:meth:`Dockerfile.parse` reads them; each is a value of one of the classes here, to be matched.

Words are kept as written, quotes and escapes included, where the builder expands variables in
them; `words` turns them into values. Texts that the builder never expands (the command
of RUN, CMD, ENTRYPOINT and HEALTHCHECK, an element of a JSON array) are final.
"""

from __future__ import annotations

import re
from pathlib import Path

from pybuild.errors import ContextError, SourceRange
from pybuild.values import dataclass, field

MAX_SIZE = 16 * 1024 * 1024
"""The most bytes that a Dockerfile may have."""

_LEADING_TABS = re.compile(r"(?m)^\t+")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """``<<NAME`` and its body as written.

    `chomp` says that leading tabs are still to be dropped, `expand` that variables count.
    """

    name: str
    content: str
    expand: bool
    chomp: bool
    fd: int

    @property
    def body(self) -> str:
        """`content` without its leading tabs, if `chomp` says so."""
        return _LEADING_TABS.sub("", self.content) if self.chomp else self.content


@dataclass(frozen=True, slots=True)
class Command:
    """A command in exec form (`shell` False: one element an argument) or shell form (one text)."""

    args: tuple[str, ...]
    shell: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A ``name=value`` word. ``value`` is None where there is no ``=`` (ARG only)."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instruction:
    where: SourceRange
    text: str
    """The instruction as one line: continuations joined, heredoc bodies left out."""
    comments: tuple[str, ...] = ()
    """The comment lines right above it, without ``#``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class From(_Instruction):
    image: str
    platform: str | None = None
    stage: str | None = None
    """Lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(_Instruction):
    args: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(_Instruction):
    pairs: tuple[Pair, ...]
    legacy: bool = False
    """Written as ``ENV name value``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(_Instruction):
    pairs: tuple[Pair, ...]
    legacy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(_Instruction):
    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[str, ...] = ()
    """The values of ``--mount``, unexpanded; see :mod:`pybuild.dockerfile.mounts`."""
    network: str | None = None
    security: str | None = None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(_Instruction):
    """COPY. Heredocs are sources too: their markers are not among ``sources``."""

    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    from_: str | None = None
    chown: str | None = None
    chmod: str | None = None
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(_Instruction):
    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    chown: str | None = None
    chmod: str | None = None
    link: bool = False
    exclude: tuple[str, ...] = ()
    keep_git_dir: bool | None = None
    checksum: str | None = None
    unpack: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(_Instruction):
    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(_Instruction):
    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(_Instruction):
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(_Instruction):
    """``command`` is None for HEALTHCHECK NONE. Durations are nanoseconds, 0 where not given."""

    command: Command | None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(_Instruction):
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(_Instruction):
    """``trigger`` is the text kept in the image config, heredoc bodies included."""

    trigger: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(_Instruction):
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignal(_Instruction):
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User(_Instruction):
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(_Instruction):
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(_Instruction):
    path: str


Instruction = (
    From
    | Arg
    | Env
    | Label
    | Run
    | Copy
    | Add
    | Cmd
    | Entrypoint
    | Expose
    | Healthcheck
    | Maintainer
    | Onbuild
    | Shell
    | StopSignal
    | User
    | Volume
    | Workdir
)


@dataclass(frozen=True, slots=True)
class Directives:
    r"""The parser directives at the top of the file. ``escape`` is ``\`` or `````."""

    escape: str = "\\"
    syntax: str | None = None
    check: str | None = None
    syntax_line: int = 1
    check_line: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM, and the instructions up to the next one."""

    head: From
    instructions: tuple[Instruction, ...]
    """Without the FROM."""

    @property
    def name(self) -> str | None:
        """What ``FROM … AS name`` calls it, in lower case."""
        return self.head.stage


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed Dockerfile: ``global_args`` stand before the first FROM."""

    name: str
    """As shown in messages."""
    directives: Directives
    global_args: tuple[Arg, ...]
    instructions: tuple[Instruction, ...]
    """From the first FROM on."""
    source: bytes = field(default=b"", repr=False)
    """The whole text."""

    @classmethod
    def parse(cls, source: str | bytes | Path, name: str = "Dockerfile") -> Dockerfile:
        """Read `source`: the text itself, or the path of a file, which is then the name.

        Raises DockerfileError, with the line, for whatever isn't a Dockerfile; ContextError
        for a file that can't be read.
        """
        from pybuild.dockerfile.parse import parse  # noqa: PLC0415 - it makes these

        if isinstance(source, Path):
            return parse(_read(source), str(source))
        text = source.encode("utf-8", "surrogateescape") if isinstance(source, str) else source
        return parse(text, name)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order; the last one is the default target."""
        every = self.instructions
        heads = [(i, each) for i, each in enumerate(every) if isinstance(each, From)]
        ends = [*(i for i, _ in heads[1:]), len(every)]
        return tuple(
            Stage(head, every[start + 1 : end])
            for (start, head), end in zip(heads, ends, strict=True)
        )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ContextError(f'can\'t read "{path}": {error.strerror or error}') from error
    if len(text) > MAX_SIZE:
        raise ContextError(f'"{path}" is larger than {MAX_SIZE} bytes')
    return text
