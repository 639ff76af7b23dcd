"""What a project means, told a second time: each step's inputs, and the files that come out.

Written from the Dockerfile reference, for the few forms that `projects` has, and with nothing
of the builder's own. Two steps with equal identities have the same inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from projects import (
    FOLDER,
    Arg,
    Copy,
    Env,
    Files,
    Inline,
    Instruction,
    Lend,
    Make,
    Metadata,
    Node,
    Project,
    Remove,
    Show,
    ShowMounted,
    Stage,
    Tell,
    User,
    Workdir,
    text_of,
)


class Impossible(Exception):
    """The instruction can't be carried out, or it isn't told what it does."""


Identity = tuple[object, ...]
"""A step's inputs: what it starts on, what it says, the variables and files that it sees."""


@dataclass(frozen=True, slots=True)
class ModelStep:
    """``changes`` is False where the step may find that there is nothing to do."""

    line: int
    identity: Identity
    changes: bool


@dataclass(frozen=True, slots=True)
class State:
    """A stage so far. ``variables`` are in the order in which they were last set.

    ``uid`` is None until a USER names it: root then, but said in another way.
    """

    files: Files
    identity: Identity
    has_shell: bool
    variables: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    uid: int | None = None

    @property
    def owner(self) -> int:
        return self.uid or 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a stage may read: the context without what is ignored, and stages' files."""

    context: Files
    stages: Mapping[int, Files]
    build_args: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """``steps`` and ``states`` are those of the stages that the last one needs."""

    steps: tuple[ModelStep, ...]
    states: Mapping[int, State]
    files: Files
    """Those of the image."""


def model_of(project: Project, bases: Mapping[int, Files]) -> Model:
    """What building `project` does. `bases` are the files of the base images' variants.

    Raises Impossible if the build must fail.
    """
    states: dict[int, State] = {}
    steps: list[ModelStep] = []
    for number in sorted(needed_stages(project.stages)):
        stage = project.stages[number]
        around = surroundings(project, states)
        state = first_state(stage, states, project.variant, bases)
        for position, instruction in enumerate(stage.instructions):
            after, changes = apply(instruction, state, around)
            if after.identity != state.identity:
                line = project.lines[number, position]
                steps.append(ModelStep(line, after.identity, changes))
            state = after
        states[number] = state
    return Model(tuple(steps), states, states[len(project.stages) - 1].files)


def surroundings(project: Project, states: Mapping[int, State]) -> Surroundings:
    """What a stage may read once these stages are built."""
    visible = without_ignored(project.files, project.ignored)
    stages = {number: state.files for number, state in states.items()}
    return Surroundings(visible, stages, project.build_args)


def first_state(
    stage: Stage, states: Mapping[int, State], variant: int, bases: Mapping[int, Files]
) -> State:
    match stage.base:
        case "scratch":
            return State({}, ("scratch",), has_shell=False)
        case "base":
            return State(bases[variant], ("base", variant), has_shell=True)
        case number:
            return states[number]


def needed_stages(stages: tuple[Stage, ...]) -> set[int]:
    """The numbers of the stages that the last one needs, itself among them."""
    needed: set[int] = set()
    pending = [len(stages) - 1]
    while pending:
        number = pending.pop()
        if number in needed:
            continue
        needed.add(number)
        stage = stages[number]
        pending += [stage.base] if isinstance(stage.base, int) else []
        for instruction in stage.instructions:
            if isinstance(instruction, Copy | ShowMounted) and instruction.stage is not None:
                pending.append(instruction.stage)
    return needed


def apply(instruction: Instruction, state: State, around: Surroundings) -> tuple[State, bool]:
    """The state afterwards, and whether the step surely changes files. Raises Impossible."""
    match instruction:
        case Arg(name, default):
            value = around.build_args.get(name, default)
            return (state if value is None else _with_variable(state, name, value)), False
        case Env(name, value):
            return _with_variable(state, name, _expand(value, state)), False
        case User(uid):
            return replace(state, uid=uid), False
        case Metadata():
            return state, False
        case Workdir(path):
            return _workdir(_expand(path, state), state)
        case Copy():
            return _copy(instruction, state, around)
        case Inline(body, destination):
            return _inline(_expand(body, state) + "\n", _expand(destination, state), state)
        case _:
            return _run(instruction, state, around), True


