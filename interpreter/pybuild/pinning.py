"""What a lock says, put into a build: its images are taken by digest, its sources by checksum."""

from __future__ import annotations

from pybuild.backend import BaseImage
from pybuild.errors import InvalidImage, LockError, located
from pybuild.lockfile import Lock
from pybuild.lookups import Lookup
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference, familiar, with_default_tag
from pybuild.plan.resolve import ImageName
from pybuild.plan.steps import CopyStep, Plan, PlannedRemote, Step
from pybuild.remotes.locations import GitLocation, WebLocation
from pybuild.run.activity import StepActivity
from pybuild.values import replace


def pinned_lookup(lookup: Lookup, lock: Lock) -> Lookup:
    """`lookup` that asks by the digests in `lock`, and raises LockError for what isn't there."""

    def look_up(name: ImageName, platform: Platform, activity: StepActivity) -> BaseImage:
        if not isinstance(name, Reference) or name.digest is not None:
            return lookup(name, platform, activity)
        name = with_default_tag(name)
        entry = lock.images.get((str(name), str(platform)))
        if entry is None:
            raise _not_locked(name, platform, lock)
        digest = entry.index or entry.digest
        image = lookup(replace(name, digest=digest), platform, activity)
        # without a backend, nothing was looked up
        if image.digest not in {"", entry.digest}:
            raise InvalidImage(
                f"{familiar(name)} is locked for {platform} as {entry.digest}, "
                f"but its index leads to {image.digest}",
                hint="the lock file was changed by hand; pybuild lock writes it anew",
            )
        return image

    return look_up


def pinned_plan(plan: Plan, lock: Lock) -> Plan:
    """`plan`, whose sources of ADD are those in `lock`. Raises LockError for others."""
    stages = {
        stage.index: replace(stage, steps=tuple(_pinned(step, lock) for step in stage.steps))
        for stage in plan.stages
    }
    targets = tuple(replace(one, stage=stages[one.stage.index]) for one in plan.targets)
    return replace(plan, stages=tuple(stages.values()), targets=targets)


def commit_key(location: GitLocation) -> str:
    """The name of a repository at a ref in a lock: its folders and options have one commit."""
    return f"{location.remote}#{location.ref}" if location.ref else location.remote


def is_pinned(location: WebLocation | GitLocation) -> bool:
    """Whether the Dockerfile itself says what is to be found there."""
    if isinstance(location, WebLocation):
        return bool(location.checksum)
    return location.is_commit or location.fetch_by_commit


def _pinned(step: Step, lock: Lock) -> Step:
    if not isinstance(step, CopyStep) or not step.remotes:
        return step
    with located(step.where):
        return replace(step, remotes=tuple(_pinned_remote(one, lock) for one in step.remotes))


def _pinned_remote(remote: PlannedRemote, lock: Lock) -> PlannedRemote:
    location = remote.location
    if is_pinned(location):
        return remote
    if isinstance(location, WebLocation):
        digest = lock.files.get(str(location))
        if digest is None:
            raise _missing(str(location))
        return replace(remote, location=replace(location, checksum=digest))
    commit = lock.commits.get(commit_key(location))
    if commit is None:
        raise _missing(commit_key(location))
    return replace(remote, location=replace(location, ref=commit))


def _not_locked(name: Reference, platform: Platform, lock: Lock) -> LockError:
    others = sorted({other for known, other in lock.images if known == str(name)})
    if others:
        platforms = ",".join(dict.fromkeys([*lock.platforms, str(platform)]))
        return LockError(
            f"{familiar(name)} is locked for {', '.join(others)}, not for {platform}",
            hint=f"pybuild lock --platform {platforms}",
        )
    return _missing(familiar(name))


def _missing(what: str) -> LockError:
    return LockError(f"{what} is not in the lock file", hint="pybuild lock adds it")
