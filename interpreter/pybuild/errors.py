"""The exception tree of pybuild, and places in source files.

::

    PybuildError
    ├── StepFailed            exit 1    a step ran and failed
    │   ├── RunFailed
    │   └── CopyFailed
    ├── CacheMissed           exit 1    a step isn't in the cache, and was to be
    ├── UsageError            exit 2    an argument of the caller
    ├── DockerfileError       exit 2    the text of the Dockerfile
    │   ├── DockerfileSyntaxError
    │   ├── UnknownInstruction
    │   ├── ExpansionError
    │   ├── StageNotFound
    │   └── StageCycle
    ├── LockError             exit 2    the lock file, or what isn't in it
    ├── ContextError          exit 3    the build context
    ├── FetchFailed           exit 3    a source on the network
    ├── ImageError            exit 3
    │   ├── ImageNotFound
    │   ├── InvalidImage
    │   ├── PlatformMismatch
    │   └── RegistryError
    │       └── AuthenticationRequired
    ├── BackendError          exit 4
    │   ├── BackendUnavailable
    │   ├── UnsupportedByBackend
    │   └── BackendFailed
    ├── ExportFailed          exit 5    an output of the finished image
    └── BuildCancelled        exit 130

Every class carries the exit code that the command line ends with. Anything else that
reaches the command line is a bug and ends with 70.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.files.filesystem import FileSystem
    from pybuild.run.miss import Miss

EXIT_BUG = 70


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A place in a text file. Lines and columns count from 1, columns in characters.

    ``end_line`` is inclusive, ``end_column`` exclusive. Columns are None where only
    whole lines are known.
    """

    file: str
    start_line: int
    end_line: int
    start_column: int | None = None
    end_column: int | None = None

    def __str__(self) -> str:
        if self.start_column is None:
            return f"{self.file}:{self.start_line}"
        return f"{self.file}:{self.start_line}:{self.start_column}"


class PybuildError(Exception):
    """What every foreseen failure raises.

    ``message`` is one sentence without a final stop; ``where`` the place in the
    Dockerfile or .dockerignore that it is about; ``hint`` what the user can do.

    The rest is given by `pybuild.build`: ``files`` are the texts that places name; ``step``
    is the title of the step that it happened in, empty for none; ``log`` the file with all
    that the step's process printed, if it printed anything and logs were asked for.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, where: SourceRange | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.files: Mapping[str, bytes] = {}
        self.step = ""
        self.log: Path | None = None

    @property
    def source(self) -> str:
        """The lines that ``where`` means, without the last one's end; empty if unknown."""
        if self.where is None:
            return ""
        lines = self.files.get(self.where.file, b"").decode("utf-8", "replace").split("\n")
        return "\n".join(lines[self.where.start_line - 1 : self.where.end_line])

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.message}{hint}"


class StepFailed(PybuildError):
    """A step of the build ran and failed."""

    exit_code = 1
    kept: FileSystem | None = None

    @property
    def fs(self) -> FileSystem:
        """The files as the step left them; for a COPY, those that it was to be done on.

        A :class:`~pybuild.builder.Builder` keeps them until it is closed. Raises UsageError
        for a build without one.
        """
        if self.kept is None:
            raise UsageError(
                "the files of the failed step weren't kept",
                hint="build with a pybuild.Builder: it keeps them until it is closed",
            )
        return self.kept


class RunFailed(StepFailed):
    """The process of a RUN ended with a code other than 0.

    ``output`` holds its last lines, standard output and error together.
    """

    def __init__(
        self,
        message: str,
        *,
        process_exit_code: int,
        output: tuple[str, ...] = (),
        where: SourceRange | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.process_exit_code = process_exit_code
        self.output = output


class CopyFailed(StepFailed):
    """A COPY or ADD can't be done: a missing source, a folder in the way of a file."""


class CacheMissed(PybuildError):
    """A step would have had to run in a build, or a stage, that was to find all in the cache."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        miss: Miss,
        where: SourceRange | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.miss = miss


class UsageError(PybuildError):
    """An argument of the caller is wrong."""

    exit_code = 2


class DockerfileError(PybuildError):
    """The Dockerfile is wrong."""

    exit_code = 2


class DockerfileSyntaxError(DockerfileError):
    """The text isn't a Dockerfile: an unknown flag, a missing argument, an open heredoc."""


class UnknownInstruction(DockerfileError):
    """A line begins with a word that is no instruction."""


class ExpansionError(DockerfileError):
    """A word with quotes or variables can't be expanded."""


class StageNotFound(DockerfileError):
    """A target names no stage."""


class StageCycle(DockerfileError):
    """Stages depend on each other in a circle."""


class LockError(PybuildError):
    """The lock file can't be read, or lacks what the Dockerfile asks for."""

    exit_code = 2


class ContextError(PybuildError):
    """The build context is missing, unreadable, or has no Dockerfile."""

    exit_code = 3


class FetchFailed(PybuildError):
    """A file or repository on the network can't be fetched, or isn't what it should be."""

    exit_code = 3


class ImageError(PybuildError):
    """Something is wrong with a base image."""

    exit_code = 3


class ImageNotFound(ImageError):
    """No image has this reference, here or at its registry."""


class InvalidImage(ImageError):
    """A manifest, config or layer breaks its specification, its digest or a limit."""


class PlatformMismatch(ImageError):
    """The image exists, but not for the platform asked for."""


class RegistryError(ImageError):
    """A registry doesn't answer, or not as the distribution specification says."""


class AuthenticationRequired(RegistryError):
    """A registry wants other credentials than it got."""


class BackendError(PybuildError):
    """The backend can't do its part."""

    exit_code = 4


class BackendUnavailable(BackendError):
    """The backend can't start here; the hint says what to do."""


class UnsupportedByBackend(BackendError):
    """A step needs a capability that the backend lacks. Raised before anything runs."""


class BackendFailed(BackendError):
    """The backend broke in the middle of its work."""


class ExportFailed(PybuildError):
    """The image was built, but an output, or its cache, can't be written.

    Pushing an image raises a RegistryError.
    """

    exit_code = 5


class BuildCancelled(PybuildError):
    """The build was cancelled by its caller."""

    exit_code = 130


@contextmanager
def located(where: SourceRange | None) -> Iterator[None]:
    """Give `where` to any :class:`PybuildError` passing through that has no place yet."""
    try:
        yield
    except PybuildError as error:
        if error.where is None:
            error.where = where
        raise
