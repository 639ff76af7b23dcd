"""Paths inside the image as WORKDIR, COPY and ``--mount`` join them."""

from __future__ import annotations

import posixpath


def clean(path: str) -> str:
    """The shortest absolute path equal to `path` by its text alone: ``/a/b``."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def join(folder: str, path: str) -> str:
    """`path` if it is absolute, exactly as written, else `path` below `folder`, cleaned.

    An empty `path` is `folder` itself.
    """
    folder = folder if folder.startswith("/") else clean(folder)
    if not path:
        return folder
    return path if path.startswith("/") else clean(f"{folder}/{path}")


def destination(folder: str, path: str) -> str:
    """Where a COPY to `path` goes in the working directory `folder`.

    An ending that says "this is a folder", ``/`` or ``/.``, is kept.
    """
    if path in {"", "."}:
        path = "./"
    joined = join(folder, path)
    if path.endswith("/") and not joined.endswith("/"):
        return joined + "/"
    if path.endswith("/.") and not joined.endswith("/."):
        return joined.rstrip("/") + "/."
    return joined
