"""Random projects that can be built, and random changes to them, for hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from modelling import (
    State,
    apply,
    first_state,
    model_of,
    needed_stages,
    surroundings,
)
from placing import Impossible, without_ignored
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
    archive_of,
    link_to,
)

VARIANTS = 2
_CONTENTS = st.sampled_from([b"1\n", b"2\n", b"", b"longer than the others\n"])
_MODES = st.sampled_from([0o644, 0o600, 0o755, 0o640])
_FOLDER_MODES = st.sampled_from([0o755, 0o755, 0o700, 0o775])
_WORDS = st.sampled_from(["x", "y", "z"])
_NAMES = ["a.txt", "b.txt", "c.cfg", "n.md", "src/a.txt", "src/n.md", "src/sub/b.txt"]
_NAMES += ["src/sub/d.cfg", "docs/n.md", "docs/sub/a.txt"]
_LINKS = {"ln": "a.txt", "src/ln": "sub/b.txt", "docs/up": "../a.txt", "gone": "nowhere"}
_TARGETS = ["a.txt", "src", "n.md", "../b.txt"]
_ARCHIVE = "t.tar"
_FILE_NODES = st.builds(lambda mode, content: Node("file", mode, content), _MODES, _CONTENTS)
_ARCHIVES = st.builds(
    lambda content, uid: archive_of(
        {"in": FOLDER, "in/a.txt": Node("file", 0o640, content, uid=uid, gid=uid)}
    ),
    _CONTENTS,
    st.sampled_from([0, 7]),
)

_ARGS = ["A", "B"]
_ENVS = ["C", "D"]
_FOLDERS = ["/app", "/app/", "/app/src", "/data/", "/srv/d$A/", "rel/", "rel"]
_PLACES = [*_FOLDERS, "/app/one.txt", "/data/made", "two.txt"]
_PARENTS = ["/app/", "/app/one", "/"]
_PATTERNS = [".", "*.txt", "src/*.txt", "docs/*", "s*", "nothing*"]
_OUTS = st.sampled_from(["/tmp/o1", "/tmp/o2", "/tmp/o3", "/tmp/u1"])
_READ = ["/app/a.txt", "/app/src/a.txt", "/data/made", "/tmp/o1", "a.txt", "/app/one.txt"]
_READ += ["/app/ln", "/app/in/a.txt", "/etc/variant"]
_RULES = ["*.md", "**/*.md", "docs", "!docs/n.md", "src/sub", "b.*", "!**/b.txt", "*.cfg"]


@cache
def _maybe(values: tuple[int, ...]) -> SearchStrategy[int | None]:
    return st.sampled_from([None, None, None, *values])


@st.composite
def _contexts(draw: DrawFn) -> Files:
    names = draw(st.sets(st.sampled_from([*_NAMES, *_LINKS, _ARCHIVE]), min_size=2, max_size=9))
    files: dict[str, Node] = {}
    for name in sorted({"a.txt", "src/a.txt", *names}):
        files |= _with_parents(files, name, draw(_node_at(name)))
    for path, node in files.items():
        if node.kind == "folder":
            files[path] = replace(node, mode=draw(_FOLDER_MODES))
    return files


def _node_at(name: str) -> SearchStrategy[Node]:
    if name in _LINKS:
        return st.just(link_to(_LINKS[name]))
    return _ARCHIVES if name == _ARCHIVE else _FILE_NODES


def _with_parents(files: Files, path: str, node: Node) -> Files:
    parts = path.split("/")
    above = {"/".join(parts[:depth]): FOLDER for depth in range(1, len(parts))}
    return {**above, **files, path: node}


@dataclass(frozen=True, slots=True)
class _Readable:
    """The paths that an instruction may read: in the context, in its own stage, in others."""

    context: tuple[str, ...]
    own: tuple[str, ...]
    stages: Mapping[int, tuple[str, ...]]


def _sources(readable: _Readable, draw: DrawFn) -> tuple[int | None, list[str]]:
    """The context or one of the stages, and what can be copied from there."""
    numbers = [number for number, paths in readable.stages.items() if paths]
    if numbers and draw(st.booleans()):
        number = draw(st.sampled_from(numbers))
        return number, [f"/{path}" for path in readable.stages[number]]
    return None, [*readable.context, *_PATTERNS]


@st.composite
def _copies(draw: DrawFn, readable: _Readable) -> Copy:
    stage, pool = _sources(readable, draw)
    patterns = tuple(draw(st.lists(st.sampled_from(pool), min_size=1, max_size=2)))
    flag = draw(st.sampled_from(["", "", "exclude", "parents", "link", "add"]))
    if flag in {"exclude", "parents"}:
        patterns = patterns[:1]
    places = _PLACES if len(patterns) == 1 else [each for each in _FOLDERS if each.endswith("/")]
    copied = Copy(
        patterns,
        draw(st.sampled_from(places)),
        stage=stage,
        chown=draw(_maybe((0, 101))),
        chmod=draw(_maybe((0o640, 0o755))),
    )
    match flag:
        case "exclude" if "*" not in patterns[0]:
            return replace(copied, exclude=draw(st.sampled_from(["*.md", "**/*.txt", "sub"])))
        case "parents" if "*" not in patterns[0] and patterns != (".",):
            return replace(copied, parents=True, destination=draw(st.sampled_from(_PARENTS)))
        case "link":
            return replace(copied, link=True)
        case "add" if stage is None:
            archives = (_ARCHIVE,) if _ARCHIVE in readable.context else patterns
            return replace(copied, instruction="ADD", patterns=archives)
        case _:
            return copied


@st.composite
def _copies_of_stages(draw: DrawFn, readable: _Readable) -> Copy:
    """A COPY from the stage before, if there is one that has anything."""
    numbers = [number for number, paths in readable.stages.items() if paths]
    if not numbers:
        return draw(_copies(readable))
    path = draw(st.sampled_from(readable.stages[max(numbers)]))
    link = draw(st.booleans())
    return Copy((f"/{path}",), draw(st.sampled_from(_FOLDERS)), stage=max(numbers), link=link)


@st.composite
def _instructions(draw: DrawFn, readable: _Readable) -> Instruction:
    make = draw(st.sampled_from(_KINDS))
    return draw(make(readable))


def _inlines(readable: _Readable) -> SearchStrategy[Inline]:
    del readable
    places = st.sampled_from(["/app/one.txt", "/data/", "/in.txt"])
    return st.builds(Inline, st.sampled_from(["text", "A is $A", "two\nlines"]), places)


def _settings(readable: _Readable) -> SearchStrategy[Instruction]:
    """What makes no step, but for WORKDIR."""
    del readable
    metadata = st.sampled_from(["LABEL a=1", "LABEL a=2", 'CMD ["x"]', "EXPOSE 80"])
    return st.one_of(
        st.builds(Arg, st.sampled_from(_ARGS), st.none() | _WORDS),
        st.builds(Env, st.sampled_from(_ENVS), st.sampled_from(["x", "y", "$A", "p$B"])),
        st.builds(Workdir, st.sampled_from(["/app", "/w/$A", "sub", "/", "/tmp"])),
        st.builds(User, st.sampled_from([101, 0])),
        st.builds(Metadata, metadata),
    )


def _shows(readable: _Readable) -> SearchStrategy[Show]:
    paths = [*_READ, *(f"/{path}" for path in readable.own)]
    return st.builds(Show, st.sampled_from(paths), _OUTS, st.booleans())


@st.composite
def _mounted(draw: DrawFn, readable: _Readable) -> ShowMounted:
    stage, pool = _sources(readable, draw)
    inside = [path for path in pool if "/" in path.strip("/") and "*" not in path]
    folder, _, name = draw(st.sampled_from(inside or ["src/a.txt"])).rpartition("/")
    return ShowMounted(stage, folder, name, draw(_OUTS))


def _others(readable: _Readable) -> SearchStrategy[Instruction]:
    removable = [f"/{path}" for path in readable.own if path != "tmp"] or ["/app"]
    modes = st.sampled_from([0o600, 0o644])
    return st.one_of(
        st.builds(Tell, st.sampled_from([*_ARGS, *_ENVS]), _OUTS),
        st.builds(Make, st.sampled_from(["/app/sub", "/data", "/app"]), _WORDS, modes),
        st.builds(Remove, st.sampled_from(removable)),
        st.builds(Lend, _WORDS, _OUTS),
    )


_KINDS = [_copies, _copies, _copies, _settings, _settings, _shows, _mounted, _others, _others]
_KINDS += [_inlines]


@st.composite
def projects(draw: DrawFn, bases: Mapping[int, Files]) -> Project:
    """A project that can be built on the base images' contents `bases`."""
    context = draw(_contexts())
    ignored = tuple(draw(st.lists(st.sampled_from(_RULES), max_size=2)))
    project = Project(
        context,
        (),
        build_args={"A": "given"} if draw(st.booleans()) else {},
        ignored=ignored,
        variant=draw(st.integers(0, VARIANTS - 1)),
    )
    states: dict[int, State] = {}
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["base", "base", "base", "stage", "scratch"]))
        base = draw(st.integers(0, number - 1)) if kind == "stage" and number else "base"
        project = replace(
            project, stages=(*project.stages, Stage("scratch" if kind == "scratch" else base, ()))
        )
        states[number] = first_state(project.stages[number], states, project.variant, bases)
        for position in range(draw(st.integers(2, 6))):
            around = surroundings(project, states)
            readable = _readable(project, states, number, bases)
            # many stages should be of use to the last one
            make = _copies_of_stages if position == 0 else _instructions
            instruction = draw(make(readable))
            with suppress(Impossible):
                states[number], _ = apply(instruction, states[number], around)
                project = _with_line(project, number, instruction)
    return project


