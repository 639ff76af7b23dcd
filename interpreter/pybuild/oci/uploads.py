"""Writing to one repository of a registry (OCI distribution specification, "Push").

A blob that the repository has isn't sent; one that another repository of the registry has
is mounted from there. What is sent goes out in one PUT, and where that breaks off, the rest
follows from where the registry says that it got to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from urllib.parse import quote

from pybuild.errors import AuthenticationRequired, ImageNotFound, RegistryError
from pybuild.oci.blobs import Blob
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.hosts import Endpoint
from pybuild.oci.http import Activity, Body, RequestFailed, Response
from pybuild.oci.session import Retry, Session, wait

_ARRIVED = re.compile(r"(?:bytes=)?0-([1-9][0-9]{0,18})")
_LOST = frozenset({404, 410, 416})
_ENOUGH = 1 << 20  # bytes of progress that make an upload count as working
_UPLOADS = "blobs/uploads/"


class RepositoryWriter:
    """Writes to the repository; safe in threads.

    All raise AuthenticationRequired for a login that is missing or isn't enough,
    RegistryError for the rest, BuildCancelled.
    """

    def __init__(self, session: Session, endpoint: Endpoint, repository: str, retry: Retry) -> None:
        self._session = session
        self._endpoint = endpoint
        self._repository = repository
        self._retry = retry

    def send(self, blob: Blob, source: str | None, activity: Activity) -> None:
        """Have the blob in the repository.

        `source` is a repository of the same registry that may have it.
        """
        digest = blob.descriptor.digest
        if self._has(digest, activity):
            return
        location = None
        if source is not None and source != self._repository:
            mounted, location = self._mount(digest, source, activity)
            if mounted:
                return
        self._upload(blob, location, activity)

    def put_manifest(
        self, descriptor: Descriptor, content: bytes, version: str, activity: Activity
    ) -> None:
        """Store a manifest, whose blobs are there, under a tag or its own digest."""
        response = self._request(
            "PUT",
            f"manifests/{version}",
            activity,
            headers={"Content-Type": descriptor.media_type},
            body=content,
        )
        stored = response.headers.get("Docker-Content-Digest", descriptor.digest)
        if stored != descriptor.digest:
            raise RegistryError(
                f"{self._endpoint.host} stored the manifest {descriptor.digest} as {stored[:100]!r}"
            )

    def _has(self, digest: str, activity: Activity) -> bool:
        # Whoever may only write is told when it comes to writing.
        try:
            self._request("HEAD", f"blobs/{digest}", activity)
        except (ImageNotFound, AuthenticationRequired):
            return False
        return True

    def _mount(self, digest: str, source: str, activity: Activity) -> tuple[bool, str | None]:
        """Whether the blob was mounted; if not, perhaps the location of an upload."""
        query = {"mount": digest, "from": source}
        try:
            response = self._request("POST", _UPLOADS, activity, query=query)
        except RegistryError:
            activity.raise_if_cancelled()
            return False, None  # `source` may be closed to us, though the repository isn't
        return response.status == 201, response.headers.get("Location")

    def _begin(self, activity: Activity) -> str:
        location = self._request("POST", _UPLOADS, activity).headers.get("Location")
        if location is None:
            raise RegistryError(f"{self._endpoint.host} doesn't say where to upload to")
        return location

    def _upload(self, blob: Blob, location: str | None, activity: Activity) -> None:
        offset = failures = 0
        while True:
            if location is None:
                location, offset = self._begin(activity), 0
            try:
                self._finish(blob, location, offset, activity)
            except _Interrupted as interrupted:
                activity.raise_if_cancelled()
                failures += 1
                if failures >= self._retry.attempts:
                    raise interrupted.error from interrupted
                wait(interrupted.pause or self._retry.delay(failures - 1), activity)
            else:
                return
            before = offset
            location, offset = self._arrived(location, blob.descriptor.size, activity)
            if offset - before >= _ENOUGH:
                failures = 0
            # The answer alone may have been lost: then the upload has become the blob.
            if location is None and self._has(blob.descriptor.digest, activity):
                return

    def _finish(self, blob: Blob, location: str, offset: int, activity: Activity) -> None:
        """Send what of the blob lies from `offset` on. Raises _Interrupted if it broke off."""
        size = blob.descriptor.size
        mark = "&" if "?" in location else "?"
        headers = {"Content-Type": "application/octet-stream"}
        if 0 < offset < size:
            headers["Content-Range"] = f"{offset}-{size - 1}"
        try:
            response = self._session.exchange_at(
                self._endpoint,
                self._repository,
                f"{location}{mark}digest={quote(blob.descriptor.digest, safe='')}",
                activity,
                method="PUT",
                headers=headers,
                body=Body(size - offset, partial(blob.pieces, activity, offset)),
            )
        except RequestFailed as error:
            if not error.temporary:
                raise
            raise _Interrupted(error) from error
        with closing(response):
            if 200 <= response.status < 300:
                return
            problem = self._session.error(
                response, self._endpoint, self._repository, _UPLOADS, "PUT"
            )
            pause = self._session.pause(response, 0)
            if pause is None and response.status not in _LOST:
                raise problem
            raise _Interrupted(problem, pause)

    def _arrived(self, location: str, size: int, activity: Activity) -> tuple[str | None, int]:
        """Where to go on: location and offset; None if the upload must begin anew."""
        for attempt in range(self._retry.attempts):
            try:
                response = self._session.exchange_at(
                    self._endpoint, self._repository, location, activity, method="GET"
                )
            except RequestFailed:
                activity.raise_if_cancelled()
                wait(self._retry.delay(attempt), activity)
                continue
            response.close()
            # "0-0" is said of one byte and of none.
            span = _ARRIVED.fullmatch(response.headers.get("Range", ""))
            if response.status != 204 or span is None or int(span[1]) >= size:
                break
            return response.headers.get("Location", location), int(span[1]) + 1
        return None, 0

    def _request(
        self,
        method: str,
        path: str,
        activity: Activity,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Response:
        """The head of the answer, which has a status of success."""
        response = self._session.request(
            self._endpoint,
            self._repository,
            path,
            activity,
            method=method,
            query=query,
            headers=headers,
            body=None if method == "HEAD" else body,
        )
        response.close()
        return response


class _Interrupted(Exception):
    """A PUT that may be gone on with, after `pause` seconds if the registry says so."""

    def __init__(self, error: RegistryError | ImageNotFound, pause: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause = pause
