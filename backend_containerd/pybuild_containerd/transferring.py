"""Layers fetched by containerd itself, through its transfer service (1.7 and later).

What an image is was found out before, from its registry, by our own client: which manifest
fits the platform, with typed errors and without a layer fetched. Only then, and only when its
layers are needed, does containerd pull that very digest. So a dry run downloads nothing, no
tag can move in between, and the registry has shown our own rules for logins to be kept.

A transfer is never the last word: the caller looks which blobs are there afterwards, and
fetches what is missing. Nor does it unpack, though it could: layers are checked before.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Final

from pybuild.backend import Activity
from pybuild.errors import BackendError, ImageError, PybuildError
from pybuild.oci.auth import Credential, Credentials
from pybuild.oci.hosts import Hosts
from pybuild.oci.http import is_loopback
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference, familiar
from pybuild.values import dataclass, field
from pybuild_containerd import rpcs
from pybuild_containerd._proto import enum_value, message_class
from pybuild_containerd.client import Client, PendingCall, Stream, encode
from pybuild_containerd.errors_table import (
    CallCancelled,
    CallFailed,
    InvalidArgument,
    Unimplemented,
)

_STREAM_INIT: Final = "containerd.services.streaming.v1.StreamInit"
_TYPES: Final = "containerd.types.transfer"
_PASSWORD: Final = enum_value("AuthType", "CREDENTIALS")
_IDENTITY_TOKEN: Final = enum_value("AuthType", "REFRESH")
_HUB: Final = "registry-1.docker.io"
# containerd's words where the machine's policy forbids an image (its core/transfer/local)
_VETO: Final = "image verifier"


@dataclass(frozen=True, slots=True)
class WantedImage:
    """An image to pull: ``digest`` is what its record shall point to, an index or a manifest.

    ``platform`` is what the index calls the manifest that was chosen, ``scheme`` how its
    registry was reached (https, http): containerd's own guess is another. ``layers`` are the
    sizes by digest of the blobs whose progress is told; ``labels`` those that the record has
    now, which containerd would drop.
    """

    reference: Reference
    digest: str
    platform: Platform
    scheme: str
    layers: Mapping[str, int]
    labels: Mapping[str, str] = field(default_factory=dict)


class TransferService:
    """Pulls by containerd. Safe in threads."""

    def __init__(
        self,
        client: Client,
        hosts: Hosts,
        credentials: Callable[[], Credentials],
        *,
        same_host: bool,
    ) -> None:
        """`same_host` says that containerd sees our files and what listens on our loopback."""
        self._client = client
        self._hosts = hosts
        self._credentials = credentials
        self._same_host = same_host
        self._refused = False

    def pull(self, image: WantedImage, activity: Activity) -> bool:
        """Fetch the image and make its record, all kept by the session's lease.

        False where containerd can't, whatever the reason: our own pull may do better, and says
        what is wrong if it doesn't. Progress is told under each layer's digest. Raises
        ImageError where the machine's policy forbids the image, BuildCancelled.
        """
        if self._refused or not self._reaches(image.reference.registry):
            return False
        try:
            self._transfer(image, activity)
        except CallCancelled:
            activity.raise_if_cancelled()
            return False
        except (InvalidArgument, Unimplemented):
            self._refused = True  # not configured for such a pull, so not for the next either
            return False
        except BackendError as error:
            if isinstance(error, CallFailed) and _VETO in error.details:
                raise _vetoed(image.reference, error) from None
            return False
        return True

    def _reaches(self, registry: str) -> bool:
        """Whether containerd finds `registry` (``host[:port]``) where we do.

        A hosts.toml of ours, and a registry on loopback, mean nothing on another machine.
        """
        here_only = self._hosts.names(registry) or is_loopback(_without_port(registry))
        return self._same_host or not here_only

    def _transfer(self, image: WantedImage, activity: Activity) -> None:
        """Raises CallFailed, DaemonGone, BuildCancelled."""
        with ExitStack() as stack:
            progress, progress_id = self._open_stream(stack, activity)
            answers, answers_id = self._open_stream(stack, activity, bounded=False)
            asker = _Asker(answers, self._known_hosts(image.reference), self._credentials)
            threading.Thread(target=asker.run, name="pybuild-logins", daemon=True).start()
            pending = self._client.start(
                rpcs.TRANSFER,
                source=self._source(image, answers_id),
                destination=self._destination(image),
                options={"progress_stream": progress_id},
            )
            stack.callback(pending.cancel)
            stack.enter_context(activity.on_cancel(pending.cancel))
            _follow(pending, progress, image.layers, activity)

    def _open_stream(
        self, stack: ExitStack, activity: Activity, *, bounded: bool = True
    ) -> tuple[Stream, str]:
        """A stream that containerd knows by the id that is given back."""
        name = f"pybuild-{secrets.token_hex(16)}"
        stream = self._client.duplex(rpcs.STREAM, activity=activity, bounded=bounded)
        stack.enter_context(stream)
        stream.send(**_packed(_STREAM_INIT, "StreamInit", id=name))
        stream.receive()  # an empty message, once the id is registered
        return stream, name

    def _source(self, image: WantedImage, auth_stream: str) -> dict[str, Any]:
        directory = self._hosts.directory
        resolver = {
            "auth_stream": auth_stream,
            "host_dir": str(directory.absolute()) if directory and self._same_host else "",
            "default_scheme": image.scheme,
        }
        name = f"{image.reference.registry}/{image.reference.repository}@{image.digest}"
        return _packed(f"{_TYPES}.OCIRegistry", "OCIRegistry", reference=name, resolver=resolver)

    def _destination(self, image: WantedImage) -> dict[str, Any]:
        platform = {
            "os": image.platform.os,
            "architecture": image.platform.architecture,
            "variant": image.platform.variant,
        }
        return _packed(
            f"{_TYPES}.ImageStore",
            "ImageStore",
            name=str(image.reference),
            labels=dict(image.labels),
            platforms=[platform],
            # without a limit, an index without the platform would be stored as an empty image
            manifest_limit=1,
        )

    def _known_hosts(self, reference: Reference) -> frozenset[str]:
        hosts = {endpoint.host for endpoint in self._hosts.endpoints(reference.registry)}
        return frozenset(hosts | {_HUB} if "docker.io" in hosts else hosts)


class _Asker:
    """Answers containerd's questions for logins, of the image's own hosts only."""

    def __init__(
        self, stream: Stream, hosts: frozenset[str], credentials: Callable[[], Credentials]
    ) -> None:
        self._stream = stream
        self._hosts = hosts
        self._credentials = credentials

    def run(self) -> None:
        # an error of the stream is one of the transfer too, and told there
        with contextlib.suppress(PybuildError):
            for question in self._stream:
                asked = message_class("AuthRequest").FromString(question.value)
                self._stream.send(**_answer(self._find(asked.host)))

    def _find(self, host: str) -> Credential | None:
        if host not in self._hosts:
            return None
        # without a login the registry refuses, and our own pull then says why there is none
        with contextlib.suppress(PybuildError):
            return self._credentials().for_host(host)
        return None


def _answer(credential: Credential | None) -> dict[str, Any]:
    kind = f"{_TYPES}.AuthResponse"
    if credential is None:
        return _packed(kind, "AuthResponse")
    if credential.identity_token:
        token = credential.identity_token
        return _packed(kind, "AuthResponse", auth_type=_IDENTITY_TOKEN, secret=token)
    return _packed(
        kind,
        "AuthResponse",
        auth_type=_PASSWORD,
        username=credential.username,
        secret=credential.password,
    )


def _follow(
    pending: PendingCall, progress: Stream, layers: Mapping[str, int], activity: Activity
) -> None:
    """Tell what the stream of progress says, until the call is over. Raises the call's error."""
    unfinished = dict(layers)
    # the server closes the stream at the end of the call, unless it never came to know it
    pending.on_done(progress.cancel)
    try:
        for digest, done in _events(progress):
            if digest in unfinished and 0 <= done < unfinished[digest]:
                activity.progress(digest, done, unfinished[digest])
            elif digest in unfinished:
                activity.progress(digest, size := unfinished.pop(digest), size)
    except CallCancelled:
        if not pending.done():
            raise
    pending.result()
    for digest, size in unfinished.items():
        activity.progress(digest, size, size)


def _events(progress: Stream) -> Iterator[tuple[str, int]]:
    """The blob that an event is about, as far as it has one, and how many bytes are here."""
    for message in progress:
        told = message_class("TransferProgress").FromString(message.value)
        # 1.7 has no descriptor here, but the name of what it writes: "layer-sha256:..."
        yield told.desc.digest or told.name.partition("-")[2], told.progress


def _packed(kind: str, message: str, **fields: Any) -> dict[str, Any]:
    """The fields of an Any that holds `message` of containerd.proto, containerd's `kind`."""
    return {"type_url": kind, "value": encode(message, **fields)}


def _vetoed(reference: Reference, error: CallFailed) -> ImageError:
    return ImageError(
        f"containerd may not pull {familiar(reference)}: {error.details}",
        hint="the image verifiers in containerd's configuration decide this",
    )


def _without_port(registry: str) -> str:
    host, colon, port = registry.rpartition(":")
    return host if colon and port.isdigit() else registry
