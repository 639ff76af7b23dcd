"""Builds random projects on a backend, and holds each build to what `modelling` says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import pybuild
from modelling import Model, ModelStep, model_of
from placing import Identity, Impossible
from projects import Files, Node, Project, write_context
from pybuild.backend import Backend, PullPolicy
from pybuild.errors import PybuildError, RunFailed
from pybuild.files.trees import NewEntry, Tree, walk
from pybuild.oci.layerindex import Kind
from pybuild.oci.reference import parse_reference
from pybuild.secrets import Secret
from pybuild.testkit.workbench import RecordingActivity

EPOCH = 0
"""No modification time is earlier, so that all are this one in the image.

Earlier ones are kept in an image without being part of any key.
"""

_NAME = "result"
_KINDS = {Kind.FILE: "file", Kind.DIRECTORY: "folder", Kind.SYMLINK: "link"}

SetBase = Callable[[Backend, int], None]
"""Makes one of the variants the image that is called base."""


class Rebuilds:
    """Builds of one project after the other on a backend, and what must be known to it.

    The context is always the same folder, of which only what changed is written.
    """

    def __init__(
        self, backend: Backend, bases: Mapping[int, Files], set_base: SetBase, folder: Path
    ) -> None:
        self.backend = backend
        self._bases = bases
        self._set_base = set_base
        self._folder = folder
        self._written: Project | None = None
        self._known: set[Identity] = set()
        self._doubtful = False
        self.last: pybuild.BuildResult
        """The last build that went well."""

    def build(self, project: Project) -> str | None:
        """Build, check what was run and what came out, and return the image's digest.

        None if the build failed because it must.
        """
        self.write(project)
        try:
            model = model_of(project, self._bases)
        except Impossible as impossible:
            return self._build_impossible(project, impossible)
        self.last = build(self.backend, project, self._folder)
        self._check_steps(self.last, model)
        self._check_files(project, model)
        return self.last.digest

    def build_anew(self, project: Project, other: AbstractContextManager[Backend]) -> str:
        """The digest of the same build on a backend that has seen nothing yet."""
        with other as backend:
            self._set_base(backend, project.variant)
            return build(backend, project, self._folder).digest

    def fail(self, project: Project) -> int:
        """Build `project`, in which a step must fail; its line. Later builds are checked for
        what it left.
        """
        self.write(project)
        with pytest.raises(RunFailed) as caught:
            build(self.backend, project, self._folder)
        assert caught.value.where is not None
        line = caught.value.where.start_line
        model = model_of(project, self._bases)
        failed = next(step for step in model.steps if step.line == line)
        # those before it in its stage went well; of those in other stages nobody knows
        start = max(head for head in project.heads if head < line)
        self._known |= {step.identity for step in model.steps if start < step.line < line}
        self._known -= {failed.identity}
        self._doubtful = True
        return line

    def lines_run(self, project: Project) -> set[int]:
        """Build `project`, and say at which lines steps were run."""
        self.build(project)
        return {step.where.start_line for step in self.last.steps if not step.cached}

    def doubt(self) -> None:
        """Something was built that isn't told: steps that are new may be there already."""
        self._doubtful = True

    def write(self, project: Project) -> None:
        """Write the context and choose the base image."""
        write_context(project, self._folder, self._written)
        self._written = project
        self._set_base(self.backend, project.variant)

    def _build_impossible(self, project: Project, impossible: Impossible) -> str | None:
        """It should fail; if it doesn't, `modelling` doesn't tell enough to check it."""
        self._doubtful = True
        del impossible
        try:
            return build(self.backend, project, self._folder).digest
        except PybuildError:
            return None

    def _check_steps(self, result: pybuild.BuildResult, model: Model) -> None:
        ran = Counter(step.where.start_line for step in result.steps if not step.cached)
        lines = Counter(step.where.start_line for step in result.steps)
        assert lines == Counter(step.line for step in model.steps)
        for identity, steps in _by_identity(model.steps).items():
            if not steps[0].changes:
                continue
            times = sum(ran[step.line] for step in steps)
            where = [step.line for step in steps]
            if identity in self._known:
                assert times == 0, f"line {where} ran again although nothing of it changed"
            elif not self._doubtful:
                assert times == 1, f"line {where} ran {times} times for inputs that are new"
            self._known.add(identity)

    def _check_files(self, project: Project, model: Model) -> None:
        base = self._bases[project.variant]
        expected = {
            path: _plain(node) for path, node in model.files.items() if base.get(path) is not node
        }
        with self._checkout() as tree:
            found = {
                entry.path.decode(): node_of(tree, entry.path)
                for entry in walk(tree, b"")
                if model.files.get(entry.path.decode()) is not base.get(entry.path.decode(), tree)
            }
        found.pop("", None)
        assert found == expected

    def _checkout(self) -> _CheckedOut:
        return _CheckedOut(self.backend)


class _CheckedOut:
    """The files of the image that was built last."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __enter__(self) -> Tree:
        platform = self._backend.platforms[0]
        activity = RecordingActivity()
        image = self._backend.resolve(parse_reference(_NAME), platform, PullPolicy.NEVER, activity)
        self._layer = self._backend.checkout(image, activity)
        return self._layer.tree()

    def __exit__(self, *exc: object) -> None:
        self._layer.release()


def build(
    backend: Backend, project: Project, folder: Path, **options: object
) -> pybuild.BuildResult:
    """Build `project`, whose context is in `folder`."""
    given = {
        "dockerfile": project.dockerfile.encode(),
        "backend": backend,
        "tags": [_NAME],
        "build_args": dict(project.build_args),
        "labels": {"given": project.label} if project.label else {},
        "secrets": {"s": Secret(project.secret.encode())},
        "created": EPOCH,
    }
    return pybuild.build(folder, **(given | options))  # type: ignore[arg-type]


def node_of(tree: Tree, path: bytes) -> Node:
    entry = tree.get(path)
    if entry is None:
        raise FileNotFoundError(path)
    content = entry.link if entry.kind is Kind.SYMLINK else b""
    if entry.kind is Kind.FILE:
        with tree.open(path) as stream:
            content = stream.read()
    return Node(_KINDS[entry.kind], entry.mode, content, entry.uid, entry.gid)  # type: ignore[arg-type]


def base_files(entries: Iterable[NewEntry]) -> Files:
    """What `entries` of a base image look like to a model; the content of hard links is left out."""
    found = {}
    for new in entries:
        entry = new.entry
        content = entry.link if entry.kind is Kind.SYMLINK else b""
        if new.content is not None:
            with new.content() as stream:
                content = stream.read()
        node = Node(_KINDS[entry.kind], entry.mode, content, entry.uid, entry.gid)  # type: ignore[arg-type]
        found[entry.path.decode()] = node
    return found


def _by_identity(steps: Iterable[ModelStep]) -> Mapping[Identity, list[ModelStep]]:
    found: dict[Identity, list[ModelStep]] = {}
    for step in steps:
        found.setdefault(step.identity, []).append(step)
    return found


def _plain(node: Node) -> Node:
    """What can be seen of a node in an image."""
    return Node(node.kind, node.mode, node.content, node.uid, node.gid)
