"""The rules of the house, checked on the code itself: who may import, read and call what."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (ROOT / "interpreter", ROOT / "backend_containerd", ROOT / "backend_embedded")

# What each part of pybuild may import of pybuild, itself included.
LAYERS = {
    "errors": set[str](),
    "oci": {"errors", "oci"},
    "dockerfile": {"errors", "dockerfile"},
    "files": {"errors", "oci", "files"},
    "unpacking": {"errors", "oci", "files", "unpacking"},
    "sandbox": {"errors", "files", "backend", "sandbox"},
    "imagestore": {"errors", "oci"},
    "cacheexchange": {"oci"},
    "keptlayers": set[str](),
    "secrets": set[str](),
    "lendingflags": {"errors"},
    "lentvalues": {"errors", "lendingflags"},
    "backend": {"errors", "oci", "files", "imagestore", "cacheexchange"},
    "remotes": {"errors", "oci", "files", "secrets", "remotes"},
    "plan": {"errors", "oci", "dockerfile", "backend", "remotes", "plan"},
    "cacheslots": {"backend"},
    "run": {
        *("errors", "oci", "dockerfile", "files", "backend", "remotes", "plan", "run", "secrets"),
        "keptlayers",
    },
}
LAYERS["export"] = {"errors", "oci", "files", "backend", "backends", "run", "export"}
LAYERS["cachetransfer"] = {
    *("errors", "oci", "files", "backend", "cacheexchange", "plan", "run", "export"),
    "cachetransfer",
}
BELOW_API = {*LAYERS, "backends"}
LAYERS |= {
    "values": set[str](),
    "backends": {"errors", "backend"},  # those of its table are loaded by name
    "diagnostics": {"errors", "remotes", "run"},
    "options": {"errors", "oci", "backend", "plan", "export", "lendingflags"},
    "lookups": {"errors", "oci", "files", "backend", "backends", "plan", "run"},
    "lockfile": {"errors", "oci", "remotes"},
    "pinning": {
        *("errors", "oci", "backend", "plan", "remotes", "run", "lookups", "lockfile"),
    },
    "planning": {
        *("errors", "oci", "dockerfile", "remotes", "plan", "run", "lookups", "pinning"),
    },
    "requirements": {"errors", "oci", "sandbox", "backend", "plan", "run"},
    "building": {*BELOW_API, "planning"},
    "api": {*BELOW_API, "building", "options", "lookups", "lockfile", "planning", "requirements"},
    "locking": {*BELOW_API, "options", "lookups", "lockfile", "pinning", "planning"},
    "running": BELOW_API,
    "image": {*BELOW_API, "running"},
    "builder": {*BELOW_API, "api", "image", "options"},
    "imagefactory": {*BELOW_API, "builder", "image"},
    "pytest_plugin": {*BELOW_API, "builder", "imagefactory"},
    "runcommand": {*BELOW_API, "arguments", "flagvalues"},
    "standardstreams": {"errors", "run", "pipes"},
    "terminal": {"errors"},
    "stepshell": {"errors", "oci", "files", "backend", "run", "terminal"},
    "debugcommand": {*BELOW_API, "arguments", "running", "stepshell"},
    "pipes": {"errors", "run"},
    "checks": {*BELOW_API, "options", "lookups", "planning"},
    "reports": {*BELOW_API, "checks"},
    "explanations": {*BELOW_API, "options"},
    "htmlreport": {"errors", "oci", "dockerfile", "files", "run"},
    "explaincommand": {*BELOW_API, "arguments", "explanations"},
    "imagediff": {"files", "oci"},
    "diffcommand": {*BELOW_API, "arguments", "imagediff", "storecommands"},
    "doctor": {"errors", "backend", "backends", "oci"},
    "__init__": {
        *BELOW_API,
        *("api", "builder", "checks", "explanations", "htmlreport", "image", "lockfile", "locking"),
    },
    "flagvalues": {"errors", "backend"},
    "arguments": {"errors", "backend", "export", "flagvalues", "lendingflags", "cachetransfer"},
    "environment": {*BELOW_API, "arguments", "flagvalues"},
    "storecommands": {*BELOW_API, "arguments", "flagvalues"},
    "resultfiles": {"errors", "oci", "arguments", "run"},
    "completion": {
        *(
            "debugcommand",
            "errors",
            "arguments",
            "diffcommand",
            "explaincommand",
            "lockcommand",
            "runcommand",
            "storecommands",
        ),
    },
    "lockcommand": {*BELOW_API, "arguments", "environment", "lockfile", "locking"},
    "cli": {
        *BELOW_API,
        *(
            "api",
            "arguments",
            "checks",
            "completion",
            "debugcommand",
            "diagnostics",
            "diffcommand",
            "doctor",
            "environment",
            "explaincommand",
            "flagvalues",
            "htmlreport",
            "lockcommand",
            "pipes",
            "reports",
            "resultfiles",
            "standardstreams",
            "stepshell",
            "storecommands",
            "terminal",
            "runcommand",
            "running",
            "__init__",
        ),
    },
    "__main__": {"cli"},
    "testkit": {*BELOW_API, "api", "testkit", "__init__"},
    "pybuild_containerd": {
        *("errors", "oci", "files", "sandbox", "backend", "imagestore", "cacheslots"),
        *("cacheexchange", "unpacking"),
    },
    "pybuild_embedded": {
        *("errors", "oci", "files", "sandbox", "backend", "imagestore", "cacheslots"),
        *("cacheexchange", "keptlayers", "unpacking"),
    },
}
BACKENDS = {"pybuild_containerd", "pybuild_embedded"}

# Imports for annotations alone, of a module above or a heavy one: (module, imported).
FOR_TYPES_ONLY = {
    ("pybuild.cacheexchange", "pybuild.backend"),  # a part of the same contract
    ("pybuild.keptlayers", "pybuild.backend"),
    ("pybuild.backend", "pybuild.keptlayers"),  # once a step fails
    ("pybuild_embedded.backend", "pybuild.keptlayers"),
    ("pybuild.api", "pybuild.cachetransfer.caches"),  # once a cache is asked for
    ("pybuild.api", "pybuild.cachetransfer.places"),
    ("pybuild.arguments", "pybuild.cachetransfer.places"),
    ("pybuild_embedded.backend", "pybuild_embedded.exchange"),
    ("pybuild.oci.layerwriter", "pybuild.files.trees"),  # an entry to be written has its content
    ("pybuild.remotes.fetching", "pybuild.remotes.web"),  # loaded once something is fetched
    ("pybuild.backend", "pybuild.cacheexchange"),  # once caches are taken or written
    ("pybuild_embedded.backend", "pybuild.cacheexchange"),
    ("pybuild.backend", "pybuild.files.layout"),  # once an image is taken from one
    ("pybuild.files.context", "pybuild.files.archives"),  # once a context is one
    ("pybuild.files.context", "pybuild.files.spool"),
    ("pybuild.files.context", "pybuild.oci.tarformat"),
    ("pybuild.files.layerfiles", "pybuild.files.smallfiles"),  # once a content is read
    ("pybuild.files.copying", "pybuild.files.archives"),  # once one is unpacked
    ("pybuild.api", "pybuild.oci.registry"),  # once something is pushed
    ("pybuild.api", "pybuild.lockfile"),  # once a lock file is used
    ("pybuild.planning", "pybuild.lockfile"),
    ("pybuild.builder", "pybuild.cachetransfer.places"),
    ("pybuild.builder", "pybuild.lockfile"),
    ("pybuild.builder", "pybuild.oci.registry"),
    ("pybuild.image", "pybuild.oci.registry"),
    ("pybuild.pytest_plugin", "pybuild.builder"),  # once a test wants an image
    ("pybuild.pytest_plugin", "pybuild.imagefactory"),
    ("pybuild.errors", "pybuild.files.filesystem"),  # a step's error leads to its files
    ("pybuild.api", "pybuild.run.failedsteps"),  # once a step's files are kept
    ("pybuild.run.onfailure", "pybuild.run.failedsteps"),
    ("pybuild.api", "pybuild.run.failedruns"),  # for the command line
    ("pybuild.run.onfailure", "pybuild.run.failedruns"),
    ("pybuild.run.inputs", "pybuild.files.memorycontext"),  # once a context is in memory
    ("pybuild.run.contexts", "pybuild.files.memorycontext"),
    ("pybuild.environment", "pybuild.oci.registry"),
    ("pybuild.export.exporting", "pybuild.oci.registry"),
    ("pybuild.cli", "pybuild.checks"),  # once it is asked for
    ("pybuild.cli", "pybuild.run.failedruns"),
    ("pybuild.cli", "pybuild.stepshell"),
    ("pybuild_containerd.backend", "pybuild.files.layout"),  # once something is pulled
    ("pybuild_containerd.backend", "pybuild.oci.auth"),
    ("pybuild_containerd.backend", "pybuild.oci.registry"),
    ("pybuild_containerd.filling", "pybuild.unpacking.layerplan"),  # once a snapshot is filled
    ("pybuild_containerd.pulling", "pybuild.oci.arriving"),
    ("pybuild_containerd.pulling", "pybuild.oci.pull"),
    ("pybuild_containerd.pulling", "pybuild.oci.registry"),
    ("pybuild_containerd.unpack", "pybuild_containerd.arrivingfiles"),
    ("pybuild.errors", "pybuild.run.miss"),  # once a step misses
    ("pybuild.run.activity", "pybuild.run.miss"),
    ("pybuild.run.events", "pybuild.run.miss"),
    ("pybuild.run.events", "pybuild.oci.layerindex"),  # once there is an image
    ("pybuild.run.misses", "pybuild.run.miss"),
    ("pybuild.run.misses", "pybuild.run.explaining.explainer"),
    ("pybuild.run.misses", "pybuild.run.explaining.projects"),
    ("pybuild.run.result", "pybuild.run.miss"),
    ("pybuild.run.onestep", "pybuild.run.knownkeys"),  # once a step reads a folder
    ("pybuild.run.stage", "pybuild.run.miss"),
    ("pybuild.building", "pybuild.run.explaining.projects"),
    ("pybuild.building", "pybuild.cachetransfer.caches"),
    ("pybuild.building", "pybuild.oci.registry"),
    ("pybuild_embedded.backend", "pybuild.oci.registry"),  # once something is pulled
    ("pybuild_embedded.backend", "pybuild.files.layout"),
    ("pybuild_embedded.fetching", "pybuild.oci.registry"),
    ("pybuild_embedded.fetching", "pybuild.oci.pull"),
    ("pybuild_embedded.fetching", "pybuild_embedded.plaincopies"),  # before something is run
    ("pybuild_embedded.space", "pybuild_embedded.plaincopies"),
    ("pybuild_embedded.space", "pybuild.files.storedpieces"),  # for a COPY
    ("pybuild_embedded.layers", "pybuild_embedded.pending"),  # once something is run
    ("pybuild_embedded.pending", "pybuild_embedded.layers"),
    ("pybuild_embedded.machine", "pybuild.sandbox.client"),
    ("pybuild_embedded.machine", "pybuild.sandbox.runtimes"),
    ("pybuild_embedded.machine", "pybuild_embedded.workers"),
    ("pybuild_embedded.layers", "pybuild_embedded.copies"),
    ("pybuild_embedded.layers", "pybuild_embedded.stepfiles"),
}

# Imported in functions, or in modules that are only imported in functions.
HEAVY = {"grpc", "google", "urllib3", "tqdm", "isal", "backports", "compression"}
HEAVY_MODULES = {
    "grpc": {"pybuild_containerd.client"},
    "google": {"pybuild_containerd._proto"},
    "tqdm": {"pybuild.run.progress.tty"},
    "urllib3": {"pybuild.oci.transport"},
}
LINUX_ONLY = {"fcntl", "pwd", "grp", "resource", "termios", "tty"}
ENTRANCES = {"pybuild.cli", "pybuild.__main__"}
CONTAINERD_KIT = "pybuild.testkit.containerd"
# What runs as a process of its own, on Linux: it has its own words, signals and folder.
INSIDE = {
    "pybuild.sandbox.zygote",
    "pybuild.sandbox.step",
    "pybuild.sandbox.packets",
    "pybuild.sandbox.rootfs",
    "pybuild.sandbox.system",
    "pybuild.sandbox.fuse",
    "pybuild.sandbox.program",
    "pybuild.sandbox.ociruntime",
    "pybuild_embedded.inside.worker",
}

# (what, the modules that may, why)
BANNED = {
    "os.fork": {"pybuild_embedded.inside.sharing"},  # of a process without threads
    "os.forkpty": set[str](),
    "os.system": set[str](),
    "os.popen": set[str](),
    "eval": set[str](),
    "exec": {"pybuild.values"},
    "pickle.load": set[str](),
    "pickle.loads": set[str](),
    "tempfile.mktemp": set[str](),
    "yaml.load": set[str](),
    "os.chdir": INSIDE,
    "os.umask": INSIDE,
    "kernel.clone": {f"pybuild.sandbox.{name}" for name in ("zygote", "fuse", "ociruntime")},
    "time.clock": set[str](),
    "hashlib.md5": set[str](),
    "hashlib.sha1": set[str](),
}
BANNED_METHODS = {"extractall", "unpack_archive", "make_archive"}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def part(self) -> str:
        """The key in LAYERS."""
        names = self.name.split(".")
        if names[0] != "pybuild":
            return names[0]
        return names[1] if len(names) > 1 else "__init__"

    @property
    def is_testkit(self) -> bool:
        return self.name.startswith("pybuild.testkit")


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for source in SOURCES:
        for path in sorted(source.rglob("*.py")):
            names = path.relative_to(source).with_suffix("").parts
            if names[-1] == "__init__":
                names = names[:-1]
            found.append(Module(".".join(names), path, ast.parse(path.read_bytes())))
    return tuple(found)


each_module = pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)


@dataclass(frozen=True)
class Imported:
    name: str
    line: int
    at_top: bool
    for_types: bool


def imports(module: Module) -> Iterator[Imported]:
    names = {other.name for other in modules()}
    for node, at_top, for_types in _import_nodes(module.tree.body, at_top=True, for_types=False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Imported(alias.name, node.lineno, at_top, for_types)
        else:
            assert node.level == 0, f"{module.name}:{node.lineno} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                name = inner if inner in names else node.module
                yield Imported(name, node.lineno, at_top, for_types)


def _import_nodes(
    body: list[ast.stmt], *, at_top: bool, for_types: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield node, at_top, for_types
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from _import_nodes(node.body, at_top=at_top, for_types=True)
            case _:
                inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                below = [child for child in ast.walk(node) if child is not node]
                for child in below:
                    if isinstance(child, ast.Import | ast.ImportFrom):
                        nested = inside or isinstance(node, ast.ClassDef)
                        yield child, at_top and not nested, for_types


def _part_of(name: str) -> str | None:
    names = name.split(".")
    if names[0] in BACKENDS:
        return names[0]
    if names[0] != "pybuild":
        return None
    return names[1] if len(names) > 1 else "__init__"


@each_module
def test_imports_go_down_only(module: Module) -> None:
    allowed = LAYERS[module.part] | {module.part, "values"}
    for imported in imports(module):
        part = _part_of(imported.name)
        if part is None or part in allowed:
            continue
        if imported.for_types and (module.name, imported.name) in FOR_TYPES_ONLY:
            continue
        if module.is_testkit and part in BACKENDS:
            is_kit = module.name == CONTAINERD_KIT
            assert is_kit or not imported.at_top, f"line {imported.line} loads a backend at once"
            continue
        pytest.fail(f"{module.path}:{imported.line}: {module.part} must not import {part}")


@each_module
def test_imports_for_types_are_only_those_that_are_listed(module: Module) -> None:
    if module.is_testkit or module.name == "pybuild":  # whose names are loaded when asked for
        return
    for imported in imports(module):
        if imported.for_types and imported.name.split(".")[0].startswith("pybuild"):
            assert (module.name, imported.name) in FOR_TYPES_ONLY, f"line {imported.line}"


@each_module
def test_heavy_packages_are_imported_when_needed(module: Module) -> None:
    for imported in imports(module):
        package = imported.name.split(".")[0]
        if package not in HEAVY or not imported.at_top or imported.for_types:
            continue
        allowed = HEAVY_MODULES.get(package, set())
        assert module.name in allowed, f"line {imported.line} imports {package} at once"


@each_module
def test_dataclasses_are_those_that_cost_next_to_nothing(module: Module) -> None:
    if module.name == "pybuild.values" or module.is_testkit:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses":
            ours = {"dataclass", "field", "replace"} & {alias.name for alias in node.names}
            assert not ours, f"line {node.lineno}: pybuild.values has {', '.join(ours)}"


@each_module
def test_what_runs_inside_a_sandbox_is_never_imported_by_others(module: Module) -> None:
    for imported in imports(module):
        assert imported.name not in INSIDE or module.name in INSIDE, f"line {imported.line}"


@each_module
def test_grpc_stays_in_one_module(module: Module) -> None:
    for imported in imports(module):
        if imported.name.split(".")[0] == "grpc":
            assert module.name == "pybuild_containerd.client", f"line {imported.line}"


@each_module
def test_the_interpreter_imports_nothing_that_only_linux_has(module: Module) -> None:
    if module.part in {*BACKENDS, "testkit"} or module.name in INSIDE:
        return
    for imported in imports(module):
        if imported.name.split(".")[0] in LINUX_ONLY:
            assert not imported.at_top, f"line {imported.line} imports {imported.name} at once"


@each_module
def test_every_module_says_what_it_is_for(module: Module) -> None:
    if module.tree.body:
        assert ast.get_docstring(module.tree), f"{module.path} has no docstring"


@each_module
def test_only_the_entrance_reads_the_surroundings_and_prints(module: Module) -> None:
    if module.name in ENTRANCES | INSIDE or module.is_testkit:
        return
    for node in ast.walk(module.tree):
        name = _dotted(node)
        if name in {"os.environ", "os.environb", "os.getenv", "sys.argv", "sys.exit"}:
            pytest.fail(f"{module.path}:{node.lineno} uses {name}")  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            called = _dotted(node.func)
            assert called not in {"print", "input", "breakpoint"}, f"line {node.lineno}"
            assert called not in {"signal.signal", "signal.set_wakeup_fd"}, f"line {node.lineno}"


@each_module
def test_no_module_forks_or_calls_what_is_banned(module: Module) -> None:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        called = _dotted(node.func) or ""
        assert module.name in BANNED.get(called, {module.name}), f"line {node.lineno}: {called}"
        if isinstance(node.func, ast.Attribute):
            assert node.func.attr not in BANNED_METHODS, f"line {node.lineno}: {node.func.attr}"
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        assert "preexec_fn" not in keywords, f"line {node.lineno} passes preexec_fn"
        shell = keywords.get("shell")
        is_shell = isinstance(shell, ast.Constant) and shell.value is True
        assert not (called.startswith("subprocess.") and is_shell), f"line {node.lineno}: a shell"


@each_module
def test_no_module_keeps_changing_state(module: Module) -> None:
    for node in ast.walk(module.tree):
        assert not isinstance(node, ast.Global), f"{module.path}:{node.lineno} uses global"


@each_module
def test_no_module_catches_everything_silently(module: Module) -> None:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        assert node.type is not None, f"line {node.lineno}: a bare except"
        only_passes = all(isinstance(statement, ast.Pass) for statement in node.body)
        broad = _dotted(node.type) in {"Exception", "BaseException"}
        assert not (broad and only_passes), f"line {node.lineno} swallows everything"


@each_module
def test_files_and_functions_keep_a_readable_size(module: Module) -> None:
    lines = module.path.read_text().count("\n")
    assert lines <= 550, f"{lines} lines: a concept is missing"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


def test_only_one_module_uses_dockerfile_parse() -> None:
    users = {
        module.name
        for module in modules()
        for imported in imports(module)
        if imported.name.split(".")[0] == "dockerfile_parse"
    }
    assert users == {"pybuild.dockerfile.lines"}


def test_parsing_and_planning_load_nothing_heavy() -> None:
    import subprocess  # noqa: PLC0415  (a process of its own, so that nothing is loaded yet)

    unwanted = HEAVY | {"email", "importlib.metadata", "socket", "ssl"}
    script = (
        "import sys, pybuild.dockerfile.parse, pybuild.plan, pybuild.api, pybuild.cli\n"
        f"print(*sorted({unwanted!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout.split() == []


def _dotted(node: ast.AST) -> str | None:
    """``a.b.c`` of a name or attribute."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            before = _dotted(value)
            return None if before is None else f"{before}.{attribute}"
        case _:
            return None
