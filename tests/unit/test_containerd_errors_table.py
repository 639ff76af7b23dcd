from __future__ import annotations

import grpc
import pytest

from pybuild.errors import BackendError, BackendFailed, BackendUnavailable
from pybuild_containerd import errors_table
from pybuild_containerd.errors_table import STATUS_ERRORS, translate


def test_the_table_has_every_status_code_of_grpc_and_no_other() -> None:
    assert set(STATUS_ERRORS) == {code.name for code in grpc.StatusCode}


def test_every_error_of_the_table_ends_a_build_as_a_backend_error() -> None:
    for code in STATUS_ERRORS:
        assert isinstance(translate("Content.Info", code, "text"), BackendError)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("NOT_FOUND", "content sha256:1: not found", errors_table.NotFound),
        ("ALREADY_EXISTS", "snapshot x: already exists", errors_table.AlreadyExists),
        ("UNAVAILABLE", "ref layer-1 locked for 3s: unavailable", errors_table.Locked),
        ("UNAVAILABLE", "connection refused", errors_table.DaemonGone),
        ("DEADLINE_EXCEEDED", "", errors_table.TimedOut),
        ("UNKNOWN", "runc: exec failed", errors_table.CallFailed),
    ],
)
def test_codes_become_their_errors(code: str, details: str, kind: type[BackendError]) -> None:
    assert type(translate("Snapshots.Prepare", code, details)) is kind


def test_a_dead_daemon_is_unavailable_and_anything_else_a_failure() -> None:
    assert isinstance(translate("A.B", "UNAVAILABLE", "broken pipe"), BackendUnavailable)
    assert isinstance(translate("A.B", "UNAVAILABLE", "ref is locked"), BackendFailed)
    assert isinstance(translate("A.B", "INTERNAL", "broken pipe"), BackendFailed)


def test_a_message_is_one_printable_line_with_the_call_in_it() -> None:
    error = translate("Tasks.Start", "UNKNOWN", "first\n\x1b[31msecond\t\x00third" + "x" * 9000)
    assert error.message.startswith("containerd refused Tasks.Start: first [31msecond third")
    assert error.message.isprintable()
    assert len(error.message) < 2100


def test_a_call_without_details_names_its_status() -> None:
    assert translate("A.B", "ABORTED", None).details == "aborted"


def test_a_full_disk_has_a_hint_about_the_daemons_folder() -> None:
    error = translate("Content.Write", "UNKNOWN", "write /x: no space left on device")
    assert "root folder" in (error.hint or "")
