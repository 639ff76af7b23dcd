"""The images of a store: found for a FROM, recorded, and all that a user may do with them."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pybuild.backend import BaseImage, Image
from pybuild.errors import ImageError, ImageNotFound, InvalidImage, PlatformMismatch, UsageError
from pybuild.imagestore import Fault, ImageStore, ListedImage, Pruned, PruneRequest, Usage
from pybuild.oci.descriptor import INDEX_TYPES, Descriptor, LayerDiff
from pybuild.oci.image_config import ImageConfig, parse_config
from pybuild.oci.manifest import (
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    Manifest,
    media_type_of,
    parse_index,
    parse_manifest,
    select,
)
from pybuild.oci.platform import Platform, host_platform, matches, rank
from pybuild.oci.reference import Reference, familiar, parse_reference, with_default_tag
from pybuild.values import dataclass
from pybuild_embedded.references import References
from pybuild_embedded.sessions import Part
from pybuild_embedded.store import Store
from pybuild_embedded.trash import RemoveTrees
from pybuild_embedded.usage import MeasureTrees, look, measure_plainly, usage

_DEEPEST_INDEX = 4
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


@dataclass(frozen=True, slots=True)
class _Described:
    """An image's documents, read and checked."""

    digest: str
    manifest: Manifest
    config: ImageConfig

    @property
    def layers(self) -> tuple[LayerDiff, ...]:
        return tuple(map(LayerDiff, self.config.diff_ids, self.manifest.layers))


