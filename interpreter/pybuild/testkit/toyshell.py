"""A simulated process for the memory backend: a shell that knows the commands of tests.

It understands ``sh -c SCRIPT`` and single commands in exec form; quotes, ``$NAME``,
``&&``, ``||``, ``;``, ``>``, ``>>`` and ``>&2``; and the commands of :data:`COMMANDS`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pybuild.backend import Activity, Mount, Process
from pybuild.errors import BuildCancelled, CopyFailed
from pybuild.files.trees import NewEntry, Tree, resolve, walk
from pybuild.oci.layerindex import Entry, Kind
from pybuild.testkit.scratchpad import ReadOnly, Scratchpad

_SHELLS = ("sh", "/bin/sh", "bash", "/bin/bash")
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\\\n|\#[^\n]*)|(?P<operator>&&|\|\||;|\n|>&2|>>|>)
    |(?P<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s;&|>'"\\])+)""",
    re.VERBOSE,
)
_PIECE = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|(\\.)|([^'"\\]+)""", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+|\?))")


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a simulated process did: its exit code, and changes, WHITEOUT entries included.

    ``caches`` are all files of the cache mounts afterwards, by the mounts' ids.
    """

    exit_code: int
    entries: tuple[NewEntry, ...] = ()
    caches: Mapping[str, tuple[NewEntry, ...]] = field(default_factory=dict)


class _Exit(Exception):
    """The script ends with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class Shell:
    """The state of one process."""

    process: Process
    files: Scratchpad
    activity: Activity
    env: dict[str, str]
    cwd: bytes
    last: int = 0
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)

    def path(self, word: str) -> bytes:
        """Where `word` leads: relative to the working directory, the last link not followed."""
        raw = word.encode("utf-8", "surrogateescape")
        if not raw.startswith(b"/"):
            raw = self.cwd + b"/" + raw
        return resolve(self.files, raw, follow_last=False)

    def followed(self, word: str) -> bytes:
        return resolve(self.files, b"/" + self.path(word))

    def fail(self, message: str, code: int = 1) -> int:
        self.err += f"{message}\n".encode("utf-8", "surrogateescape")
        return code


def run(process: Process, tree: Tree, mounts: Sequence[Mount], activity: Activity) -> RunOutcome:
    """Simulate `process` on the file system `tree`."""
    files = Scratchpad(tree, mounts)
    cwd = resolve(files, process.cwd.encode())
    shell = Shell(process, files, activity, dict(process.env + process.secret_env), cwd)
    try:
        if process.args[0] in _SHELLS and process.args[1:2] == ("-c",):
            code = _script(shell, process.args[2])
        else:
            code = _command(shell, list(process.args), None)
    except _Exit as end:
        code = end.code
    activity.raise_if_cancelled()
    return RunOutcome(code, files.changes(), files.caches())


def _script(shell: Shell, script: str) -> int:
    previous = "\n"
    for operator, words in _split(script):
        skipped = (previous == "&&" and shell.last) or (previous == "||" and not shell.last)
        if words and not skipped:
            shell.last = _simple_command(shell, words)
        previous = operator if words or operator != "\n" else previous
    return shell.last


def _split(script: str) -> list[tuple[str, list[str]]]:
    """The commands of a script, each with the operator that follows it."""
    tokens: list[tuple[bool, str]] = []
    at = 0
    while at < len(script):
        match = _TOKEN.match(script, at)
        if match is None:
            raise _Exit(2)
        at = match.end()
        if match.lastgroup != "space":
            tokens.append((match.lastgroup == "operator", match.group()))
    tokens.append((True, "\n"))
    commands: list[tuple[str, list[str]]] = []
    for ends, group in groupby(tokens, lambda token: token in _ENDS):
        texts = [text for _, text in group]
        if ends:
            commands[-1:] = [(texts[0], commands[-1][1])] if commands else []
        else:
            commands.append(("\n", texts))
    return commands


_ENDS = {(True, text) for text in ("&&", "||", ";", "\n")}


def _expand(shell: Shell, word: str) -> str:
    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return str(shell.last) if name == "?" else shell.env.get(name, "")

    parts = []
    for piece in _PIECE.finditer(word):
        single, double, escaped, plain = piece.groups()
        if single is not None:
            parts.append(single)
        elif double is not None:
            parts.append(re.sub(r"\\([\"\\$])", r"\1", _VARIABLE.sub(variable, double)))
        elif escaped is not None:
            parts.append(escaped[1])
        else:
            parts.append(_VARIABLE.sub(variable, plain))
    return "".join(parts)


def _simple_command(shell: Shell, words: list[str]) -> int:
    target: tuple[str, str] | None = None
    args: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == ">&2":
            target = (word, "")
        elif word in (">", ">>"):
            target = (word, _expand(shell, next(rest, "")))
        else:
            args.append(_expand(shell, word))
    return _command(shell, args, target)


def _command(shell: Shell, args: list[str], target: tuple[str, str] | None) -> int:
    """Run one command and send its output where `target` says."""
    shell.out, shell.err = bytearray(), bytearray()
    command = COMMANDS.get(args[0].removeprefix("/bin/")) if args else _true
    try:
        if command is None:
            code = shell.fail(f"sh: {args[0]}: not found", 127)
        else:
            code = command(shell, args[1:])
        match target:
            case None:
                pass
            case (">&2", _):
                shell.err, shell.out = shell.err + shell.out, bytearray()
            case (operator, name):
                path = shell.followed(name)
                old = shell.files.read(path) if operator == ">>" else b""
                shell.files.write(path, (old or b"") + bytes(shell.out), shell.process.user)
                shell.out = bytearray()
    except (FileNotFoundError, IsADirectoryError, ReadOnly, CopyFailed) as error:
        code = shell.fail(f"{args[0] if args else 'sh'}: {error}")
        shell.out = shell.out if target is None else bytearray()
    if shell.out:
        shell.activity.log(1, bytes(shell.out))
    if shell.err:
        shell.activity.log(2, bytes(shell.err))
    return code


def _true(shell: Shell, args: list[str]) -> int:
    del shell, args
    return 0


def _false(shell: Shell, args: list[str]) -> int:
    del shell, args
    return 1


def _exit(shell: Shell, args: list[str]) -> int:
    raise _Exit(int(args[0]) if args else shell.last)


def _echo(shell: Shell, args: list[str]) -> int:
    newline = "\n"
    if args[:1] == ["-n"]:
        newline, args = "", args[1:]
    shell.out += (" ".join(args) + newline).encode("utf-8", "surrogateescape")
    return 0


def _cat(shell: Shell, args: list[str]) -> int:
    for name in args:
        found = shell.files.read(shell.followed(name))
        if found is None:
            found = _etc(shell).get(name)
        if found is None:
            return shell.fail(f"cat: can't open '{name}': No such file or directory")
        shell.out += found
    return 0  # without arguments: standard input is empty


def _etc(shell: Shell) -> Mapping[str, bytes]:
    lines = ["127.0.0.1\tlocalhost"]
    lines += [f"{host.address}\t{host.name}" for host in shell.process.extra_hosts]
    return {"/etc/hosts": ("\n".join(lines) + "\n").encode()}


def _env(shell: Shell, args: list[str]) -> int:
    del args
    return _echo(shell, ["\n".join(f"{name}={value}" for name, value in shell.env.items())])


def _id(shell: Shell, args: list[str]) -> int:
    user = shell.process.user
    match args:
        case ["-u"]:
            return _echo(shell, [str(user.uid)])
        case ["-g"]:
            return _echo(shell, [str(user.gid)])
        case ["-G"]:
            return _echo(shell, [" ".join(map(str, dict.fromkeys((user.gid, *user.groups))))])
        case _:
            return _echo(shell, [f"uid={user.uid} gid={user.gid}"])


def _pwd(shell: Shell, args: list[str]) -> int:
    del args
    return _echo(shell, ["/" + shell.cwd.decode("utf-8", "surrogateescape")])


def _cd(shell: Shell, args: list[str]) -> int:
    shell.cwd = shell.followed(args[0] if args else "/")
    return 0


def _hostname(shell: Shell, args: list[str]) -> int:
    del args
    return _echo(shell, [shell.process.hostname])


def _sleep(shell: Shell, args: list[str]) -> int:
    woken = threading.Event()
    with shell.activity.on_cancel(woken.set):
        if woken.wait(float(args[0])):
            raise BuildCancelled("the build was cancelled")
    return 0


def _touch(shell: Shell, args: list[str]) -> int:
    for name in args:
        path = shell.followed(name)
        shell.files.write(path, shell.files.read(path) or b"", shell.process.user)
    return 0


def _mkdir(shell: Shell, args: list[str]) -> int:
    parents = "-p" in args
    for name in (arg for arg in args if arg != "-p"):
        path = shell.followed(name)
        if shell.files.get(path) is not None:
            if not parents:
                return shell.fail(f"mkdir: can't create directory '{name}': File exists")
            continue
        folders = path.split(b"/")
        for depth in range(1 if parents else len(folders), len(folders) + 1):
            folder = b"/".join(folders[:depth])
            if shell.files.get(folder) is None:
                shell.files.make_folder(folder, shell.process.user)
    return 0


def _rm(shell: Shell, args: list[str]) -> int:
    options = "".join(arg[1:] for arg in args if arg.startswith("-"))
    for name in (arg for arg in args if not arg.startswith("-")):
        path = shell.path(name)
        entry = shell.files.get(path)
        if entry is None:
            if "f" not in options:
                return shell.fail(f"rm: can't remove '{name}': No such file or directory")
        elif entry.kind is Kind.DIRECTORY and "r" not in options:
            return shell.fail(f"rm: '{name}' is a directory")
        else:
            shell.files.remove(path)
    return 0


def _ln(shell: Shell, args: list[str]) -> int:
    user = shell.process.user
    match args:
        case ["-s", target, name]:
            link = target.encode("utf-8", "surrogateescape")
            shell.files.add(
                Entry(shell.path(name), Kind.SYMLINK, 0o777, user.uid, user.gid, link=link)
            )
        case [target, name]:
            shell.files.hard_link(shell.path(target), shell.path(name))
        case _:
            return shell.fail("ln: two names are needed")
    return 0


def _chmod(shell: Shell, args: list[str]) -> int:
    for name in args[1:]:
        shell.files.change(shell.followed(name), mode=int(args[0], 8))
    return 0


def _chown(shell: Shell, args: list[str]) -> int:
    uid, _, gid = args[0].partition(":")
    for name in args[1:]:
        shell.files.change(shell.followed(name), uid=int(uid), gid=int(gid or uid))
    return 0


def _ls(shell: Shell, args: list[str]) -> int:
    for name in args or ["."]:
        path = shell.followed(name)
        entry = shell.files.get(path)
        if entry is None:
            return shell.fail(f"ls: {name}: No such file or directory")
        names = shell.files.children(path) if entry.kind is Kind.DIRECTORY else [path]
        shell.out += b"".join(found + b"\n" for found in names)
    return 0


def _test(shell: Shell, args: list[str]) -> int:
    if args[-1:] == ["]"]:
        args = args[:-1]
    if args[:1] == ["!"]:
        return int(_test(shell, args[1:]) == 0)
    match args:
        case [("-e" | "-f" | "-d") as what, name]:
            entry = shell.files.get(shell.followed(name))
            wanted = {"-f": Kind.FILE, "-d": Kind.DIRECTORY}.get(what)
            return int(entry is None or wanted not in (None, entry.kind))
        case ["-S", name]:
            entry = shell.files.get(shell.followed(name))
            return int(entry is None or entry.kind is not Kind.SOCKET)
        case ["-L", name]:
            entry = shell.files.get(shell.path(name))
            return int(entry is None or entry.kind is not Kind.SYMLINK)
        case [left, "=", right]:
            return int(left != right)
        case _:
            return shell.fail("test: only -e, -f, -d, -L, -S and = are known", 2)


def _cp(shell: Shell, args: list[str]) -> int:
    source, target = shell.followed(args[-2]), shell.followed(args[-1])
    for entry in walk(shell.files, source):
        path = target + entry.path[len(source) :]
        if entry.kind is Kind.DIRECTORY:
            shell.files.make_folder(path, shell.process.user)
        else:
            shell.files.write(path, shell.files.read(entry.path) or b"", shell.process.user)
    return 0


COMMANDS: Mapping[str, Callable[[Shell, list[str]], int]] = {
    "true": _true,
    ":": _true,
    "set": _true,
    "false": _false,
    "exit": _exit,
    "echo": _echo,
    "cat": _cat,
    "env": _env,
    "id": _id,
    "pwd": _pwd,
    "cd": _cd,
    "hostname": _hostname,
    "sleep": _sleep,
    "touch": _touch,
    "mkdir": _mkdir,
    "rm": _rm,
    "ln": _ln,
    "chmod": _chmod,
    "chown": _chown,
    "cp": _cp,
    "ls": _ls,
    "test": _test,
    "[": _test,
}
