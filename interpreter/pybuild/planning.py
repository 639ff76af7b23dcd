"""From the inputs of one build to its plan, with what is reported and raised on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pybuild.dockerfile.frontend import SYNTAX_ARG
from pybuild.dockerfile.instructions import Dockerfile, From
from pybuild.dockerfile.lint import CHECK_ARG, Lint
from pybuild.dockerfile.parse import parse
from pybuild.errors import BuildCancelled, PybuildError
from pybuild.lookups import Lookup, resolving
from pybuild.oci.platform import Platform
from pybuild.plan import make_plans
from pybuild.plan.steps import Plan, PlanRequest
from pybuild.remotes.fetching import Remotes
from pybuild.run.activity import CancelToken, Events
from pybuild.run.events import LintReported
from pybuild.run.inputs import Context, DockerfileSource, Inputs, read_inputs
from pybuild.values import dataclass, replace

if TYPE_CHECKING:
    from pybuild.lockfile import Lock


@dataclass(frozen=True, slots=True)
class BuildSource:
    """What a build was given, read and parsed; ``lint`` collects what the checks find."""

    inputs: Inputs
    dockerfile: Dockerfile
    lint: Lint

    @property
    def stage_names(self) -> tuple[str | None, ...]:
        """Those of all stages, in the order of the file."""
        return tuple(i.stage for i in self.dockerfile.instructions if isinstance(i, From))


@contextmanager
def reading(
    context: Context,
    dockerfile: DockerfileSource,
    build_args: Mapping[str, str],
    remotes: Remotes,
    *,
    events: Events,
    cancel: CancelToken,
) -> Iterator[BuildSource]:
    """Read and parse; the inputs and `remotes`, which end with it, are open in this context.

    Its errors and those of the context get the texts that they are about. Raises ContextError,
    DockerfileError and what `remotes` do.
    """
    with (
        opened_inputs(
            context, dockerfile, build_args, remotes, events=events, cancel=cancel
        ) as inputs,
        _reported(inputs, build_args, events) as lint,
    ):
        parsed = parse(inputs.dockerfile, inputs.name, lint, build_args.get(SYNTAX_ARG))
        yield BuildSource(inputs, parsed, lint)


@contextmanager
def opened_inputs(
    context: Context,
    dockerfile: DockerfileSource,
    build_args: Mapping[str, str],
    remotes: Remotes,
    *,
    events: Events,
    cancel: CancelToken,
) -> Iterator[Inputs]:
    """Read the Dockerfile; it, the context and `remotes` are open in this context.

    What is raised in it gets the text of the Dockerfile. Raises ContextError and what `remotes`
    do.
    """
    files: dict[str, bytes] = {}
    with _errors_of_one_build(files, cancel), remotes, ExitStack() as stack:
        cancel.raise_if_cancelled()
        keep = build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "").lower() in {"1", "t", "true"}
        title = "[internal] load build definition from Dockerfile"
        with events.unit(title, cancel) as activity:
            inputs = stack.enter_context(
                read_inputs(context, dockerfile, remotes, activity, keep_git_dir=keep)
            )
        files[inputs.name] = inputs.dockerfile
        yield inputs


def for_each(platforms: Sequence[Platform], request: PlanRequest) -> list[PlanRequest]:
    """The request for each of the platforms asked for; as it is if none was."""
    return [replace(request, platform=each) for each in platforms] or [request]


def plan_all(
    source: BuildSource,
    requests: Sequence[PlanRequest],
    lookup: Lookup,
    lock: Lock | None = None,
    *,
    events: Events,
    cancel: CancelToken,
    max_workers: int | None = None,
) -> Plan:
    """Plan the build, with what is in `lock` if there is one.

    Raises DockerfileError also where a check found what counts as an error; LockError.
    """
    if lock is not None:
        from pybuild.pinning import pinned_lookup  # noqa: PLC0415 - few builds are locked

        lookup = pinned_lookup(lookup, lock)
    with resolving(lookup, events, cancel, max_workers) as (resolve, executor):
        plan = make_plans(source.dockerfile, requests, resolve, executor=executor, lint=source.lint)
    source.lint.refuse()
    if lock is not None:
        from pybuild.pinning import pinned_plan  # noqa: PLC0415 - as above

        plan = pinned_plan(plan, lock)
    return plan


def report_warnings(plan: Plan, events: Events) -> None:
    """Send the plan's warnings."""
    for message, where in plan.warnings:
        events.warn(message, where=where)


@contextmanager
def _reported(inputs: Inputs, build_args: Mapping[str, str], events: Events) -> Iterator[Lint]:
    """Collect what the build checks find, and report it when all else is done or failed."""
    lint = Lint(build_args.get(CHECK_ARG), inputs.excluded)
    try:
        yield lint
    finally:
        if lint.warnings:
            events.send(LintReported(lint.warnings, inputs.dockerfile))


@contextmanager
def _errors_of_one_build(files: Mapping[str, bytes], cancel: CancelToken) -> Iterator[None]:
    """Give errors the texts that their places are in, for whoever shows them.

    What breaks because the build was cancelled is no error of its own.
    """
    try:
        yield
    except BuildCancelled:
        raise
    except PybuildError as error:
        if cancel.cancelled:
            raise BuildCancelled("the build was cancelled") from error
        error.files = files
        raise
