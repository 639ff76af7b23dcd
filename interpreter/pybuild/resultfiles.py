"""The files that tell of a build's result: ``--iidfile`` and ``--metadata-file``."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pybuild.arguments import BuildArguments
from pybuild.errors import UsageError
from pybuild.oci.manifest import descriptor_as_json
from pybuild.oci.platform import platform_as_json
from pybuild.run.result import BuildResult


def write_result_files(arguments: BuildArguments, result: BuildResult) -> None:
    """Write the files that are asked for. Raises UsageError."""
    if arguments.iidfile:
        _write(arguments.iidfile, result.digest)
    if arguments.metadata_file:
        metadata: dict[str, Any] = {
            "containerimage.descriptor": _described(result),
            "containerimage.digest": result.digest,
            "image.name": ",".join(result.names),
        }
        if not result.is_index:
            metadata["containerimage.config.digest"] = result.config_digest
        _write(arguments.metadata_file, json.dumps(metadata, indent=2) + "\n")


def _described(result: BuildResult) -> dict[str, Any]:
    """The descriptor as buildx writes it, with the platform of what is no index."""
    described = descriptor_as_json(result.descriptor)
    if not result.is_index:
        described["platform"] = platform_as_json(result.platform)
    return described


def remove_stale(path: str | None) -> None:
    """A build that fails must not leave the digest of an earlier one; /dev/stdout stays."""
    with suppress(OSError):
        if path and Path(path).is_file() and not Path(path).is_symlink():
            Path(path).unlink()


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f'can\'t write "{path}": {error.strerror or error}') from error
