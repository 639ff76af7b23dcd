"""The plan of a build: what runs, on what, and the config that comes out. Plain values.

Everything is expanded and every FROM resolved; what only the files can tell (which files a
pattern matches, the numbers behind a user's name) is left to the run.
"""

from __future__ import annotations

from pybuild.backend import BaseImage, Capability, HostEntry, Network, Sharing, Ulimit
from pybuild.errors import SourceRange
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.platform import Platform
from pybuild.plan.contexts import NamedContext
from pybuild.remotes.locations import Location
from pybuild.values import dataclass, field


@dataclass(frozen=True, slots=True)
class ContextSource:
    """The files of the main build context (`name` None) or of a named one."""

    name: str | None = None


@dataclass(frozen=True, slots=True)
class StageSource:
    """Another stage's final file system; `index` into :attr:`Plan.stages`' ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image that is no stage; None is scratch."""

    image: BaseImage | None


Source = ContextSource | StageSource | ImageSource


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A heredoc of COPY or ADD, expanded."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class PlannedRemote:
    """A source of ADD on the network; ``position`` many of the step's patterns come before it.

    With ``unpack`` a tar archive is unpacked.
    """

    location: Location
    position: int
    unpack: bool


@dataclass(frozen=True, slots=True)
class PlannedBind:
    target: str
    source: Source
    path: str
    """Inside the source, as written, symlinks not yet resolved."""
    readonly: bool


@dataclass(frozen=True, slots=True)
class PlannedTmpfs:
    target: str
    size: int | None


@dataclass(frozen=True, slots=True)
class PlannedScript:
    """A heredoc with a shebang, shown to the RUN as a file at `target`, mode 0755."""

    target: str
    content: bytes


@dataclass(frozen=True, slots=True)
class PlannedCache:
    """A cache mount. ``source`` is what it begins with, None for an empty folder.

    ``path`` is inside the source; without one, inside the cache itself.
    """

    target: str
    ident: str
    sharing: Sharing
    source: Source | None
    path: str
    readonly: bool
    mode: int | None
    uid: int | None
    gid: int | None


@dataclass(frozen=True, slots=True)
class PlannedSecret:
    """The secret called ``id``, as a file at ``target``, in the variable ``env``, or both."""

    id: str
    target: str | None
    env: str | None
    required: bool
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class PlannedSsh:
    """The SSH agent called ``id``, as a socket at ``target``."""

    id: str
    target: str
    required: bool
    mode: int
    uid: int
    gid: int