def _with_variable(state: State, name: str, value: str) -> State:
    others = {other: old for other, old in state.variables.items() if other != name}
    return replace(state, variables={**others, name: value})


def _expand(text: str, state: State) -> str:
    return re.sub(r"\$(\w+)", lambda found: state.variables.get(found[1], ""), text)


def _workdir(written: str, state: State) -> tuple[State, bool]:
    path = _absolute(written, state)
    if not path:
        return replace(state, workdir="/"), False
    staging = _Staging(state.files)
    for folder in _parents(f"{path}/x"):
        staging.make(folder, Node("folder", 0o755, uid=state.owner, gid=state.owner))
    identity = ("workdir", state.identity, path, state.uid, staging.facts())
    after = replace(state, files=staging.files(), identity=identity, workdir=f"/{path}")
    return after, bool(staging.placed)


def _inline(content: str, destination: str, state: State) -> tuple[State, bool]:
    name = "EOF" if destination.endswith("/") else ""
    target = _absolute(destination, state) + (f"/{name}" if name else "")
    staging = _Staging(state.files)
    staging.make_parents(target, FOLDER)
    there = staging.get(target)
    if there is not None and there.kind == "folder":
        raise Impossible("a folder is there, so the name of the heredoc would matter")
    staging.put(target, Node("file", 0o644, content.encode()))
    identity = ("inline", state.identity, content, target, name, staging.facts())
    return replace(state, files=staging.files(), identity=identity), True


def _copy(copy: Copy, state: State, around: Surroundings) -> tuple[State, bool]:
    source = around.context if copy.stage is None else around.stages[copy.stage]
    written = _expand(copy.destination, state)
    destination = _absolute(written, state)
    staging = _Staging(state.files, apart=copy.link and copy.chmod is None)
    placing = _Placing(copy, source, staging, destination, as_folder=written.endswith("/"))
    for pattern in copy.patterns:
        placing.add(pattern)
    options = (copy.instruction, copy.patterns, copy.stage is None, copy.chown, copy.chmod)
    said = (*options, copy.exclude, copy.parents, copy.link, written.endswith("/"), destination)
    identity = ("copy", state.identity, said, staging.facts())
    after = replace(state, files=staging.files(), identity=identity)
    return after, bool(staging.placed)


class _Staging:
    """Files with others put over them. `apart` sees nothing of those below."""

    def __init__(self, below: Files, *, apart: bool = False) -> None:
        self._below = below
        self._apart = apart
        self.placed: dict[str, Node] = {}

    def get(self, path: str) -> Node | None:
        return self.placed.get(path) or (None if self._apart else self._below.get(path))

    def put(self, path: str, node: Node) -> None:
        there = self._below.get(path)
        if there is not None and "folder" in {there.kind, node.kind} and there.kind != node.kind:
            raise Impossible(f"{path} would take the place of something else")
        if self.get(path) != node or node.kind != "folder":
            self.placed[path] = node

    def make(self, folder: str, node: Node) -> None:
        """Make `folder` as `node` unless it is there."""
        there = self._below.get(folder)
        if there is not None and there.kind != "folder":
            raise Impossible(f"{folder} is no folder")
        if self.get(folder) is None:
            self.placed[folder] = node

    def make_parents(self, path: str, node: Node) -> None:
        for folder in _parents(path):
            self.make(folder, node)

    def files(self) -> Files:
        return {**self._below, **self.placed}

    def facts(self) -> Identity:
        return tuple(sorted((path, _facts(node)) for path, node in self.placed.items()))


