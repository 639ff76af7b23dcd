"""What a plan needs of a backend and its machine, checked before anything runs."""

from __future__ import annotations

from pybuild.backend import Backend
from pybuild.errors import UnsupportedByBackend
from pybuild.oci.platform import Platform
from pybuild.plan.steps import Plan, RunStep, needs
from pybuild.run.activity import Events


def check_supported(plan: Plan, backend: Backend, *, use_cache: bool) -> None:
    """Refuse, before anything runs, what the backend can't do.

    Raises UnsupportedByBackend, BackendUnavailable.
    """
    wanted = list(needs(plan))
    for need in wanted:
        if need.capability not in backend.capabilities:
            raise UnsupportedByBackend(
                f'the backend "{backend.name}" lacks what this step needs: {need.capability}',
                where=need.where,
                hint="use another backend (--backend)",
            )
    capabilities = frozenset(need.capability for need in wanted)
    backend.require(capabilities, certain=not use_cache)
    systems = {platform.os for platform in backend.platforms}
    for stage in plan.stages:
        if stage.platform.os not in systems:
            raise UnsupportedByBackend(
                f'the backend "{backend.name}" can\'t build for {stage.platform}',
                where=stage.where,
                hint=f"it builds for {', '.join(map(str, backend.platforms))}",
            )


def check_emulation(plan: Plan, backend: Backend, events: Events) -> None:
    """Refuse, before anything runs, a RUN for a processor that the machine can't emulate.

    Raises UnsupportedByBackend; warns where the backend can't tell.
    """
    runs: dict[Platform, RunStep] = {}
    for stage in plan.stages:
        first = next((step for step in stage.steps if isinstance(step, RunStep)), None)
        if first is not None:
            runs.setdefault(stage.platform, first)
    for platform, step in runs.items():
        match backend.executes(platform):
            case True:
                pass
            case False:
                from pybuild.sandbox import emulation  # noqa: PLC0415  (for its advice alone)

                raise UnsupportedByBackend(
                    f"RUN for {platform} needs an emulator, and this machine has none",
                    where=step.where,
                    hint=emulation.INSTALL_HINT,
                )
            case None:
                events.warn(
                    f"RUN for {platform} needs the machine that runs it to emulate it",
                    where=step.where,
                    hint="without that it ends with exec format error",
                )