PlannedMount = (
    PlannedBind | PlannedTmpfs | PlannedScript | PlannedCache | PlannedSecret | PlannedSsh
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    where: SourceRange
    title: str
    """The instruction as shown in progress: ``RUN make``."""
    key: str
    """Hash of everything that is known when planning: parent's key, instruction, variables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep(_Step):
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    """All variables but the proxies."""
    cwd: str
    user: str
    """``name-or-number[:group]``, empty for root."""
    mounts: tuple[PlannedMount, ...] = ()
    network: Network = Network.DEFAULT
    hostname: str = "buildkitsandbox"
    extra_hosts: tuple[HostEntry, ...] = ()
    shm_size: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    insecure: bool = False
    cgroup_parent: str | None = None
    proxies: tuple[tuple[str, str], ...] = ()
    """Proxy variables of the caller's; how a download came changes no result, and no key."""

    @property
    def process_env(self) -> tuple[tuple[str, str], ...]:
        """What the process sees: the caller's proxies cover those of the Dockerfile."""
        if not self.proxies:
            return self.env
        covered = {name for name, _ in self.proxies}
        return (*(pair for pair in self.env if pair[0] not in covered), *self.proxies)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStep(_Step):
    """COPY or ADD. ``destination`` is absolute; a trailing slash says that it is a folder."""

    source: Source
    patterns: tuple[str, ...]
    files: tuple[InlineFile, ...]
    destination: str
    chown: str | None = None
    chmod: str | None = None
    exclude: tuple[str, ...] = ()
    parents: bool = False
    link: bool = False
    unpack: bool = False
    """Whether local tar archives among the sources are unpacked (ADD)."""
    remotes: tuple[PlannedRemote, ...] = ()
    instruction: str = "COPY"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkdirStep(_Step):
    """Make the folder `path` (absolute) and its missing parents."""

    path: str
    user: str


Step = RunStep | CopyStep | WorkdirStep


@dataclass(frozen=True, slots=True)
class PlannedHistory:
    """A history line; ``step`` is the position of its step in the stage, None for metadata."""

    created_by: str
    step: int | None
    comment: str = "buildkit.dockerfile.v0"


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage that a target needs.

    ``index`` is unique in the plan. ``label`` is the name shown in progress: that of the
    Dockerfile or ``stage-0`` and so on, behind the platform where the plan has several.
    ``parent`` is what it starts from: an image, another stage, or ImageSource(None).
    ``config`` is final but for rootfs, history and creation time. ``history`` is of this
    stage alone; ``inherited`` comes from the image or stage below. ``args`` are the last values
    of the ARGs that are set in it.
    """

    index: int
    name: str | None
    label: str
    platform: Platform
    parent: ImageSource | StageSource
    steps: tuple[Step, ...]
    config: ImageConfig
    inherited: tuple[HistoryEntry, ...]
    history: tuple[PlannedHistory, ...]
    where: SourceRange
    args: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """What is built for one platform: the stage that becomes its image."""

    platform: Platform
    stage: PlannedStage


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages that the targets need, each after those that it needs.

    ``targets`` has one for each platform asked for. A stage that comes out the same for
    several of them stands in ``stages`` once.
    """

    stages: tuple[PlannedStage, ...]
    targets: tuple[PlanTarget, ...]
    warnings: tuple[tuple[str, SourceRange | None], ...] = ()

    @property
    def target(self) -> PlannedStage:
        """The stage of the only platform, or of the first."""
        return self.targets[0].stage

    def base_image(self, stage: PlannedStage) -> BaseImage | None:
        """The image that the chain of stages below `stage` starts from; None for scratch."""
        by_index = {each.index: each for each in self.stages}
        parent = stage.parent
        while isinstance(parent, StageSource):
            parent = by_index[parent.index].parent
        return parent.image


@dataclass(frozen=True, slots=True)
class Need:
    """A capability that a step needs, and the step's place."""

    capability: Capability
    where: SourceRange


@dataclass(frozen=True, slots=True)
class RunDefaults:
    """What the command line says of every RUN.

    ``allowed`` are the entitlements: ``network.host``, ``security.insecure``, ``device``,
    ``device=NAME``.
    """

    network: Network = Network.DEFAULT
    extra_hosts: tuple[HostEntry, ...] = ()
    shm_size: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    hostname: str = "buildkitsandbox"
    allowed: frozenset[str] = frozenset()
    cgroup_parent: str | None = None


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The caller's side of a plan for one platform."""

    platform: Platform
    build_platform: Platform
    target: str | None = None
    build_args: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    run: RunDefaults = RunDefaults()
    contexts: dict[str, NamedContext] = field(default_factory=dict)


def needs(plan: Plan) -> tuple[Need, ...]:
    """What the backend must be able to do, each capability with every place that needs it."""
    found = [need for stage in plan.stages for step in stage.steps for need in _needs(step)]
    return tuple(dict.fromkeys(found))


def _needs(step: Step) -> list[Need]:
    if not isinstance(step, RunStep):
        return []
    capabilities = [Capability.RUN]
    match step.network:
        case Network.NONE:
            capabilities.append(Capability.NETWORK_NONE)
        case Network.HOST:
            capabilities.append(Capability.NETWORK_HOST)
        case Network.DEFAULT:
            pass
    if step.insecure:
        capabilities.append(Capability.INSECURE)
    if step.cgroup_parent is not None:
        capabilities.append(Capability.CGROUP_PARENT)
    for mount in step.mounts:
        match mount:
            case PlannedBind() | PlannedScript():
                capabilities.append(Capability.BIND_MOUNT)
            case PlannedTmpfs():
                capabilities.append(Capability.TMPFS_MOUNT)
            case PlannedCache():
                capabilities.append(Capability.CACHE_MOUNT)
            case PlannedSecret():
                capabilities.append(Capability.SECRET_MOUNT)
            case PlannedSsh():
                capabilities.append(Capability.SSH_MOUNT)
    return [Need(capability, step.where) for capability in capabilities]
