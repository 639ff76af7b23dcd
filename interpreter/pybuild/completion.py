"""``pybuild completion``: scripts that complete its words, made of the parsers' own options.

What is completed besides options: files, folders, the names of stages in the Dockerfile, and
the names of images in the store.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from enum import Enum

from pybuild.arguments import build_parser, doctor_parser
from pybuild.debugcommand import debug_parser
from pybuild.diffcommand import diff_parser
from pybuild.errors import UsageError
from pybuild.explaincommand import explain_parser
from pybuild.lockcommand import lock_parser
from pybuild.runcommand import run_parser
from pybuild.storecommands import COMMANDS, store_parser
from pybuild.values import dataclass

SHELLS = ("bash", "zsh", "fish")


class Value(Enum):
    """What the value of an option, or an operand, names."""

    NOTHING = "nothing"
    FILE = "file"
    FOLDER = "folder"
    STAGE = "stage"
    IMAGE = "image"
    SHELL = "shell"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Option:
    """``names`` are its spellings; ``choices`` all that its value may be, if they are few."""

    names: tuple[str, ...]
    help: str
    value: Value
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """``name`` is empty for a build, which needs none."""

    name: str
    summary: str
    options: tuple[Option, ...]
    operand: Value


_VALUES = {
    "CONTEXT": Value.FOLDER,
    "DIR": Value.FOLDER,
    "FILE": Value.FILE,
    "IMAGE": Value.IMAGE,
    "PATH": Value.FILE,
    "SOCKET": Value.FILE,
    "STAGE": Value.STAGE,
}


def completion_script(words: Sequence[str], version: str) -> str:
    """The script for the one shell that `words` name. Raises UsageError."""
    match list(words):
        case ["bash"]:
            return _bash(_commands(version))
        case ["zsh"]:
            return _zsh(_commands(version))
        case ["fish"]:
            return _fish(_commands(version))
        case _:
            raise UsageError(
                "pybuild completion wants the name of a shell: bash, zsh or fish",
                hint="in ~/.bashrc: source <(pybuild completion bash)",
            )


def _commands(version: str) -> list[Command]:
    """A build comes first."""
    build = _options(build_parser(version))
    return [
        Command("", "", build, Value.FOLDER),
        Command("build", "Build an image, which is what pybuild does anyway.", build, Value.FOLDER),
        _command("run", run_parser(version)),
        _command("explain", explain_parser(version)),
        _command("debug", debug_parser(version)),
        _command("lock", lock_parser(version)),
        _command("diff", diff_parser(version)),
        *(_command(name, store_parser(name, version)) for name in COMMANDS),
        _command("doctor", doctor_parser(version)),
        Command("completion", "Print a script that completes words.", (), Value.SHELL),
    ]


def _command(name: str, parser: argparse.ArgumentParser) -> Command:
    actions = parser._actions  # noqa: SLF001 - argparse has no public list
    operands = [action for action in actions if not action.option_strings]
    operand = _value(operands[0]) if operands else Value.NOTHING
    return Command(name, parser.description or "", _options(parser), operand)


def _options(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(action.option_strings),
            (action.help or "").replace("%%", "%"),
            _value(action),
            tuple(map(str, action.choices or ())),
        )
        for action in parser._actions  # noqa: SLF001 - as above
        if action.option_strings and action.help != argparse.SUPPRESS
    )


def _value(action: argparse.Action) -> Value:
    takes_none = action.metavar is None and not action.choices  # or =VALUE, which is not for tabs
    if action.nargs == 0 or (action.option_strings and takes_none):
        return Value.NOTHING
    return _VALUES.get(str(action.metavar), Value.OTHER)


# --- bash


_BASH = """\
# completes the words of pybuild in bash; in ~/.bashrc: source <(pybuild completion bash)
_pybuild_images() {
    pybuild images 2>/dev/null | awk 'NR > 1 && $1 != "<none>" { print $1 }'
}

_pybuild_stages() {
    local file="" folder=. before="" word
    for word in "${COMP_WORDS[@]:1}"; do
        case "$before" in
            -f|--file) file=$word ;;
            *) [[ $word != -* && -d $word ]] && folder=$word ;;
        esac
        [[ $word == "=" ]] || before=$word
    done
    sed -nE %(stages)s "${file:-$folder/Dockerfile}" 2>/dev/null
}

