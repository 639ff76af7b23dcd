"""Images for tests: equal inputs are built once, whoever wants them at the same time."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Unpack

from pybuild.builder import Builder, BuildOptions
from pybuild.dockerfile.parse import parse
from pybuild.errors import PybuildError
from pybuild.files.context import ContextTree
from pybuild.files.locks import holding
from pybuild.image import Image
from pybuild.plan.cachekey import files_digest
from pybuild.remotes.fetching import Remotes
from pybuild.run.activity import CancelToken, Events
from pybuild.run.digests import digested
from pybuild.run.events import Event, Reporter
from pybuild.run.inputs import Context, Inputs, read_inputs
from pybuild.run.progress.plain import PlainReporter

_LOCK = "image-"
_NOT_INPUTS = {"reporter", "cancel", "logs", "max_workers"}


class ImageFactory:
    """What the fixture ``pybuild_image`` gives. Safe in threads.

    `builder` builds; `logs` takes a title and the log of each build, as it ends. Where
    `rebuilt` is given, a folder that all who share the images have, each image is built
    without what is cached by the first of them.
    """

    def __init__(
        self, builder: Builder, logs: list[tuple[str, str]], rebuilt: Path | None = None
    ) -> None:
        self._builder = builder
        self._logs = logs
        self._rebuilt = rebuilt

    def __call__(self, context: Context, **options: Unpack[BuildOptions]) -> Image:
        """Build as :meth:`pybuild.Builder.build` does, and open the image.

        Of several platforms it is the first one's. Raises what these do.
        """
        log = _Log(options.get("reporter"))
        options["reporter"] = log
        try:
            with ExitStack() as stack:
                inputs = self._inputs(context, options, stack)
                name = ""
                if inputs is not None:
                    name = _name(inputs, options)
                    stack.enter_context(self._alone(name, options.get("cancel")))
                    if self._rebuilt is not None and not (self._rebuilt / name).exists():
                        stages = parse(inputs.dockerfile).stages
                        options["no_cache_filter"] = [stage.name or "" for stage in stages]
                result = self._builder.build(context, **options)
                if self._rebuilt is not None and name:
                    (self._rebuilt / name).touch()
        finally:
            self._logs.append((f"pybuild: {_shown(context)}", log.text.getvalue()))
        return self._builder.image(result)

    def _inputs(self, context: Context, options: BuildOptions, stack: ExitStack) -> Inputs | None:
        """What the build will read; None for what can be read once only, is far away or wrong."""
        is_here = context is None or isinstance(context, Mapping | Path)
        if not is_here and not (isinstance(context, str) and os.path.lexists(context)):
            return None
        nobody = Events(None).silent(CancelToken())
        reading = read_inputs(context, options.get("dockerfile"), Remotes(None, {}), nobody)
        try:
            inputs = stack.enter_context(reading)
        except PybuildError:
            return None  # which the build will tell of
        notes = self._builder.backend.notes_folder()
        if notes is not None and isinstance(inputs.context, ContextTree):
            inputs.context.keep_digests_in(notes)
        return inputs

    def _alone(self, name: str, cancel: CancelToken | None) -> AbstractContextManager[None]:
        """While it lasts, nobody else on this machine builds what has this name."""
        notes = self._builder.backend.notes_folder()
        if notes is None:
            return nullcontext()
        try:
            notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return nullcontext()  # it saves work, no more
        return holding(notes / f"{_LOCK}{name}", (cancel or CancelToken()).raise_if_cancelled)


class _Log:
    """Writes events as text, and passes them on to another reporter, if there is one."""

    def __init__(self, other: Reporter | None) -> None:
        self.text = io.StringIO()
        self._plain = PlainReporter(self.text)
        self._other = other

    def report(self, event: Event) -> None:
        self._plain.report(event)
        if self._other is not None:
            self._other.report(event)


def _name(inputs: Inputs, options: BuildOptions) -> str:
    """Equal for equal inputs, on one machine."""
    asked = sorted((key, repr(value)) for key, value in options.items() if key not in _NOT_INPUTS)
    files = files_digest(digested(inputs.context, b""))
    known = [sha256(inputs.dockerfile).hexdigest(), files, asked]
    return sha256(json.dumps(known).encode()).hexdigest()


def _shown(context: Context) -> str:
    match context:
        case None:
            return "a build without context"
        case str() | Path():
            return f"build of {context}"
        case Mapping():
            return "build of files in memory"
        case _:
            return "build of a stream"