class _Placing:
    """The rules of COPY and ADD."""

    def __init__(
        self, copy: Copy, source: Files, staging: _Staging, destination: str, *, as_folder: bool
    ) -> None:
        self._copy = copy
        self._source = source
        self._staging = staging
        self._destination = destination
        self._as_folder = as_folder
        mode = 0o755 if copy.chmod is None else copy.chmod & 0o777
        self._made = Node("folder", mode, uid=copy.chown or 0, gid=copy.chown or 0)

    def add(self, pattern: str) -> None:
        pattern = pattern.strip("/").removeprefix("./")
        pattern = "" if pattern == "." else pattern
        if self._copy.parents:
            self._add_with_parents(pattern)
            return
        for path in self._matching(pattern):
            real = followed(self._source, path)
            node = FOLDER if not real else self._source.get(real)
            if node is None:
                raise Impossible(f"{path} is not there")
            if node.members and self._copy.instruction == "ADD":
                self._unpack(node)
            elif node.kind == "folder":
                self._add_folder(real)
            else:
                self._add_file(path, node)

    def _matching(self, pattern: str) -> list[str]:
        if "*" not in pattern:
            return [pattern]
        above, _, name = pattern.rpartition("/")
        if above and self._source.get(above, Node()).kind != "folder":
            raise Impossible(f"{above} is no folder")
        return [path for path in _children(self._source, above) if _name_fits(path, name)]

    def _add_file(self, path: str, node: Node) -> None:
        target = self._destination
        if self._as_folder:
            self._make_folder(target)
        there = self._staging.get(target)
        if not target or self._as_folder or (there is not None and there.kind == "folder"):
            target = f"{target}/{path.rpartition('/')[2]}".lstrip("/")
        self._staging.make_parents(target, self._made)
        self._staging.put(target, self._changed(node))

    def _add_folder(self, real: str) -> None:
        self._make_folder(self._destination)
        rules = (self._copy.exclude,) if self._copy.exclude else ()
        below = {
            path[len(real) :].lstrip("/"): node for path, node in _below(self._source, real).items()
        }
        for inside, node in sorted(without_ignored(below, rules).items()):
            self._staging.put(f"{self._destination}/{inside}".lstrip("/"), self._changed(node))

    def _add_with_parents(self, pattern: str) -> None:
        node = self._source.get(pattern)
        if node is None:
            raise Impossible(f"{pattern} is not there")
        if any(self._source[folder].kind != "folder" for folder in _parents(pattern)):
            raise Impossible("a link stands before the end")
        self._make_folder(self._destination)
        taken = {path: self._source[path] for path in _parents(pattern)} | {pattern: node}
        taken |= _below(self._source, pattern) if node.kind == "folder" else {}
        for path, each in sorted(taken.items()):
            target = f"{self._destination}/{path}".lstrip("/")
            there = self._staging.get(target)
            if path in _parents(pattern) and there is not None and there.kind == "folder":
                # a folder on the way keeps its owner, and takes the mode of the source
                each = replace(there, mode=each.mode)  # noqa: PLW2901 - the same folder
                self._staging.put(target, each)
                continue
            self._staging.put(target, self._changed(each))

    def _unpack(self, node: Node) -> None:
        self._staging.make_parents(
            f"{self._destination}/x".lstrip("/"), replace(self._made, mode=0o755)
        )
        for path, member in node.members:
            target = f"{self._destination}/{path}".lstrip("/")
            owner = (member.uid, member.gid)
            if self._copy.chown is not None:
                owner = (self._copy.chown, self._copy.chown)
            self._staging.put(target, replace(member, uid=owner[0], gid=owner[1]))

    def _make_folder(self, path: str) -> None:
        self._staging.make_parents(f"{path}/x".lstrip("/"), self._made)

    def _changed(self, node: Node) -> Node:
        if self._copy.chown is not None:
            node = replace(node, uid=self._copy.chown, gid=self._copy.chown)
        if self._copy.chmod is not None and node.kind != "link":
            node = replace(node, mode=self._copy.chmod)
        return node


_Run = Show | ShowMounted | Tell | Make | Remove | Lend


def _run(run: _Run, state: State, around: Surroundings) -> State:
    if not state.has_shell:
        raise Impossible("there is no shell")
    if state.uid and not isinstance(run, Tell | Lend):
        raise Impossible("what an ordinary user may do isn't told")
    workdir = state.workdir.strip("/")
    for folder in _parents(f"{workdir}/x".lstrip("/")):
        node = state.files.get(folder)
        if node is None or node.kind != "folder" or (state.uid and not node.mode & 1):
            raise Impossible("the working directory can't be entered")
    seen: Identity = ()
    match run:
        case Show(path, out):
            files = _shown(state.files, path, out, state)
        case ShowMounted(stage, folder, name, out):
            shown = around.context if stage is None else around.stages[stage]
            real = followed(shown, folder.strip("/"))
            if real not in shown or shown[real].kind != "folder":
                raise Impossible("the mount has no source")
            mounted = {real: shown[real], **_below(shown, real)}
            seen = tuple(sorted((path, _facts(node)) for path, node in mounted.items()))
            inside = {path[len(real) + 1 :]: mounted[path] for path in mounted if path != real}
            files = _written(state, out, _content(inside, name))
        case Tell(name, out):
            text = f"{name}={state.variables.get(name, '')}\n{state.owner}\n"
            files = _written(state, out, text.encode())
        case Make(folder, word, mode):
            files = _made(state, folder, word, mode)
        case Remove(path):
            files = _removed(state.files, path.strip("/"))
        case Lend(word, out):
            files = _written(state, out, f"{word}\n".encode())
    environment = tuple(state.variables.items())
    identity = ("run", state.identity, text_of(run).replace(f"from=s{_stage_of(run)},", ""))
    return replace(
        state,
        files=files,
        identity=(*identity, _stage_of(run) is None, environment, state.workdir, state.uid, seen),
    )


