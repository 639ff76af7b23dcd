"""The loosely typed arguments of `build` and its like, made into values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from pybuild.backend import HostEntry, Network, PullPolicy, Ulimit
from pybuild.errors import UsageError
from pybuild.export.exporting import check_output
from pybuild.export.outputs import ImageOutput, Output, parse_output
from pybuild.lendingflags import parse_entitlements
from pybuild.oci.platform import Platform, parse_platform
from pybuild.oci.reference import Reference
from pybuild.plan.steps import Plan, RunDefaults

_CGROUP = r"(?a)/?(?!\.+(?:/|$))[\w.@:-]+(?:/(?!\.+(?:/|$))[\w.@:-]+)*/?"


def asked_platforms(
    platform: str | Platform | Sequence[str | Platform] | None,
) -> tuple[Platform, ...]:
    """The platforms asked for, each once; none is the backend's own. Raises UsageError."""
    if platform is None:
        return ()
    found: dict[Platform, None] = {}
    for each in [platform] if isinstance(platform, str | Platform) else platform:
        if isinstance(each, Platform):
            found[each] = None
        else:
            found |= dict.fromkeys(parse_platform(part) for part in each.split(",") if part)
    return tuple(found)


def wants_index(platforms: Sequence[Platform], build_args: Mapping[str, str]) -> bool:
    """Whether there will be an index. Raises UsageError."""
    text = build_args.get("BUILDKIT_MULTI_PLATFORM", "")
    if text.lower() not in {"", "0", "f", "false", "1", "t", "true"}:
        raise UsageError(f'the build arg BUILDKIT_MULTI_PLATFORM "{text}" is not true or false')
    return len(platforms) > 1 or text.lower() in {"1", "t", "true"}


def pull_policy(pull: PullPolicy | str | bool, *, locked: bool = False) -> PullPolicy:
    """The policy that `pull` says; True is always, False missing. Raises UsageError.

    Of `locked` images the digests are known, so that asking again could tell nothing new.
    """
    if isinstance(pull, bool):
        pull = PullPolicy.ALWAYS if pull else PullPolicy.MISSING
    try:
        policy = PullPolicy(pull)
    except ValueError:
        raise UsageError(f'the pull policy "{pull}" is not missing, always or never') from None
    return PullPolicy.MISSING if locked and policy is PullPolicy.ALWAYS else policy


def run_defaults(  # noqa: PLR0917 - what the command line says of RUN, in its order
    network: Network | str | None,
    hosts: Sequence[HostEntry],
    shm_size: int | None,
    ulimits: Sequence[Ulimit],
    cgroup: str | None,
    allow: Sequence[str],
) -> RunDefaults:
    """What every RUN of the build has. `shm_size` is in bytes. Raises UsageError."""
    try:
        chosen = Network(network or Network.DEFAULT)
    except ValueError:
        raise UsageError(f'the network "{network}" is not default, none or host') from None
    if cgroup is not None and not re.fullmatch(_CGROUP, cgroup):
        raise UsageError(f'the control group "{cgroup}" is no path of one', hint="as in /builds/a")
    return RunDefaults(
        chosen,
        tuple(hosts),
        shm_size,
        tuple(ulimits),
        allowed=parse_entitlements(allow),
        cgroup_parent=cgroup and "/" + cgroup.strip("/"),
    )


def with_epoch(build_args: Mapping[str, str], fixed_time: datetime | None) -> dict[str, str]:
    """The build args, in which stages that declare SOURCE_DATE_EPOCH see the image's time."""
    if fixed_time is None:
        return dict(build_args)
    return {**build_args, "SOURCE_DATE_EPOCH": str(int(fixed_time.timestamp()))}


def fixed_time_of(created: datetime | int | None, build_args: Mapping[str, str]) -> datetime | None:
    """The time that replaces every clock: `created`, else the build arg. Raises UsageError."""
    if isinstance(created, datetime):
        return created.astimezone(UTC)
    text = build_args.get("SOURCE_DATE_EPOCH", "") if created is None else str(created)
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f'"{text}" is no time in seconds since 1970') from None


def stages_to_hit(
    asked: bool | Collection[str],
    plan: Plan,
    names: Sequence[str | None],
    *,
    use_cache: bool,
) -> frozenset[int]:
    """The indexes of the stages in which no step may miss: all of them for True.

    `names` are those of all stages in the Dockerfile. Raises UsageError for one that isn't
    there, and where no results of steps are kept.
    """
    if not asked:
        return frozenset()
    if not use_cache:
        raise UsageError(
            "with --fail-on-miss every step would fail: the build uses no cache",
            hint="leave out --no-cache, and take a backend that keeps steps",
        )
    known = [name or f"stage-{position}" for position, name in enumerate(names)]
    wanted = set(known)
    if not isinstance(asked, bool):
        wanted = {name.lower() for name in ([asked] if isinstance(asked, str) else asked)}
    for name in sorted(wanted.difference(known)):
        raise UsageError(
            f'--fail-on-miss: there is no stage "{name}"', hint=f"there are {', '.join(known)}"
        )
    # a stage for another platform has the index of the first one plus a multiple of their number
    return frozenset(s.index for s in plan.stages if known[s.index % len(known)] in wanted)


def wanted_outputs(
    outputs: Sequence[Output | str], names: Sequence[Reference], *, as_index: bool
) -> tuple[Output, ...]:
    """The outputs, each of them checked; without any, the image goes into the store.

    `names` are the build's. Raises UsageError, ExportFailed.
    """
    parsed = tuple(parse_output(one) if isinstance(one, str) else one for one in outputs)
    for output in parsed:
        check_output(output, names, as_index=as_index)
    return parsed or (ImageOutput(),)