class Images(ImageStore):
    """The images of `store`.

    `remove` deletes folders for good, `measure` tells what they take up, in bytes: both may
    have to do so as other users than this one.
    """

    def __init__(
        self, store: Store, remove: RemoveTrees, measure: MeasureTrees = measure_plainly
    ) -> None:
        self._store = store
        self._remove = remove
        self._measure = measure

    def find_base(self, reference: Reference, platform: Platform) -> BaseImage | None:
        """The local image, None if it isn't here or not completely described.

        A reference with a digest finds any image that is known by that digest, its own or
        an index's. Its blobs are pinned, as far as they are here. Raises PlatformMismatch if
        it is here for other platforms only, InvalidImage.
        """
        target = self._target(reference)
        if target is None:
            return None
        try:
            found = self._select(reference, target, platform)
        except ImageNotFound:
            return None
        blobs = [found.digest, found.manifest.config.digest]
        blobs += [layer.digest for layer in found.manifest.layers]
        with self._store.database.writing() as connection:
            self._store.session.pin(connection, Part.IMAGE, found.digest)
            self._store.session.pin(connection, Part.BLOB, *blobs)
            row = (int(time.time()), found.digest)
            connection.execute("UPDATE images SET used=? WHERE digest=?", row)
        # what was removed before that is missing now
        if any(self._store.blobs.size(digest) is None for digest in blobs[:2]):
            return None
        return BaseImage(reference, found.digest, found.config, found.layers)

    def record(
        self,
        names: Sequence[Reference],
        target: Descriptor,
        manifest: Descriptor,
        config_digest: str,
    ) -> None:
        """Keep an image, and give it `names`, taking them from others; all at once or not at all.

        `target` is what the names point to: the manifest, or an index that leads to it. These
        documents and the config must be here; layers may come later. Raises ImageNotFound,
        InvalidImage.
        """
        blobs = self._store.blobs
        described = self._described(manifest.digest)
        if described.manifest.config.digest != config_digest:
            raise InvalidImage(f"{config_digest} is not the config of {manifest.digest}")
        documents = {*self._documents(target.digest), manifest.digest, config_digest}
        for digest in documents:
            if blobs.size(digest) is None:
                raise ImageNotFound(f"the store has no blob {digest}")
        kept = [(manifest.digest, digest, "") for digest in documents]
        kept += [(manifest.digest, x.blob.digest, x.diff_id) for x in described.layers]
        now = time.time()
        with self._store.database.writing() as connection:
            self._store.session.pin(connection, Part.IMAGE, manifest.digest)
            connection.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?)"
                " ON CONFLICT (digest) DO UPDATE SET used=excluded.used",
                (manifest.digest, config_digest, now, int(now)),
            )
            connection.executemany("INSERT OR IGNORE INTO image_blobs VALUES (?, ?, ?)", kept)
            row = (target.digest, manifest.digest)
            connection.execute("INSERT OR IGNORE INTO targets VALUES (?, ?)", row)
            for name in names:
                row = (_key(name), target.digest)
                connection.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", row)

    def record_index(
        self, names: Sequence[Reference], index: Descriptor, images: Sequence[Image]
    ) -> None:
        """Keep an index and its images as :meth:`record` does one of them."""
        with self._store.database.writing():
            for image in images:
                self.record(names, index, image.manifest, image.config_digest)

    def location(self) -> Path:
        return self._store.root

    def images(self) -> Sequence[ListedImage]:
        with self._store.database.reading() as connection:
            query = "SELECT digest FROM images ORDER BY made DESC, digest"
            digests = [digest for (digest,) in connection.execute(query).fetchall()]
        found = []
        for digest in digests:
            with suppress(ImageError):  # a damaged one is for `check`
                found.append(self._listed(digest))
        return found

    def find(self, text: str) -> ListedImage:
        return self._match(text)[0]

    def tag(self, text: str, name: Reference) -> None:
        image, target = self._match(text)
        with self._store.database.writing() as connection:
            query = "SELECT 1 FROM images WHERE digest=?"
            if not connection.execute(query, (image.digest,)).fetchone():
                raise _not_found(text)
            row = (target, image.digest)
            connection.execute("INSERT OR IGNORE INTO targets VALUES (?, ?)", row)
            connection.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (_key(name), target))

    def remove(self, text: str) -> ListedImage:
        image, target = self._match(text)
        with self._store.database.writing() as connection:
            name = self._named(connection, text)
            if name is not None:
                connection.execute("DELETE FROM names WHERE name=?", (name,))
                self._forget_unnamed(connection, target)
                return image
            targets = {target}
            if target == image.digest:  # and not that of an index
                query = "SELECT target FROM targets WHERE image=?"
                targets = {found for (found,) in connection.execute(query, (image.digest,))}
            for one in targets:
                connection.execute("DELETE FROM names WHERE target=?", (one,))
                self._forget_unnamed(connection, one)
        return image

    def usage(self) -> Sequence[Usage]:
        found = look(self._store.root, self._store.database, self._measure)
        with self._store.database.writing() as connection:
            references = References(connection, self._store.session.live())
        return usage(found, references)

    def prune(self, request: PruneRequest) -> Pruned:
        from pybuild_embedded.collecting import prune  # noqa: PLC0415  (no build needs it)

        return prune(self._store, request, self._remove, self._measure)

    def check(self, *, repair: bool) -> Sequence[Fault]:
        from pybuild_embedded.checking import check  # noqa: PLC0415  (no build needs it)

        return check(self._store, repair=repair)

    def _target(self, reference: Reference) -> str | None:
        """The digest of what a local name, or a digest, points to."""
        queries = [("SELECT target FROM names WHERE name=?", _key(reference))]
        if reference.digest is not None:
            queries = [
                ("SELECT digest FROM images WHERE digest=?", reference.digest),
                ("SELECT target FROM targets WHERE target=?", reference.digest),
            ]
        with self._store.database.reading() as connection:
            for query, key in queries:
                row = connection.execute(query, (key,)).fetchone()
                if row is not None:
                    return str(row[0])
        return None

    def _select(self, reference: Reference, target: str, platform: Platform) -> _Described:
        digest = target
        for depth in range(_DEEPEST_INDEX + 1):
            document = self._store.blobs.read(digest, MAX_MANIFEST_SIZE)
            media_type = media_type_of(document)
            if media_type not in INDEX_TYPES:
                found = self._described(digest)
                if not depth and not matches(platform, found.config.platform):
                    hint = f"it is made for {found.config.platform}"
                    raise _other_platform(reference, platform, hint)
                return found
            try:
                digest = select(parse_index(document, media_type), platform).digest
            except PlatformMismatch as error:
                raise _other_platform(reference, platform, error.hint) from None
        raise InvalidImage(f"{familiar(reference)} has indexes nested too deeply")

    def _described(self, digest: str) -> _Described:
        blobs = self._store.blobs
        manifest = parse_manifest(blobs.read(digest, MAX_MANIFEST_SIZE))
        config = parse_config(blobs.read(manifest.config.digest, MAX_CONFIG_SIZE))
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidImage(
                f"the image {digest} has {len(manifest.layers)} layers, "
                f"but its config names {len(config.diff_ids)}"
            )
        return _Described(digest, manifest, config)

    def _documents(self, target: str, depth: int = 0) -> Iterator[str]:
        """The target and, if it is an index, the indexes in it that are here."""
        yield target
        document = self._store.blobs.read(target, MAX_MANIFEST_SIZE)
        if depth == _DEEPEST_INDEX or media_type_of(document) not in INDEX_TYPES:
            return
        for entry, _ in parse_index(document).manifests:
            is_here = self._store.blobs.size(entry.digest) is not None
            if entry.media_type in INDEX_TYPES and is_here:
                yield from self._documents(entry.digest, depth + 1)

    def _listed(self, digest: str) -> ListedImage:
        described = self._described(digest)
        with self._store.database.reading() as connection:
            query = "SELECT made FROM images WHERE digest=?"
            row = connection.execute(query, (digest,)).fetchone()
            query = "SELECT name FROM names JOIN targets USING (target) WHERE image=? ORDER BY name"
            names = [name for (name,) in connection.execute(query, (digest,)).fetchall()]
        if row is None:
            raise _not_found(digest)
        config = described.manifest.config.digest
        blobs = {digest, config, *(layer.digest for layer in described.manifest.layers)}
        sizes = [self._store.blobs.size(blob) for blob in blobs]
        return ListedImage(
            digest,
            config,
            described.config,
            described.layers,
            tuple(map(parse_reference, names)),
            None if None in sizes else sum(size or 0 for size in sizes),
            datetime.fromtimestamp(row[0], UTC),
        )

    def _match(self, text: str) -> tuple[ListedImage, str]:
        """The image that `text` names, and the digest of what leads to it."""
        with self._store.database.reading() as connection:
            name = self._named(connection, text)
            if name is not None:
                query = "SELECT target, image FROM targets JOIN names USING (target) WHERE name=?"
                rows = connection.execute(query, (name,)).fetchall()
            else:
                rows = self._known_by_digest(connection, text)
        targets = {target for target, _ in rows}
        found = {digest: self._listed(digest) for digest in {image for _, image in rows}}
        # one index leads to an image a platform, of which this machine's is meant
        if not found or (len(found) > 1 and len(targets) > 1):
            raise _not_found(text, *found)
        here = host_platform()
        best = min(found.values(), key=lambda x: (_place(here, x.config.platform), x.digest))
        target = next(target for target, image in rows if image == best.digest)
        return best, target

    @staticmethod
    def _named(connection: sqlite3.Connection, text: str) -> str | None:
        """The recorded name that `text` is."""
        try:
            name = _key(parse_reference(text))
        except UsageError:
            return None
        found = connection.execute("SELECT 1 FROM names WHERE name=?", (name,)).fetchone()
        return name if found else None

    @staticmethod
    def _known_by_digest(connection: sqlite3.Connection, text: str) -> list[tuple[str, str]]:
        """(target, image) of what has a digest that begins with `text`; docker's config ids too."""
        _, at, digest = text.rpartition("@")
        match = _ID.fullmatch(digest)
        if match is None or (at and len(match[1]) < 64):
            return []
        beginning = f"sha256:{match[1]}*"
        query = (
            "SELECT digest, digest FROM images WHERE digest GLOB ? OR config GLOB ?"
            " UNION SELECT target, image FROM targets WHERE target GLOB ?"
        )
        return connection.execute(query, (beginning,) * 3).fetchall()

    @staticmethod
    def _forget_unnamed(connection: sqlite3.Connection, target: str) -> None:
        """Forget what has lost its last name, and the images that nothing else leads to."""
        if connection.execute("SELECT 1 FROM names WHERE target=?", (target,)).fetchone():
            return
        query = "SELECT image FROM targets WHERE target=?"
        images = connection.execute(query, (target,)).fetchall()
        connection.execute("DELETE FROM targets WHERE target=?", (target,))
        for (digest,) in images:
            query = "SELECT 1 FROM targets WHERE image=?"
            if not connection.execute(query, (digest,)).fetchone():
                from pybuild_embedded.collecting import forget_image  # noqa: PLC0415  (as above)

                forget_image(connection, digest)


def _key(name: Reference) -> str:
    return str(with_default_tag(name))


def _place(wanted: Platform, candidate: Platform) -> int:
    place = rank(wanted, candidate)
    return 1 << 16 if place is None else place


def _not_found(text: str, *several: str) -> ImageNotFound:
    if several:
        return ImageNotFound(
            f"{text!r} fits several images", hint="they are " + ", ".join(sorted(several))
        )
    return ImageNotFound(f"the store has no image {text!r}")


def _other_platform(reference: Reference, platform: Platform, hint: str | None) -> PlatformMismatch:
    return PlatformMismatch(
        f"the local image {familiar(reference)} is not made for {platform}", hint=hint
    )
