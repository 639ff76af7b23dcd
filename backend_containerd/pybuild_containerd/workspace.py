"""What the layers of one backend share."""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.files.layerfiles import LayerFiles
from pybuild.values import dataclass
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.outputs import Outputs
from pybuild_containerd.runmounts import RunMounts
from pybuild_containerd.runners import Runners
from pybuild_containerd.runtime_spec import Machine
from pybuild_containerd.snapshots import Snapshots
from pybuild_containerd.stepcache import StepCache
from pybuild_containerd.unpack import Unpacker
from pybuild_containerd.workfolder import WorkFolder


@dataclass(frozen=True, slots=True)
class Workspace:
    """The connection and everything made on it.

    ``reads_snapshots`` says that this process sees the folders of snapshots, with the
    extended attributes that only root sees. ``session_labels`` mark containers as ours.
    """

    folder: WorkFolder
    client: Client
    content: ContentStore
    snapshots: Snapshots
    unpacker: Unpacker
    steps: StepCache
    files: LayerFiles
    mounts: RunMounts
    outputs: Outputs
    runners: Runners
    machine: Machine
    runtime: str
    reads_snapshots: bool
    session_labels: Mapping[str, str]
