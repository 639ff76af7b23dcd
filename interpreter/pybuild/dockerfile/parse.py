"""Logical lines -> instructions. No variable is expanded and no file is read here.

What is refused and what isn't follows BuildKit's Dockerfile frontend. Errors name the word
or flag that they are about; a wrong instruction in a stage that isn't built is an error too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pybuild.dockerfile.arguments import (
    Word,
    json_array,
    split_flags,
    split_keyword,
    suggestion,
)
from pybuild.dockerfile.checks import check_file, check_instruction
from pybuild.dockerfile.flags import Kind, parse_duration
from pybuild.dockerfile.frontend import check_frontend
from pybuild.dockerfile.instructions import (
    Add,
    Arg,
    Cmd,
    Command,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Heredoc,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from pybuild.dockerfile.lines import LogicalLine, parse_heredoc, split_file, split_trigger
from pybuild.dockerfile.lint import Lint
from pybuild.dockerfile.mounts import parse_device, parse_mount
from pybuild.dockerfile.requests import Request, read_request
from pybuild.dockerfile.rules import NO_EMPTY_CONTINUATION
from pybuild.dockerfile.words import SPACE
from pybuild.errors import DockerfileSyntaxError, SourceRange, UnknownInstruction, located

MAX_STAGES = 10_000

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_BLANKS = re.compile(r"[\t\v\f\r ]+")
_ONBUILD = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE | re.ASCII)
_NO_TRIGGERS = ("ONBUILD", "FROM", "MAINTAINER")

_FILE_FLAGS = {
    "chown": Kind.TEXT,
    "chmod": Kind.TEXT,
    "link": Kind.SWITCH,
    "exclude": Kind.TEXTS,
}
_FLAGS: Mapping[str, Mapping[str, Kind]] = {
    "ADD": {
        **_FILE_FLAGS,
        "keep-git-dir": Kind.SWITCH,
        "checksum": Kind.TEXT,
        "unpack": Kind.SWITCH,
    },
    "COPY": {"from": Kind.TEXT, **_FILE_FLAGS, "parents": Kind.SWITCH},
    "FROM": {"platform": Kind.TEXT},
    "HEALTHCHECK": {
        "interval": Kind.TEXT,
        "timeout": Kind.TEXT,
        "start-period": Kind.TEXT,
        "start-interval": Kind.TEXT,
        "retries": Kind.TEXT,
    },
    "RUN": {
        "mount": Kind.TEXTS,
        "network": Kind.TEXT,
        "security": Kind.TEXT,
        "device": Kind.TEXTS,
    },
}


def parse(
    data: bytes,
    name: str = "Dockerfile",
    lint: Lint | None = None,
    syntax: str | None = None,
) -> Dockerfile:
    """The instructions of a Dockerfile; `name` is for messages.

    `lint` takes what the build checks find, also if the file is refused in the end. `syntax`
    is a frontend that replaces the one of the file's directive.
    Raises DockerfileError, with a place, for whatever isn't a Dockerfile.
    """
    lint = lint or Lint()
    source = split_file(data, name)
    check_frontend(source.directives, syntax, name)
    lint.follow(source.directives, name)
    for gap in source.gaps:
        lint.report(NO_EMPTY_CONTINUATION, gap, "Empty continuation line")
    global_args: list[Arg] = []
    instructions: list[Instruction] = []
    stages = 0
    for line in source.lines:
        instruction = _parse_line(line, source.directives.escape)
        check_instruction(instruction, source.directives.escape, lint)
        if isinstance(instruction, From):
            stages += 1
            if stages > MAX_STAGES:
                raise DockerfileSyntaxError(
                    f"the file has more than {MAX_STAGES} stages", where=line.where
                )
        elif not instructions:
            if not isinstance(instruction, Arg):
                raise DockerfileSyntaxError(
                    f"{line.instruction} stands before the first FROM",
                    where=line.at(-line.value_start, len(line.keyword) - line.value_start),
                    hint="begin with FROM; only ARG may stand before it",
                )
            global_args.append(instruction)
            continue
        instructions.append(instruction)
    if not instructions:
        raise DockerfileSyntaxError(
            "the file has no FROM",
            where=source.lines[-1].where,
            hint="every image is built FROM another one, or FROM scratch",
        )
    parsed = Dockerfile(
        name=name,
        directives=source.directives,
        global_args=tuple(global_args),
        instructions=tuple(instructions),
        source=data,
    )
    check_file(parsed, lint)
    return parsed


def parse_trigger(trigger: str, where: SourceRange, escape: str = "\\") -> Instruction:
    """The instruction in an ONBUILD trigger of a base image, which FROM at `where` names.

    Raises DockerfileError unless `trigger` is exactly one instruction that may be a trigger.
    """
    lines = split_trigger(trigger, where, escape)
    if len(lines) != 1:
        raise DockerfileSyntaxError(
            f"an ONBUILD trigger of the image has {len(lines)} instructions instead of one",
            where=where,
        )
    _check_trigger(lines[0].instruction, where)
    return _parse_line(lines[0], escape)


def _check_trigger(instruction: str, where: SourceRange) -> None:
    if instruction in _NO_TRIGGERS:
        raise DockerfileSyntaxError(f"ONBUILD can't trigger {instruction}", where=where)


def _parse_line(line: LogicalLine, escape: str) -> Instruction:
    parser = _PARSERS.get(line.instruction)
    if parser is None:
        raise _unknown(line)
    request = read_request(line, escape, _FLAGS.get(line.instruction, {}))
    return parser(request)


def _unknown(line: LogicalLine) -> UnknownInstruction:
    end = len(line.keyword)
    where = line.at(-line.value_start, end - line.value_start)
    if not line.keyword:
        return UnknownInstruction("a continuation has no instruction", where=where)
    hint = suggestion(line.instruction, _PARSERS)
    if "\xa0" in line.keyword:
        hint = "it has a no-break space in it; use plain spaces"
    elif line.keyword.startswith(("//", "{")):
        hint = "the file may be meant for another frontend than the Dockerfile's"
    return UnknownInstruction(f"{line.keyword[:60]} is no instruction", where=where, hint=hint)


def _parse_from(r: Request) -> From:
    words = r.blank_words()
    stage = None
    match words:
        case [_]:
            pass
        case [_, Word(text=keyword), name] if keyword.lower() == "as":
            stage = name.text.lower()
            if not _STAGE_NAME.fullmatch(stage):
                raise r.error(
                    f"{name.text[:60]!r} can't be the name of a stage",
                    name,
                    "a name begins with a letter and has letters, digits, -, _ and . only",
                )
        case []:
            raise r.error("FROM has no image", hint="write FROM image [AS name]")
        case [_, _]:
            raise r.error("FROM has two arguments", words[1], "write FROM image [AS name]")
        case _:
            raise r.error("FROM has too many arguments", words[1], "write FROM image [AS name]")
    return From(image=words[0].text, platform=r.flags.text("platform"), stage=stage, **r.common)


def _parse_arg(r: Request) -> Arg:
    pairs: list[Pair] = []
    for word in r.quoted_words():
        name, equals, value = word.text.partition("=")
        if not name:
            raise r.error("an ARG has no name", word)
        pairs.append(Pair(name, value if equals else None))
    if not pairs:
        raise r.error("ARG has no argument", hint="write ARG name or ARG name=value")
    return Arg(args=tuple(pairs), **r.common)


def _parse_pairs(r: Request) -> tuple[tuple[Pair, ...], bool]:
    """The pairs of ENV or LABEL, and whether they are one in the legacy form."""
    keyword = r.line.instruction
    form = f"write {keyword} name=value"
    words = r.quoted_words()
    if not words:
        raise r.error(f"{keyword} has no argument", hint=form)
    if "=" not in words[0].text:
        name, *value = _BLANKS.split(r.rest, maxsplit=1)
        if not value:
            raise r.error(f"{keyword} {name[:60]} has no value", words[0], form)
        return (Pair(name, value[0]),), True
    pairs: list[Pair] = []
    for word in words:
        name, equals, text = word.text.partition("=")
        if not equals:
            raise r.error(f"{word.text[:60]!r} has no =", word, form)
        if not name:
            raise r.error(f"{keyword} names can't be empty", word)
        pairs.append(Pair(name, text))
    return tuple(pairs), False


def _parse_env(r: Request) -> Env:
    pairs, legacy = _parse_pairs(r)
    return Env(pairs=pairs, legacy=legacy, **r.common)


def _parse_label(r: Request) -> Label:
    pairs, legacy = _parse_pairs(r)
    return Label(pairs=pairs, legacy=legacy, **r.common)


def _parse_run(r: Request) -> Run:
    command = r.command()
    if not command.args:
        raise r.error("RUN has no command")
    mounts = r.flags.texts("mount")
    for mount, where in mounts:
        parse_mount(mount, where)
    devices = r.flags.texts("device")
    for device, where in devices:
        parse_device(device, where)
    return Run(
        command=command,
        heredocs=r.line.heredocs,
        mounts=tuple(mount for mount, _ in mounts),
        network=r.flags.choice("network", ("default", "none", "host")),
        security=r.flags.choice("security", ("sandbox", "insecure")),
        devices=tuple(device for device, _ in devices),
        **r.common,
    )


def _sources(r: Request) -> tuple[tuple[str, ...], str]:
    """The sources of COPY or ADD that are no heredocs, and the destination."""
    array = r.array()
    keyword = r.line.instruction
    if array is not None:
        words = [Word(text, r.start, len(r.line.value)) for text in array]
    else:
        words = r.blank_words()
        if r.line.heredocs:
            words = _with_spaced_markers(words)
    if len(words) < 2:
        raise r.error(
            f"{keyword} has no {'destination' if words else 'source'}",
            hint=f"write {keyword} source... destination",
        )
    if array is not None:
        return array[:-1], array[-1]
    *sources, destination = words
    names: list[str] = []
    plain: list[str] = []
    for word in sources:
        heredoc = _heredoc(r, word)
        if heredoc is None:
            plain.append(word.text)
        else:
            names.append(heredoc.name)
    if _heredoc(r, destination) is not None:
        raise r.error(f"the destination of {keyword} can't be a heredoc", destination)
    if names != [heredoc.name for heredoc in r.line.heredocs]:
        raise r.error(f"a heredoc of {keyword} has a name with white space or open quotes")
    return tuple(plain), destination.text


def _heredoc(r: Request, word: Word) -> Heredoc | None:
    if "<<" not in word.text:
        return None
    with located(r.line.at(word.start, word.end)):
        return parse_heredoc(word.text)


def _with_spaced_markers(words: Sequence[Word]) -> list[Word]:
    """`words`, with a ``<<`` and the name that stands apart from it as one."""
    joined: list[Word] = []
    for word in words:
        if joined and re.fullmatch(r"[0-9]*<<", joined[-1].text, re.ASCII):
            marker = joined.pop()
            joined.append(Word(marker.text + word.text, marker.start, word.end))
        else:
            joined.append(word)
    return joined


def _parse_copy(r: Request) -> Copy:
    sources, destination = _sources(r)
    from_ = r.flags.text("from")
    if from_ is not None and "$" in from_:
        raise DockerfileSyntaxError(
            "--from can't have variables",
            where=r.flags.where("from"),
            hint="give the image a name: FROM ${image} AS name, with an ARG before the first FROM",
        )
    return Copy(
        sources=sources,
        destination=destination,
        heredocs=r.line.heredocs,
        from_=from_,
        chown=r.flags.text("chown"),
        chmod=r.flags.text("chmod"),
        link=r.flags.switch("link") or False,
        parents=r.flags.switch("parents") or False,
        exclude=tuple(pattern for pattern, _ in r.flags.texts("exclude")),
        **r.common,
    )


def _parse_add(r: Request) -> Add:
    sources, destination = _sources(r)
    return Add(
        sources=sources,
        destination=destination,
        heredocs=r.line.heredocs,
        chown=r.flags.text("chown"),
        chmod=r.flags.text("chmod"),
        link=r.flags.switch("link") or False,
        exclude=tuple(pattern for pattern, _ in r.flags.texts("exclude")),
        keep_git_dir=r.flags.switch("keep-git-dir"),
        checksum=r.flags.text("checksum"),
        unpack=r.flags.switch("unpack"),
        **r.common,
    )


def _parse_cmd(r: Request) -> Cmd:
    return Cmd(command=r.command(), **r.common)


def _parse_entrypoint(r: Request) -> Entrypoint:
    return Entrypoint(command=r.command(), **r.common)


def _parse_expose(r: Request) -> Expose:
    ports = tuple(word.text for word in r.blank_words())
    if not ports:
        raise r.error("EXPOSE has no port")
    return Expose(ports=ports, **r.common)


def _parse_healthcheck(r: Request) -> Healthcheck:
    keyword, start = split_keyword(r.rest)
    first = Word(keyword, r.start, r.start + len(keyword))
    rest = r.rest[start:]
    if not keyword:
        raise r.error("HEALTHCHECK has no argument", hint="write NONE, or CMD and a command")
    if keyword.upper() == "NONE":
        if rest:
            raise r.error("HEALTHCHECK NONE has an argument")
        return Healthcheck(command=None, **r.common)
    if keyword.upper() != "CMD":
        raise r.error(
            f"HEALTHCHECK can't be {keyword[:60]!r}",
            first,
            suggestion(keyword.upper(), ("CMD", "NONE")) or "it is NONE, or CMD and a command",
        )
    with located(r.line.at(r.start + start, len(r.line.value))):
        array = json_array(rest)
    args = array if array is not None else (rest,) if rest else ()
    if not args:
        raise r.error("HEALTHCHECK CMD has no command", first)
    return Healthcheck(
        command=Command(args, shell=array is None),
        interval=_duration(r, "interval"),
        timeout=_duration(r, "timeout"),
        start_period=_duration(r, "start-period"),
        start_interval=_duration(r, "start-interval"),
        retries=_retries(r),
        **r.common,
    )


def _duration(r: Request, name: str) -> int:
    text = r.flags.text(name)
    if text is None:
        return 0
    with located(r.flags.where(name)):
        return parse_duration(text)


def _retries(r: Request) -> int:
    text = r.flags.text("retries")
    if text is None:
        return 0
    if not re.fullmatch(r"\+?[0-9]{1,20}", text, re.ASCII) or int(text) >= 1 << 31:
        raise DockerfileSyntaxError(
            f"--retries can't be {text[:60]!r}",
            where=r.flags.where("retries"),
            hint="it is a number, and 0 stands for the default",
        )
    return int(text)


def _parse_maintainer(r: Request) -> Maintainer:
    return Maintainer(name=r.single(), **r.common)


def _parse_onbuild(r: Request) -> Onbuild:
    keyword, start = split_keyword(r.single())
    _check_trigger(keyword.upper(), r.line.at(r.start, r.start + len(keyword)))
    trigger = r.rest[start:]
    _, flags_end = split_flags(trigger, r.escape)
    if keyword.upper() in ("ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"):
        with located(r.line.where):
            json_array(trigger[flags_end:])
    text = _ONBUILD.sub("", r.line.text, count=1)
    for heredoc in r.line.heredocs:
        text += f"\n{heredoc.content}{heredoc.name}"
    return Onbuild(trigger=text, **r.common)


def _parse_shell(r: Request) -> Shell:
    array = r.array()
    if not array:
        raise r.error(
            "SHELL has no argument" if array is not None else "SHELL isn't in JSON form",
            hint='write SHELL ["/bin/sh", "-c"]',
        )
    return Shell(args=array, **r.common)


def _parse_stopsignal(r: Request) -> StopSignal:
    return StopSignal(signal=r.single(), **r.common)


def _parse_user(r: Request) -> User:
    return User(user=r.single(), **r.common)


def _parse_volume(r: Request) -> Volume:
    array = r.array()
    paths = array if array is not None else tuple(word.text for word in r.blank_words())
    paths = tuple(path.strip(SPACE) for path in paths)
    if not all(paths) or not paths:
        raise r.error("VOLUME has an empty path" if paths else "VOLUME has no path")
    return Volume(paths=paths, **r.common)


def _parse_workdir(r: Request) -> Workdir:
    return Workdir(path=r.single(), **r.common)


_PARSERS: Mapping[str, Callable[[Request], Instruction]] = {
    "ADD": _parse_add,
    "ARG": _parse_arg,
    "CMD": _parse_cmd,
    "COPY": _parse_copy,
    "ENTRYPOINT": _parse_entrypoint,
    "ENV": _parse_env,
    "EXPOSE": _parse_expose,
    "FROM": _parse_from,
    "HEALTHCHECK": _parse_healthcheck,
    "LABEL": _parse_label,
    "MAINTAINER": _parse_maintainer,
    "ONBUILD": _parse_onbuild,
    "RUN": _parse_run,
    "SHELL": _parse_shell,
    "STOPSIGNAL": _parse_stopsignal,
    "USER": _parse_user,
    "VOLUME": _parse_volume,
    "WORKDIR": _parse_workdir,
}
