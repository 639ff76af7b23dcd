"""COPY and ADD -> a step."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pybuild.dockerfile.instructions import Add, Copy, Heredoc
from pybuild.errors import DockerfileError, UsageError
from pybuild.plan import paths
from pybuild.plan.state import StageState
from pybuild.plan.steps import ContextSource, CopyStep, InlineFile, PlannedRemote
from pybuild.remotes.locations import (
    GitLocation,
    Location,
    is_git,
    is_url,
    parse_git,
    parse_web,
    redacted,
    with_checksum,
)
from pybuild.values import replace

_SYMBOLIC_MODE = r"[ugoa]*([-+=]([rwxXst]*|[ugo]))+(,[ugoa]*([-+=]([rwxXst]*|[ugo]))+)*"


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
    """Add the step of an ADD to `state`. Raises DockerfileError.

    Logins in URLs are kept from everything but the fetching itself.
    """
    sources, destination = _words(add, state)
    local, remotes = _remotes(add, sources, _expanded(add.checksum, state))
    step = CopyStep(
        where=add.where,
        title=redacted(state.title(add)),
        key="",
        source=ContextSource(),
        patterns=tuple(source or "/" for source in local),
        files=_files(add.heredocs, state),
        destination=paths.destination(state.workdir, destination),
        chown=_expanded(add.chown, state),
        chmod=_chmod(add.chmod, state),
        exclude=add.exclude,
        link=add.link,
        unpack=True if add.unpack is None else add.unpack,
        remotes=tuple(remotes),
        instruction="ADD",
    )
    state.add_step(step, _created_by(step, list(map(redacted, sources)), destination))


def _remotes(
    add: Add, sources: Sequence[str], checksum: str | None
) -> tuple[list[str], list[PlannedRemote]]:
    """The sources in the context, and those on the network with their places among them."""
    local: list[str] = []
    remotes: list[PlannedRemote] = []
    for source in sources:
        location: Location
        try:
            if is_git(source):
                location = _repository(add, source, checksum)
            elif is_url(source):
                location = parse_web(source, checksum or "")
            else:
                local.append(source)
                continue
        except UsageError as error:
            raise DockerfileError(error.message, hint=error.hint) from error
        remotes.append(PlannedRemote(location, len(local), unpack=bool(add.unpack)))
    if checksum:
        if len(sources) != 1:
            raise DockerfileError("checksum can't be specified for multiple sources")
        if not remotes:
            raise DockerfileError("checksum requires HTTP(S) or Git sources")
    return local, remotes


def _repository(add: Add, source: str, checksum: str | None) -> GitLocation:
    location = parse_git(source)
    if add.keep_git_dir is not None:
        if "keep-git-dir" in source and add.keep_git_dir != location.keep_git_dir:
            raise UsageError("inconsistent keep-git-dir configuration")
        location = replace(location, keep_git_dir=add.keep_git_dir)
    return with_checksum(location, checksum) if checksum else location


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
    if re.fullmatch(_SYMBOLIC_MODE, mode):
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