def _with_line(project: Project, number: int, instruction: Instruction) -> Project:
    stages = list(project.stages)
    lines = (*stages[number].instructions, instruction)
    stages[number] = replace(stages[number], instructions=lines)
    return replace(project, stages=tuple(stages))


def _readable(
    project: Project, states: Mapping[int, State], number: int, bases: Mapping[int, Files]
) -> _Readable:
    """What stage `number` may read, with whatever the base image has left out."""
    base = bases[project.variant]

    def own(state: State) -> tuple[str, ...]:
        return tuple(path for path, node in state.files.items() if base.get(path) is not node)

    others = {other: own(state) for other, state in states.items() if other < number}
    context = tuple(without_ignored(project.files, project.ignored))
    mine = own(states[number]) if number in states else ()
    return _Readable(context, mine, others)


@st.composite
def lending_projects(draw: DrawFn, bases: Mapping[int, Files]) -> Project:
    """A project with a RUN that fails if the secret is bad."""
    project = draw(projects(bases))
    places = [(number, 0) for number in needed_stages(project.stages)]
    places += [(n, at + 1) for n, at in project.lines if n in needed_stages(project.stages)]
    lending = [_with_lending(project, number, at) for number, at in sorted(places)]
    possible = [each for each in lending if _is_possible(each, bases)]
    assume(possible)
    return draw(st.sampled_from(possible))


