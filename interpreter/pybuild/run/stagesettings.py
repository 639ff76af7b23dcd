"""What the caller of a build says of all its stages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pybuild.files.trees import Tree
from pybuild.remotes.fetching import Remotes
from pybuild.run.elsewhere import Elsewhere
from pybuild.run.lending import Lent
from pybuild.run.onfailure import KEEP_NOTHING, OnFailure
from pybuild.values import dataclass, field


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What all stages of a build share.

    ``contexts`` are the files of the named contexts that steps read, the main one's under None.
    ``created`` fixes every time in the image; None for the times at which things happen.
    ``began`` is the build's start. With ``use_cache``, steps are looked up and kept, but
    those of ``fresh_stages``, names in lower case, are only kept. ``elsewhere`` are caches of
    other machines, looked into next; with ``keeps_steps`` a finished stage tells what they may
    get of it. ``lent`` is what steps may see, ``on_failure`` what is kept of one that fails.
    """

    contexts: Mapping[str | None, Tree]
    remotes: Remotes
    created: datetime | None
    began: datetime
    use_cache: bool
    fresh_stages: frozenset[str] = frozenset()
    lent: Lent = field(default_factory=Lent)
    elsewhere: Elsewhere | None = None
    keeps_steps: bool = False
    on_failure: OnFailure = KEEP_NOTHING

    @property
    def created_seconds(self) -> int:
        """The time of what steps themselves make up, in seconds."""
        return int((self.created or self.began).timestamp())

    @property
    def newest(self) -> int | None:
        """No file of a layer is newer, in seconds; None for no limit."""
        return None if self.created is None else int(self.created.timestamp())
