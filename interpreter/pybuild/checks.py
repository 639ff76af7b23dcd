"""`check`, `outline` and `targets`: what a Dockerfile tells without being built.

They are BuildKit's subrequests (``docker buildx build --call``), as functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from pybuild.backend import Backend, PullPolicy
from pybuild.dockerfile.frontend import SYNTAX_ARG
from pybuild.dockerfile.lint import CHECK_ARG, Lint, LintWarning
from pybuild.dockerfile.parse import parse
from pybuild.dockerfile.targets import Target, list_targets
from pybuild.errors import BuildCancelled, PybuildError
from pybuild.lookups import LazyLookup, resolving
from pybuild.oci.platform import Platform, host_platform
from pybuild.options import asked_platforms, pull_policy
from pybuild.plan import make_plan
from pybuild.plan.outline import Outline, make_outline
from pybuild.plan.steps import PlanRequest
from pybuild.planning import opened_inputs
from pybuild.remotes.fetching import Remotes
from pybuild.remotes.options import RemoteOptions
from pybuild.run.activity import CancelToken, Events
from pybuild.run.contexts import ContextValue, named_contexts
from pybuild.run.events import Reporter
from pybuild.run.inputs import Context, DockerfileSource, Inputs
from pybuild.secrets import Secret
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What :func:`check` found, in order of lines.

    ``error`` is what would end a build before its first step; the checks then saw only what
    comes before it. ``name`` and ``source`` are the Dockerfile that places are in.
    """

    warnings: tuple[LintWarning, ...]
    error: PybuildError | None
    name: str
    source: bytes


@dataclass(frozen=True, slots=True)
class OutlineResult:
    """What :func:`outline` found in the Dockerfile ``source``."""

    outline: Outline
    source: bytes


@dataclass(frozen=True, slots=True)
class TargetsResult:
    """The stages of the Dockerfile ``source``, the default target last."""

    targets: tuple[Target, ...]
    source: bytes


def check(
    context: Context,
    *,
    dockerfile: DockerfileSource = None,
    backend: str | Backend | None = None,
    backend_options: Mapping[str, object] | None = None,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    platform: str | Platform | Sequence[str | Platform] | None = None,
    pull: PullPolicy | str | bool = PullPolicy.MISSING,
    contexts: Mapping[str, ContextValue] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    remotes: RemoteOptions | None = None,
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
) -> CheckResult:
    """Run the build checks on `target` and what it needs, or on all stages.

    The arguments are those of :func:`pybuild.plan_build`, as is what happens without a
    backend; variables that a base image may have are then not said to be undefined.
    Raises ContextError and UsageError; errors in the Dockerfile and of its base images are in
    the result.
    """
    args = dict(build_args or {})
    cancel = cancel or CancelToken()
    fetched = Remotes(remotes, secrets or {})
    with _reading(context, dockerfile, fetched, Events(reporter), cancel) as reading:
        inputs = reading.inputs
        lint = Lint(args.get(CHECK_ARG), inputs.excluded)
        request = _request(backend, platform, target, args, contexts)
        lookup = reading.lookup(backend, backend_options, pull)
        error: PybuildError | None = None
        try:
            parsed = parse(inputs.dockerfile, inputs.name, lint, args.get(SYNTAX_ARG))
            with resolving(lookup, reading.events, cancel) as (resolve, executor):
                every = target is None
                make_plan(parsed, request, resolve, executor=executor, lint=lint, all_stages=every)
            lint.refuse()
        except BuildCancelled:
            raise
        except PybuildError as caught:
            cancel.raise_if_cancelled()
            error = caught
            error.files = {inputs.name: inputs.dockerfile}
    return CheckResult(lint.warnings, error, inputs.name, inputs.dockerfile)


def outline(
    context: Context,
    *,
    dockerfile: DockerfileSource = None,
    backend: str | Backend | None = None,
    backend_options: Mapping[str, object] | None = None,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    platform: str | Platform | Sequence[str | Platform] | None = None,
    pull: PullPolicy | str | bool = PullPolicy.MISSING,
    contexts: Mapping[str, ContextValue] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    remotes: RemoteOptions | None = None,
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
) -> OutlineResult:
    """Tell which build args, secrets and SSH agents `target` takes, the last stage by default.

    The arguments are those of :func:`pybuild.plan_build`. Raises a
    :class:`~pybuild.errors.PybuildError`.
    """
    args = dict(build_args or {})
    cancel = cancel or CancelToken()
    fetched = Remotes(remotes, secrets or {})
    with _reading(context, dockerfile, fetched, Events(reporter), cancel) as reading:
        inputs = reading.inputs
        parsed = parse(inputs.dockerfile, inputs.name, syntax=args.get(SYNTAX_ARG))
        request = _request(backend, platform, target, args, contexts)
        lookup = reading.lookup(backend, backend_options, pull)
        with resolving(lookup, reading.events, cancel) as (resolve, executor):
            found = make_outline(parsed, request, resolve, executor=executor)
    return OutlineResult(found, inputs.dockerfile)


def targets(
    context: Context,
    *,
    dockerfile: DockerfileSource = None,
    build_args: Mapping[str, str] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    remotes: RemoteOptions | None = None,
    cancel: CancelToken | None = None,
) -> TargetsResult:
    """List the stages that can be built. No image is looked up.

    Of `build_args` only BUILDKIT_SYNTAX counts. Raises a :class:`~pybuild.errors.PybuildError`.
    """
    fetched, cancel = Remotes(remotes, secrets or {}), cancel or CancelToken()
    with _reading(context, dockerfile, fetched, Events(None), cancel) as reading:
        inputs = reading.inputs
        syntax = (build_args or {}).get(SYNTAX_ARG)
        parsed = parse(inputs.dockerfile, inputs.name, syntax=syntax)
    return TargetsResult(list_targets(parsed), inputs.dockerfile)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The inputs that were read, for as long as they are open."""

    inputs: Inputs
    events: Events
    stack: ExitStack

    def lookup(
        self,
        backend: str | Backend | None,
        options: Mapping[str, object] | None,
        pull: PullPolicy | str | bool,
    ) -> LazyLookup:
        return LazyLookup(backend, options, pull_policy(pull), self.stack, self.events)


@contextmanager
def _reading(
    context: Context,
    dockerfile: DockerfileSource,
    remotes: Remotes,
    events: Events,
    cancel: CancelToken,
) -> Iterator[_Reading]:
    """Open the inputs; `remotes` are closed at the end."""
    with ExitStack() as stack:
        inputs = stack.enter_context(
            opened_inputs(context, dockerfile, {}, remotes, events=events, cancel=cancel)
        )
        yield _Reading(inputs, events, stack)


def _request(
    backend: str | Backend | None,
    platform: str | Platform | Sequence[str | Platform] | None,
    target: str | None,
    build_args: dict[str, str],
    contexts: Mapping[str, ContextValue] | None,
) -> PlanRequest:
    native = backend.platforms[0] if isinstance(backend, Backend) else host_platform()
    return PlanRequest(
        # as in BuildKit, the first of several
        next(iter(asked_platforms(platform)), native),
        native,
        target,
        build_args,
        contexts=named_contexts(contexts or {}),
    )
