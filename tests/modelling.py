"""What a project means, told a second time: each step's inputs, and the files that come out.

Written from the Dockerfile reference, for the few forms that `projects` has, and with nothing
of the builder's own. Two steps with equal identities have the same inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from placing import (
    Identity,
    Impossible,
    Placing,
    Staging,
    facts_of,
    files_below,
    followed,
    normal,
    parents_of,
    without_ignored,
)
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
    staging = Staging(state.files)
    for folder in parents_of(f"{path}/x"):
        staging.make(folder, Node("folder", 0o755, uid=state.owner, gid=state.owner))
    identity = ("workdir", state.identity, path, state.uid, staging.facts())
    after = replace(state, files=staging.files(), identity=identity, workdir=f"/{path}")
    return after, bool(staging.placed)


def _inline(content: str, destination: str, state: State) -> tuple[State, bool]:
    name = "EOF" if destination.endswith("/") else ""
    target = _absolute(destination, state) + (f"/{name}" if name else "")
    staging = Staging(state.files)
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
    staging = Staging(state.files, apart=copy.link and copy.chmod is None)
    placing = Placing(copy, source, staging, destination, as_folder=written.endswith("/"))
    for pattern in copy.patterns:
        placing.add(pattern)
    options = (copy.instruction, copy.patterns, copy.stage is None, copy.chown, copy.chmod)
    said = (*options, copy.exclude, copy.parents, copy.link, written.endswith("/"), destination)
    identity = ("copy", state.identity, said, staging.facts())
    after = replace(state, files=staging.files(), identity=identity)
    return after, bool(staging.placed)


_Run = Show | ShowMounted | Tell | Make | Remove | Lend


def _run(run: _Run, state: State, around: Surroundings) -> State:
    if not state.has_shell:
        raise Impossible("there is no shell")
    if state.uid and not isinstance(run, Tell):
        raise Impossible("what an ordinary user may do isn't told")
    workdir = state.workdir.strip("/")
    for folder in parents_of(f"{workdir}/x".lstrip("/")):
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
            mounted = {real: shown[real], **files_below(shown, real)}
            seen = tuple(sorted((path, facts_of(node)) for path, node in mounted.items()))
            inside = {f"mnt/seen{path[len(real) :]}": node for path, node in mounted.items()}
            files = _written(state, out, _content({**state.files, **inside}, f"mnt/seen/{name}"))
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
    read = _absolute(path, state)
    if followed(files, read) == out.strip("/"):
        raise Impossible("a shell empties a file before it is read")
    return _written(state, out, _content(files, read))


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
    if any(state.files.get(folder, there).kind != "folder" for folder in parents_of(path)):
        raise Impossible(f"{out} is in no folder")
    return {**state.files, path: replace(there, content=content, members=())}


def _made(state: State, folder: str, word: str, mode: int) -> Files:
    path = f"{folder.strip('/')}/made"
    staging = Staging(state.files)
    staging.make_parents(path, FOLDER)
    there = staging.get(path) or Node()
    if there.kind != "file":
        raise Impossible("it is no file")
    staging.put(path, Node("file", mode, f"{word}\n".encode(), there.uid, there.gid))
    return staging.files()


def _removed(files: Files, path: str) -> Files:
    if any(files[folder].kind == "link" for folder in parents_of(path) if folder in files):
        raise Impossible("it is reached by a link")
    gone = {path, *files_below(files, path)}
    return {other: node for other, node in files.items() if other not in gone}


def _absolute(written: str, state: State) -> str:
    return normal(written if written.startswith("/") else f"{state.workdir}/{written}")
