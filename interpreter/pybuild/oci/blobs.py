"""Blobs on their way out: read once or more often, and checked while they are read."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import BinaryIO

from pybuild.errors import BackendFailed, InvalidImage
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.http import Activity
from pybuild.oci.manifest import Documents
from pybuild.values import dataclass

_PIECE = 1 << 16  # what a slow line sends before a socket's timeout


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob's descriptor, and a function that opens its bytes for reading."""

    descriptor: Descriptor
    open: Callable[[], BinaryIO]

    def pieces(self, activity: Activity, offset: int = 0) -> Generator[bytes]:
        """The bytes from `offset` on. Progress is reported under the blob's digest.

        Raises InvalidImage where they end early, late, or are not what the digest says;
        BuildCancelled soon after a cancel.
        """
        wanted, position, digest = self.descriptor, 0, sha256()
        with closing(self.open()) as stream:
            while True:
                activity.raise_if_cancelled()
                piece = _read(stream, wanted)
                if not piece:
                    break
                digest.update(piece)
                begin, position = position, position + len(piece)
                if position > wanted.size:
                    break
                if position > offset:
                    yield piece[max(0, offset - begin) :]
                    activity.progress(wanted.digest, position, wanted.size)
        if position != wanted.size or f"sha256:{digest.hexdigest()}" != wanted.digest:
            raise InvalidImage(
                f"the stored blob {wanted.digest} is damaged", hint="remove it and build again"
            )


def image_blobs(documents: Documents, open_blob: Callable[[str], BinaryIO]) -> tuple[Blob, ...]:
    """The layers and configs of all images, each once; manifests are not among them.

    `open_blob` opens a layer's blob by its digest.
    """
    found: dict[str, Blob] = {}
    for image in documents.images:
        for layer in image.layers:
            found.setdefault(layer.digest, Blob(layer, partial(open_blob, layer.digest)))
        found.setdefault(image.config.digest, memory_blob(image.config, image.config_bytes))
    return tuple(found.values())


def memory_blob(descriptor: Descriptor, data: bytes) -> Blob:
    """A blob whose bytes are `data`."""
    return Blob(descriptor, partial(BytesIO, data))


def _read(stream: BinaryIO, descriptor: Descriptor) -> bytes:
    # An OSError would look like one of the network to whoever sends the bytes.
    try:
        return stream.read(_PIECE)
    except OSError as error:
        reason = error.strerror or error
        raise BackendFailed(f"can't read the blob {descriptor.digest}: {reason}") from error