_pybuild_paths() {
    local IFS=$'\\n'
    COMPREPLY+=($(compgen "$1" -- "$2"))
    compopt -o filenames 2>/dev/null
}

_pybuild() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command="" options="" operand="" value=""
    # bash takes --option=value for three words
    if [[ $current == "=" ]]; then
        current=""
    elif [[ $before == "=" ]]; then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    if (( COMP_CWORD > 1 )); then command=${COMP_WORDS[1]}; fi
    case "$command" in
%(commands)s
    esac
    case "$value" in
        "") ;;
        file) _pybuild_paths -f "$current"; return ;;
        folder) _pybuild_paths -d "$current"; return ;;
        stage) COMPREPLY=($(compgen -W "$(_pybuild_stages)" -- "$current")); return ;;
        image) COMPREPLY=($(compgen -W "$(_pybuild_images)" -- "$current")); return ;;
        other) return ;;
        *) COMPREPLY=($(compgen -W "$value" -- "$current")); return ;;
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
        return
    fi
    if (( COMP_CWORD == 1 )); then COMPREPLY=($(compgen -W %(names)s -- "$current")); fi
    case "$operand" in
        folder) _pybuild_paths -d "$current" ;;
        image) COMPREPLY+=($(compgen -W "$(_pybuild_images)" -- "$current")) ;;
        shell) COMPREPLY+=($(compgen -W %(shells)s -- "$current")) ;;
    esac
    if declare -F __ltrim_colon_completions >/dev/null; then
        __ltrim_colon_completions "$current"
    fi
}
complete -F _pybuild pybuild
"""
# the names behind AS, in either case, for sed -E
_STAGES = (
    r"s/^[[:space:]]*[Ff][Rr][Oo][Mm][[:space:]].*[[:space:]][Aa][Ss][[:space:]]+"
    r"([^[:space:]]+)[[:space:]]*$/\1/p"
)


def _bash(commands: Sequence[Command]) -> str:
    first, *others = commands
    return _BASH % {
        "stages": shlex.quote(_STAGES),
        "commands": "\n".join([*map(_bash_case, others), _bash_case(first)]),
        "names": shlex.quote(" ".join(command.name for command in others)),
        "shells": shlex.quote(" ".join(SHELLS)),
    }


def _bash_case(command: Command) -> str:
    flags = " ".join(name for option in command.options for name in option.names)
    lines = [
        f"        {command.name or '*'})",
        f"            options={shlex.quote(flags)} operand={command.operand.value}",
        '            case "$before" in',
    ]
    for option in command.options:
        if option.value is not Value.NOTHING:
            value = " ".join(option.choices) or option.value.value
            lines.append(f"                {'|'.join(option.names)}) value={shlex.quote(value)} ;;")
    return "\n".join([*lines, "            esac ;;"])


# --- zsh


_ZSH = """\
#compdef pybuild
# completes the words of pybuild in zsh; save it as _pybuild in a folder of $fpath, or in
# ~/.zshrc, after compinit: source <(pybuild completion zsh)
_pybuild_images() {
    local -a found
    found=(${(f)"$(pybuild images 2>/dev/null | awk 'NR > 1 && $1 != "<none>" { print $1 }')"})
    compadd -a found
}

_pybuild_stages() {
    local -a found
    local file=${opt_args[--file]:-${opt_args[-f]:-Dockerfile}}
    found=(${(f)"$(sed -nE %(stages)s $file 2>/dev/null)"})
    compadd -a found
}

_pybuild_first() {
    local -a commands
    commands=(
%(names)s
    )
    _describe command commands
    _files -/
}

_pybuild() {
    local command=""
    (( CURRENT > 2 )) && command=$words[2]
    case $command in
%(commands)s
    esac
}