def _with_lending(project: Project, number: int, at: int) -> Project:
    stage = project.stages[number]
    lines = (*stage.instructions[:at], Lend("lent", "/tmp/lent"), *stage.instructions[at:])
    stages = list(project.stages)
    stages[number] = replace(stage, instructions=lines)
    return replace(project, stages=tuple(stages))


def _is_possible(project: Project, bases: Mapping[int, Files]) -> bool:
    try:
        model_of(project, bases)
    except Impossible:
        return False
    return True


@st.composite
def changes(draw: DrawFn, project: Project, bases: Mapping[int, Files]) -> tuple[str, Project]:
    """A single change to `project`, which can be built: what it is, and what comes out."""
    kind = draw(st.sampled_from([*_CONTEXT_CHANGES, *_DOCKERFILE_CHANGES * 2, *_OPTION_CHANGES]))
    if kind in _CONTEXT_CHANGES:
        return kind, draw(_changed_context(project, kind))
    if kind in _DOCKERFILE_CHANGES:
        return kind, draw(_changed_dockerfile(project, kind, bases))
    return kind, draw(_changed_options(project, kind))


_CONTEXT_CHANGES = ["content", "mode", "link", "add", "remove", "rename", "touch", "ignore"]
_DOCKERFILE_CHANGES = ["replace", "insert", "delete", "swap", "owner"]
_OPTION_CHANGES = [
    "variable",
    "variable",
    "variable",
    "base",
    "secret",
    "secret",
    "label",
    "nothing",
]


