"""One step on one layer: its key is made, and its layer found under it or made."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from pybuild.backend import Backend, ROLayer
from pybuild.plan.steps import Plan
from pybuild.run.activity import StepActivity
from pybuild.run.commonsteps import StepOutcome
from pybuild.run.digests import unread
from pybuild.run.execute import (
    OpenSource,
    Prepared,
    PreparedFiles,
    changes_nothing,
    perform,
    prepare,
)
from pybuild.run.keys import ContentKey, content_key, context_reads
from pybuild.run.layers import SharedLayer
from pybuild.run.misses import Misses, StepNotes
from pybuild.run.stagesettings import StageSettings
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.run.knownkeys import KnownKey

_MUCH = 1 << 20  # bytes of new files, which take longer to read twice than to be asked for


@dataclass(frozen=True, slots=True)
class OneStep:
    """The step of ``notes`` on ``layer``.

    A ``fresh`` one isn't sought. What is found out of its key goes into the notes.
    """

    plan: Plan
    backend: Backend
    settings: StageSettings
    misses: Misses
    notes: StepNotes
    layer: ROLayer
    activity: StepActivity
    open_source: OpenSource
    fresh: bool

    def outcome(self) -> StepOutcome:
        """Find its layer or make it.

        Raises CacheMissed where it must not be made, and as :func:`.prepare` and :func:`.perform`.
        """
        known = self._known_key()
        if known is not None and known.text and not self.fresh:
            made = self.backend.lookup(known.text)
            if made is not None:
                key = ContentKey(known.text, lambda: self._content_key(self._prepared()).files())
                return self._ended(key, made, cached=True)
        prepared = self._prepared()
        return self._written_first(prepared, known) or self._sought_first(prepared, known)

    def _ended(self, key: ContentKey, layer: ROLayer | None, *, cached: bool) -> StepOutcome:
        # a step that isn't run again happened when it was run
        ended = (layer.made if layer is not None else None) or datetime.now(UTC)
        return StepOutcome(SharedLayer(layer) if layer is not None else None, key, cached, ended)

    def _prepared(self) -> Prepared:
        created, lent = self.settings.created_seconds, self.settings.lent
        return prepare(self.notes.step, self.layer, self.open_source, created, lent)

    def _known_key(self) -> KnownKey | None:
        """What earlier builds found out about the key; None where it is to be made at any rate."""
        folder = self.backend.notes_folder()
        if folder is None or not self.settings.use_cache:
            return None
        read = context_reads(self.notes.step, self.settings.contexts)
        if not read:
            return None
        from pybuild.run.knownkeys import KnownKey  # noqa: PLC0415 - for steps that read folders

        return KnownKey.of(folder, self.notes.step, self.notes.parent_key, read)

    def _content_key(self, prepared: Prepared) -> ContentKey:
        return content_key(self.notes.step, self.notes.parent_key, prepared, self.activity)

    def _keyed(self, prepared: Prepared, known: KnownKey | None) -> ContentKey:
        """The key, which goes into `known` as well."""
        if not self.settings.use_cache:
            return ContentKey()
        key = self._content_key(prepared)
        self.notes.keyed(key.text, key.files)
        if known is not None:
            known.keep(key.text)
        return key

    def _written_first(self, prepared: Prepared, known: KnownKey | None) -> StepOutcome | None:
        """The outcome, where the key isn't needed before the layer; None where it is."""
        folder = self.backend.notes_folder()
        if (
            not isinstance(prepared, PreparedFiles)
            or folder is None
            or not self.settings.use_cache
            or self.settings.elsewhere is not None
            or not self.misses.may_miss(self.notes.stage)
            or unread(prepared.entries) < _MUCH
        ):
            return None
        from pybuild.run.writefirst import Shape, put_first  # noqa: PLC0415 - for many new files

        shape = Shape.of(folder, self.notes.step, self.notes.parent_key, prepared)
        if shape.was_seen and not self.fresh:
            return None
        with self.backend.single_flight(shape.text, self.activity):
            if shape.was_seen and not self.fresh:
                return None
            with self.layer.begin(runs=False, newest=self.settings.newest) as rw:
                key = self._keyed(put_first(rw, prepared, self.activity), known)
                shape.keep()
                if not self.fresh and (made := self.backend.lookup(key.text)) is not None:
                    return self._ended(key, made, cached=True)
                self._missed()
                return self._ended(key, rw.commit(key.text, self.activity), cached=False)

    def _sought_first(self, prepared: Prepared, known: KnownKey | None) -> StepOutcome:
        key = self._keyed(prepared, known)
        make = partial(self._made, prepared, key)
        if not key.text or changes_nothing(prepared):
            return make()
        if self.fresh:
            self._missed()
            return make()
        if (made := self.backend.lookup(key.text)) is not None:
            return self._ended(key, made, cached=True)
        with self.backend.single_flight(key.text, self.activity):
            # another build may have done it in the meantime
            made = self.backend.lookup(key.text) or self._found_elsewhere(key.text)
            if made is not None:
                return self._ended(key, made, cached=True)
            self._missed()
            return make()

    def _found_elsewhere(self, key: str) -> ROLayer | None:
        if self.settings.elsewhere is None:
            return None
        base = self.plan.base_image(self.notes.stage)
        return self.settings.elsewhere.find(key, self.layer, base, self.activity)

    def _missed(self) -> None:
        self.misses.missed(self.notes, self.activity, fresh=self.fresh)

    def _made(self, prepared: Prepared, key: ContentKey) -> StepOutcome:
        if self.settings.elsewhere is not None:
            prepared = self.settings.elsewhere.seeded(prepared, self.activity)
        made = perform(
            prepared,
            self.layer,
            key.text or None,
            self.activity,
            self.settings.newest,
            on_failure=self.settings.on_failure,
        )
        return self._ended(key, made, cached=False)