if [[ $funcstack[1] == _pybuild ]]; then _pybuild "$@"; else compdef _pybuild pybuild; fi
"""
_ZSH_ACTIONS = {
    Value.FILE: "_files",
    Value.FOLDER: "_files -/",
    Value.STAGE: "_pybuild_stages",
    Value.IMAGE: "_pybuild_images",
    Value.SHELL: f"({' '.join(SHELLS)})",
    Value.OTHER: " ",
}


def _zsh(commands: Sequence[Command]) -> str:
    first, *others = commands
    names = (
        f"        {shlex.quote(f'{command.name}:{_colons(command.summary)}')}" for command in others
    )
    return _ZSH % {
        "stages": shlex.quote(_STAGES),
        "names": "\n".join(names),
        "commands": "\n".join([*map(_zsh_case, others), _zsh_case(first)]),
    }


def _zsh_case(command: Command) -> str:
    specs = list(_zsh_specs(command))
    if command.name:
        # the command itself isn't one of its words
        start = ["            shift words", "            (( CURRENT-- ))"]
    else:
        start = []
        specs = [*specs[:-1], "1:context or command:_pybuild_first"]
    body = " \\\n                ".join(["_arguments -S", *map(shlex.quote, specs)])
    return "\n".join([f"        {command.name or '*'})", *start, f"            {body} ;;"])


def _zsh_specs(command: Command) -> Iterator[str]:
    """One spec of ``_arguments`` for each name of an option; at the end that of the operands."""
    for option in command.options:
        text = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
        for name in option.names:
            if option.value is Value.NOTHING:
                yield f"*{name}[{text}]"
                continue
            action = f"({' '.join(option.choices)})" if option.choices else ""
            spelled = f"{name}=" if name.startswith("--") else name
            yield f"*{spelled}[{text}]:value:{action or _ZSH_ACTIONS[option.value]}"
    yield f"*:operand:{_ZSH_ACTIONS.get(command.operand, ' ')}"


def _colons(text: str) -> str:
    return text.replace(":", r"\:")


# --- fish


_FISH = """\
# completes the words of pybuild in fish: pybuild completion fish > ~/.config/fish/completions/pybuild.fish
function __pybuild_images
    pybuild images 2>/dev/null | awk 'NR > 1 && $1 != "<none>" { print $1 }'
end

function __pybuild_stages
    set -l words (commandline -opc)
    set -l file Dockerfile
    for at in (seq 2 (count $words))
        if contains -- $words[(math $at - 1)] -f --file
            set file $words[$at]
        else if test -d $words[$at]
            set file $words[$at]/Dockerfile
        end
    end
    sed -nE %(stages)s $file 2>/dev/null
end

function __pybuild_builds
    not __fish_seen_subcommand_from %(names)s
end

complete -c pybuild -e
complete -c pybuild -f
%(lines)s
"""
_FISH_VALUES = {
    Value.NOTHING: "",
    Value.FILE: " -r -F",
    Value.FOLDER: " -x -a '(__fish_complete_directories)'",
    Value.STAGE: " -x -a '(__pybuild_stages)'",
    Value.IMAGE: " -x -a '(__pybuild_images)'",
    Value.SHELL: f" -x -a '{' '.join(SHELLS)}'",
    Value.OTHER: " -x",
}


def _fish(commands: Sequence[Command]) -> str:
    first, *others = commands
    names = " ".join(command.name for command in others)
    lines = []
    for command in others:
        told = f"-a {command.name} -d {_fish_quoted(command.summary)}"
        lines.append(f"complete -c pybuild -n __fish_use_subcommand {told}")
    for command in (first, *others):
        # a build is what has none of these words in front
        condition = f"__fish_seen_subcommand_from {command.name or names}"
        start = (
            f"complete -c pybuild -n {_fish_quoted(('' if command.name else 'not ') + condition)}"
        )
        lines += [f"{start}{_fish_option(option)}" for option in command.options]
        if command.operand is not Value.NOTHING:
            lines.append(f"{start}{_FISH_VALUES[command.operand].replace(' -x', '')}")
    return _FISH % {"stages": _fish_quoted(_STAGES), "names": names, "lines": "\n".join(lines)}


def _fish_option(option: Option) -> str:
    words = [
        f"-l {name.removeprefix('--')}" if name.startswith("--") else f"-s {name.removeprefix('-')}"
        for name in option.names
    ]
    value = f" -x -a '{' '.join(option.choices)}'" if option.choices else _FISH_VALUES[option.value]
    return f" {' '.join(words)} -d {_fish_quoted(option.help)}{value}"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
