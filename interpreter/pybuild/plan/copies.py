"""COPY and ADD -> a step."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pybuild.dockerfile.instructions import Add, Copy, Heredoc
from pybuild.errors import DockerfileError, UnsupportedByBackend
from pybuild.plan import paths
from pybuild.plan.state import StageState
from pybuild.plan.steps import ContextSource, CopyStep, InlineFile

_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_SCP_STYLE = re.compile(r"[a-zA-Z0-9_-]+@[a-zA-Z0-9.-]+:.*", re.DOTALL)
_SYMBOLIC_MODE = re.compile(r"[ugoa]*([-+=]([rwxXst]*|[ugo]))+(,[ugoa]*([-+=]([rwxXst]*|[ugo]))+)*")


def plan_copy(copy: Copy, state: StageState) -> None:
    """Add the step of a COPY to `state`. Raises DockerfileError."""
    sources, destination = _words(copy, state)
    for source in sources:
        if is_git(source):
            raise DockerfileError("source can't be a git ref for COPY")
        if is_url(source):
            raise DockerfileError("source can't be a URL for COPY")
    step = CopyStep(
        where=copy.where,
        title=state.title(copy),
        key="",
        source=state.copy_source(copy.from_) if copy.from_ else ContextSource(),
        patterns=tuple(source or "/" for source in sources),
        files=_files(copy.heredocs, state),
        destination=paths.destination(state.workdir, destination),
        chown=_expanded(copy.chown, state),
        chmod=_chmod(copy.chmod, state),
        exclude=copy.exclude,
        parents=copy.parents,
        link=copy.link,
        instruction="COPY",
    )
    state.add_step(step, _created_by(step, sources, destination))


def plan_add(add: Add, state: StageState) -> None:
    """Add the step of an ADD to `state`. Raises DockerfileError, UnsupportedByBackend."""
    sources, destination = _words(add, state)
    _check_remote(add, sources, state)
    step = CopyStep(
        where=add.where,
        title=state.title(add),
        key="",
        source=ContextSource(),
        patterns=tuple(source or "/" for source in sources),
        files=_files(add.heredocs, state),
        destination=paths.destination(state.workdir, destination),
        chown=_expanded(add.chown, state),
        chmod=_chmod(add.chmod, state),
        exclude=add.exclude,
        link=add.link,
        unpack=True if add.unpack is None else add.unpack,
        instruction="ADD",
    )
    state.add_step(step, _created_by(step, sources, destination))


def is_git(source: str) -> bool:
    """Whether an ADD source is a git repository: ``https://host/x.git``, ``git@host:x``."""
    if source.startswith(("./", "../", "github.com/")):
        return False
    match = _SCHEME.match(source)
    if match is None:
        return _SCP_STYLE.fullmatch(source) is not None
    scheme = match[1].lower()
    if scheme in {"http", "https"}:
        path = re.split(r"[?#]", source[match.end() :], maxsplit=1)[0]
        return "/" in path and path.endswith(".git")
    return scheme in {"git", "ssh"}


def is_url(source: str) -> bool:
    """Whether an ADD source is a file to be fetched over http."""
    return source.startswith(("http://", "https://")) and not is_git(source)


def _check_remote(add: Add, sources: Sequence[str], state: StageState) -> None:
    remote = [source for source in sources if is_git(source) or is_url(source)]
    if _expanded(add.checksum, state):
        if len(sources) != 1:
            raise DockerfileError("checksum can't be specified for multiple sources")
        if not remote:
            raise DockerfileError("checksum requires HTTP(S) or Git sources")
    if remote:
        kind = "a git repository" if is_git(remote[0]) else "a URL"
        raise UnsupportedByBackend(
            f"ADD from {kind} can't be done yet",
            where=add.where,
            hint="fetch it before the build, or with a RUN",
        )


def _words(instruction: Copy | Add, state: StageState) -> tuple[list[str], str]:
    sources = [state.scope.expand(source) for source in instruction.sources]
    return sources, state.scope.expand(instruction.destination)


def _files(heredocs: Sequence[Heredoc], state: StageState) -> tuple[InlineFile, ...]:
    return tuple(InlineFile(doc.name, _content(doc, state)) for doc in heredocs)


def _content(heredoc: Heredoc, state: StageState) -> bytes:
    text = heredoc.body
    if heredoc.expand:
        text = state.scope.expand_heredoc(text)
    state.allowance.spend(len(text) // 8)
    return text.encode("utf-8", "surrogateescape")


def _expanded(word: str | None, state: StageState) -> str | None:
    return state.scope.expand(word) or None if word else None


def _chmod(word: str | None, state: StageState) -> str | None:
    mode = _expanded(word, state)
    if mode is None or re.fullmatch("0*[0-7]{1,4}", mode):
        return mode
    if _SYMBOLIC_MODE.fullmatch(mode):
        return mode
    raise DockerfileError(
        f"invalid chmod parameter: '{mode}'. it should be octal string and between 0 and 07777"
    )


def _created_by(step: CopyStep, sources: Sequence[str], destination: str) -> str:
    words = [step.instruction]
    if step.parents:
        words.append("--parents")
    if step.chown:
        words.append(f"--chown={step.chown}")
    if step.chmod:
        words.append(f"--chmod={step.chmod}")
    words += sources
    words += [f"<<{file.name}" for file in step.files]
    return " ".join([*words, destination, "# buildkit"])
