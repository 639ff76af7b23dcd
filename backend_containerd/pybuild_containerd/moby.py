"""What Docker's classic builder leaves in containerd beside an image (namespace ``moby``)."""

from __future__ import annotations

import json

from pybuild.oci.manifest import canonical_json

NAMESPACE = "moby"


def container_config(config: bytes) -> bytes:
    """The blob with the config of the container that an image was committed from.

    There was no such container here, so it is what a container of the image would have: the
    ``config`` member of the image's config.
    """
    return canonical_json(json.loads(config).get("config") or {})


def dangling_name(digest: str, *, moby: bool) -> str:
    """The record's name for an image without one: the digest of its manifest makes it unique.

    Without a record the garbage collector would take the image. Docker knows its own prefix
    and shows such an image as untagged.
    """
    return f"{'moby' if moby else 'pybuild'}-dangling@{digest}"