@st.composite
def _changed_context(draw: DrawFn, project: Project, kind: str) -> Project:
    files = dict(project.context)
    path = draw(st.sampled_from(sorted(p for p, n in files.items() if n.kind == "file")))
    match kind:
        case "content":
            files[path] = draw(_node_at(path).filter(lambda node: node != files[path]))
        case "mode":
            path = draw(st.sampled_from(sorted(p for p, n in files.items() if n.kind != "link")))
            modes = _FOLDER_MODES if files[path].kind == "folder" else _MODES
            files[path] = replace(files[path], mode=draw(modes))
        case "link":
            links = sorted(p for p, n in files.items() if n.kind == "link")
            if links:
                files[draw(st.sampled_from(links))] = link_to(draw(st.sampled_from(_TARGETS)))
        case "add":
            name = draw(st.sampled_from([*_NAMES, *_LINKS, "new.txt", "src/new.txt", "new/f"]))
            if name not in files:
                files |= _with_parents(files, name, draw(_node_at(name)))
        case "remove":
            del files[path]
        case "rename":
            above, slash, _ = path.rpartition("/")
            files[f"{above}{slash}renamed.txt"] = files.pop(path)
        case "touch":
            touched = draw(st.sampled_from(sorted(files)))
            return replace(project, touched=frozenset({touched}))
        case _:
            rules = tuple(draw(st.lists(st.sampled_from(_RULES), max_size=2)))
            return replace(project, ignored=rules)
    return replace(project, context=files)


@st.composite
def _changed_dockerfile(
    draw: DrawFn, project: Project, kind: str, bases: Mapping[int, Files]
) -> Project:
    number = draw(st.integers(0, len(project.stages) - 1))
    stage = project.stages[number]
    lines = list(stage.instructions)
    states = model_of(project, bases).states
    readable = _readable(project, states, number, bases)
    at = draw(st.integers(0, max(0, len(lines) - 1)))
    match kind:
        case "insert":
            lines.insert(at, draw(_instructions(readable)))
        case "replace" if lines:
            lines[at] = draw(_instructions(readable))
        case "delete" if lines:
            del lines[at]
        case "owner":
            for place, line in enumerate(lines):
                if isinstance(line, Copy):
                    lines[place] = replace(line, chown=None if line.chown else 101)
        case _ if len(lines) > 1:
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
    stages = list(project.stages)
    stages[number] = replace(stage, instructions=tuple(lines))
    return replace(project, stages=tuple(stages))


@st.composite
def _changed_options(draw: DrawFn, project: Project, kind: str) -> Project:
    match kind:
        case "variable":
            return draw(_changed_variable(project))
        case "base":
            return replace(project, variant=(project.variant + 1) % VARIANTS)
        case "secret":
            return replace(project, secret="another")
        case "label":
            return replace(project, label="another")
        case _:
            return project


@st.composite
def _changed_variable(draw: DrawFn, project: Project) -> Project:
    """Another value of an ARG or ENV; of an ARG by its default or from outside."""
    found = [
        (number, at, line)
        for number in sorted(needed_stages(project.stages))
        for at, line in enumerate(project.stages[number].instructions)
        if isinstance(line, Arg | Env)
    ]
    if not found:
        return replace(project, build_args={"A": "unused"})
    number, at, line = draw(st.sampled_from(found))
    value = draw(_WORDS)
    if isinstance(line, Arg) and draw(st.booleans()):
        return replace(project, build_args={**project.build_args, line.name: value})
    changed = replace(line, default=value) if isinstance(line, Arg) else replace(line, value=value)
    stage = project.stages[number]
    lines = (*stage.instructions[:at], changed, *stage.instructions[at + 1 :])
    stages = list(project.stages)
    stages[number] = replace(stage, instructions=lines)
    return replace(project, stages=tuple(stages))