def _stage_of(run: _Run) -> int | None:
    """The number of the stage that a mount shows: which one it is doesn't matter."""
    return run.stage if isinstance(run, ShowMounted) else None


def _shown(files: Files, path: str, out: str, state: State) -> Files:
    absolute = path if path.startswith("/") else f"{state.workdir}/{path}"
    return _written(state, out, _content(files, absolute.strip("/")))


def _content(files: Files, path: str) -> bytes:
    try:
        found = files.get(followed(files, path))
    except Impossible:
        found = None
    return found.content if found is not None and found.kind == "file" else b"none\n"


def _written(state: State, out: str, content: bytes) -> Files:
    path = out.strip("/")
    there = state.files.get(path, Node(uid=state.owner, gid=state.owner))
    if there.kind != "file" or there.uid != state.owner:
        raise Impossible(f"{out} is somebody else's")
    if any(state.files.get(folder, there).kind != "folder" for folder in _parents(path)):
        raise Impossible(f"{out} is in no folder")
    return {**state.files, path: replace(there, content=content, members=())}


def _made(state: State, folder: str, word: str, mode: int) -> Files:
    path = f"{folder.strip('/')}/made"
    staging = _Staging(state.files)
    staging.make_parents(path, FOLDER)
    there = staging.get(path) or Node()
    if there.kind != "file":
        raise Impossible("it is no file")
    staging.put(path, Node("file", mode, f"{word}\n".encode(), there.uid, there.gid))
    return staging.files()


def _removed(files: Files, path: str) -> Files:
    if any(files[folder].kind == "link" for folder in _parents(path) if folder in files):
        raise Impossible("it is reached by a link")
    gone = {path, *_below(files, path)}
    return {other: node for other, node in files.items() if other not in gone}


def without_ignored(files: Files, rules: tuple[str, ...]) -> Files:
    """`files` without those that the rules of a .dockerignore exclude.

    A folder that is excluded stays if something below it does.
    """
    kept: dict[str, Node] = {}
    for path in files:
        if not _is_ignored(path, rules):
            kept |= {above: files[above] for above in (*_parents(path), path)}
    return kept


def _is_ignored(path: str, rules: tuple[str, ...]) -> bool:
    ignored = False
    for rule in rules:
        pattern = re.compile(_regex(rule.removeprefix("!")))
        if any(pattern.fullmatch(each) for each in (*_parents(path), path)):
            ignored = not rule.startswith("!")
    return ignored


def _regex(rule: str) -> str:
    text = re.escape(rule).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
    return text.replace(r"\?", "[^/]")


def followed(files: Files, path: str) -> str:
    """Where `path` leads once its links are followed. Raises Impossible for a loop."""
    for _ in range(20):
        for part in (*_parents(path), path):
            node = files.get(part)
            if node is None or node.kind != "link":
                continue
            target = node.content.decode()
            above = "" if target.startswith("/") else part.rpartition("/")[0]
            path = _normal(f"{above}/{target}/{path[len(part) :]}")
            break
        else:
            return path
    raise Impossible("links go round")


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _absolute(written: str, state: State) -> str:
    return _normal(written if written.startswith("/") else f"{state.workdir}/{written}")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _below(files: Files, path: str) -> Files:
    start = f"{path}/" if path else ""
    return {other: node for other, node in files.items() if other.startswith(start) and other}


def _children(files: Files, folder: str) -> Iterator[str]:
    return (path for path in sorted(files) if path.rpartition("/")[0] == folder)


def _name_fits(path: str, pattern: str) -> bool:
    return fnmatchcase(path.rpartition("/")[2], pattern)


def _facts(node: Node) -> Identity:
    """What of a node is an input of who reads it."""
    return (node.kind, node.mode, node.uid, node.gid, node.content)
