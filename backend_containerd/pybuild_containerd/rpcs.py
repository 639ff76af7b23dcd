"""The calls of containerd's API that pybuild makes, as plain values.

A deadline is in seconds and bounds one call. It is far above what a healthy daemon needs,
so that only one that hangs reaches it. None is for calls that last as long as a process.
"""

from __future__ import annotations

from typing import Final

from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its path on the wire and the message names of ``_proto/containerd.proto``.

    ``reads`` says that it changes nothing, so that it may be tried again.
    """

    path: str
    request: str
    response: str
    deadline: float | None = 60.0
    reads: bool = False

    def __str__(self) -> str:
        service, _, method = self.path.rpartition("/")
        return f"{service.rpartition('.')[2]}.{method}"


def _read(service: str, method: str, request: str, response: str) -> Method:
    return Method(_path(service, method), request, response, reads=True)


def _write(
    service: str, method: str, request: str, response: str, deadline: float | None = 60.0
) -> Method:
    return Method(_path(service, method), request, response, deadline)


def _path(service: str, method: str) -> str:
    return f"/containerd.services.{service}.v1.{service.capitalize()}/{method}"


# copies, walks or syncs as many files as a layer has, or waits for a garbage collection
_LONG: Final = 1800.0
_STREAM: Final = None  # a stream is bounded by the silence between messages, see client.py

VERSION: Final = _read("version", "Version", "Empty", "VersionResponse")
PLUGINS: Final = _read("introspection", "Plugins", "PluginsRequest", "PluginsResponse")
SERVER: Final = _read("introspection", "Server", "Empty", "ServerResponse")

NAMESPACE_GET: Final = _read("namespaces", "Get", "NamespaceName", "NamespaceResponse")
NAMESPACE_LIST: Final = _read(
    "namespaces", "List", "ListNamespacesRequest", "ListNamespacesResponse"
)
NAMESPACE_CREATE: Final = _write("namespaces", "Create", "NamespaceRequest", "NamespaceResponse")
NAMESPACE_DELETE: Final = _write("namespaces", "Delete", "NamespaceName", "Empty")

CONTENT_INFO: Final = _read("content", "Info", "ContentDigest", "ContentInfoResponse")
CONTENT_UPDATE: Final = _write("content", "Update", "UpdateContentRequest", "ContentInfoResponse")
CONTENT_LIST: Final = _read("content", "List", "ListContentRequest", "ListContentResponse")
CONTENT_DELETE: Final = _write("content", "Delete", "ContentDigest", "Empty")
CONTENT_READ: Final = _read("content", "Read", "ReadContentRequest", "ReadContentResponse")
CONTENT_STATUS: Final = _read("content", "Status", "IngestRef", "IngestResponse")
CONTENT_STATUSES: Final = _read(
    "content", "ListStatuses", "ListIngestsRequest", "ListIngestsResponse"
)
CONTENT_WRITE: Final = _write(
    "content", "Write", "WriteContentRequest", "WriteContentResponse", _STREAM
)
CONTENT_ABORT: Final = _write("content", "Abort", "IngestRef", "Empty")

LEASE_CREATE: Final = _write("leases", "Create", "CreateLeaseRequest", "CreateLeaseResponse")
LEASE_DELETE: Final = _write("leases", "Delete", "DeleteLeaseRequest", "Empty", _LONG)
LEASE_LIST: Final = _read("leases", "List", "ListLeasesRequest", "ListLeasesResponse")
LEASE_ADD: Final = _write("leases", "AddResource", "LeaseResourceRequest", "Empty")
LEASE_REMOVE: Final = _write("leases", "DeleteResource", "LeaseResourceRequest", "Empty")
LEASE_RESOURCES: Final = _read(
    "leases", "ListResources", "ListResourcesRequest", "ListResourcesResponse"
)

SNAPSHOT_PREPARE: Final = _write(
    "snapshots", "Prepare", "NewSnapshotRequest", "MountsResponse", _LONG
)
SNAPSHOT_VIEW: Final = _write("snapshots", "View", "NewSnapshotRequest", "MountsResponse", _LONG)
SNAPSHOT_COMMIT: Final = _write("snapshots", "Commit", "CommitSnapshotRequest", "Empty", _LONG)
SNAPSHOT_REMOVE: Final = _write("snapshots", "Remove", "SnapshotKey", "Empty", _LONG)
SNAPSHOT_MOUNTS: Final = _read("snapshots", "Mounts", "SnapshotKey", "MountsResponse")
SNAPSHOT_STAT: Final = _read("snapshots", "Stat", "SnapshotKey", "StatSnapshotResponse")
SNAPSHOT_UPDATE: Final = _write(
    "snapshots", "Update", "UpdateSnapshotRequest", "StatSnapshotResponse"
)
SNAPSHOT_LIST: Final = _read("snapshots", "List", "ListSnapshotsRequest", "ListSnapshotsResponse")
SNAPSHOT_USAGE: Final = _read("snapshots", "Usage", "SnapshotKey", "UsageResponse")

DIFF_APPLY: Final = _write("diff", "Apply", "ApplyRequest", "ApplyResponse", _LONG)
DIFF_DIFF: Final = _write("diff", "Diff", "DiffRequest", "DiffResponse", _LONG)

IMAGE_GET: Final = _read("images", "Get", "ImageName", "ImageResponse")
IMAGE_LIST: Final = _read("images", "List", "ListImagesRequest", "ListImagesResponse")
IMAGE_CREATE: Final = _write("images", "Create", "CreateImageRequest", "ImageResponse")
IMAGE_UPDATE: Final = _write("images", "Update", "UpdateImageRequest", "ImageResponse")
IMAGE_DELETE: Final = _write("images", "Delete", "DeleteImageRequest", "Empty", _LONG)

CONTAINER_GET: Final = _read("containers", "Get", "ContainerId", "ContainerResponse")
CONTAINER_LIST: Final = _read(
    "containers", "List", "ListContainersRequest", "ListContainersResponse"
)
CONTAINER_CREATE: Final = _write("containers", "Create", "ContainerRequest", "ContainerResponse")
CONTAINER_DELETE: Final = _write("containers", "Delete", "ContainerId", "Empty")

TASK_CREATE: Final = _write("tasks", "Create", "CreateTaskRequest", "CreateTaskResponse", 120)
TASK_START: Final = _write("tasks", "Start", "TaskId", "StartTaskResponse", 120)
TASK_WAIT: Final = _write("tasks", "Wait", "TaskId", "WaitResponse", None)
TASK_KILL: Final = _write("tasks", "Kill", "KillRequest", "Empty")
TASK_DELETE: Final = _write("tasks", "Delete", "DeleteTaskRequest", "DeleteTaskResponse", 120)
TASK_GET: Final = _read("tasks", "Get", "TaskId", "GetTaskResponse")
TASK_LIST: Final = _read("tasks", "List", "ListTasksRequest", "ListTasksResponse")

# since 1.7
STREAM: Final = _write("streaming", "Stream", "Any", "Any", _STREAM)
TRANSFER: Final = _write("transfer", "Transfer", "TransferRequest", "Empty", None)

# since 2.2
MOUNT_ACTIVATE: Final = _write(
    "mounts", "Activate", "ActivateMountsRequest", "ActivateMountsResponse"
)
MOUNT_DEACTIVATE: Final = _write("mounts", "Deactivate", "DeactivateMountsRequest", "Empty")
