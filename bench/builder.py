"""What a builder is to the suite: a program, its store, and the daemons that work for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from measuring import Command, Daemons


@dataclass(frozen=True)
class Build:
    """One image to be made. The Dockerfile is alone in its folder, outside of the context."""

    context: Path
    dockerfile: Path
    tag: str
    no_cache: bool = False


class Builder(Protocol):
    """A builder with a store of its own, empty at first."""

    @property
    def name(self) -> str:
        """Its name in results."""
        ...

    @property
    def keeps_steps(self) -> bool:
        """Whether a second build can be faster than the first."""
        ...

    @property
    def daemons(self) -> Daemons: ...

    def command(self, build: Build) -> Command:
        """The program to run; it ends when the image is in the builder's store."""
        ...

    def forget(self, tag: str) -> None:
        """Remove the image; what is kept of the steps may stay."""
        ...

    def empty(self) -> None:
        """Remove everything from the store, base images too."""
        ...
