from __future__ import annotations

import threading

import pytest

from pybuild.errors import BackendFailed, BuildCancelled, SourceRange
from pybuild.run.activity import CancelToken, Events
from pybuild.run.events import Event, StepFinished, StepLog, StepProgress, StepStarted, Warned

WHERE = SourceRange("Dockerfile", 3, 3)


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def test_cancel_calls_back_once_however_often_it_is_called() -> None:
    token, calls = CancelToken(), []
    with token.on_cancel(lambda: calls.append(1)):
        token.cancel()
        token.cancel()
    assert calls == [1]
    assert token.cancelled


def test_registering_on_a_cancelled_token_calls_back_at_once() -> None:
    token, calls = CancelToken(), []
    token.cancel()
    with token.on_cancel(lambda: calls.append(1)):
        assert calls == [1]


def test_nothing_is_called_back_after_its_context() -> None:
    token, calls = CancelToken(), []
    with token.on_cancel(lambda: calls.append(1)):
        pass
    token.cancel()
    assert calls == []


def test_a_failing_callback_keeps_no_other_from_running() -> None:
    token, calls = CancelToken(), []

    def fail() -> None:
        raise OSError("gone")

    with token.on_cancel(fail), token.on_cancel(lambda: calls.append(1)):
        token.cancel()
    assert calls == [1]


def test_leaving_the_context_waits_for_a_callback_that_is_running() -> None:
    token = CancelToken()
    inside, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def callback() -> None:
        inside.set()
        assert go_on.wait(10)
        ended.append("callback")

    with token.on_cancel(callback):
        canceller = threading.Thread(target=token.cancel)
        canceller.start()
        assert inside.wait(10)
        threading.Timer(0.05, go_on.set).start()
    ended.append("context")
    canceller.join()
    assert ended == ["callback", "context"]


def test_units_are_numbered_from_one_and_end_as_they_went() -> None:
    recorder = Recorder()
    events, cancel = Events(recorder), CancelToken()
    with events.unit("good", cancel, stage="build", position="1/2", where=WHERE) as activity:
        activity.cached = True
    with pytest.raises(BackendFailed) as caught, events.unit("bad", cancel, where=WHERE):
        raise BackendFailed("broken")
    cancel.cancel()
    with pytest.raises(BuildCancelled), events.unit("stopped", cancel):
        cancel.raise_if_cancelled()
    assert recorder.of(StepStarted) == [
        StepStarted(1, "good", "build", "1/2", WHERE),
        StepStarted(2, "bad", "", "", WHERE),
        StepStarted(3, "stopped", "", "", None),
    ]
    good, bad, stopped = recorder.of(StepFinished)
    assert good.cached
    assert good.error is None
    assert bad.error is caught.value
    assert bad.error.where == WHERE
    assert not bad.cancelled
    assert stopped.cancelled


def test_logs_carry_the_units_number_and_time_and_leave_a_tail() -> None:
    recorder = Recorder()
    with Events(recorder).unit("RUN", CancelToken()) as activity:
        activity.log(1, b"one\ntw")
        activity.log(2, b"")
        activity.log(2, b"o\n")
    assert [(log.id, log.stream, log.data) for log in recorder.of(StepLog)] == [
        (1, 1, b"one\ntw"),
        (1, 2, b"o\n"),
    ]
    assert activity.tail.lines() == ("one", "two")


def test_a_reporter_may_cancel_the_build_whose_callbacks_report() -> None:
    cancel, told = CancelToken(), []

    class Canceller:
        def report(self, event: Event) -> None:
            told.append(event)
            if isinstance(event, StepLog) and event.data == b"stop":
                cancel.cancel()

    with (
        Events(Canceller()).unit("RUN", cancel) as activity,
        activity.on_cancel(lambda: activity.warn("killed")),
    ):
        activity.log(1, b"stop")
    assert [type(event) for event in told] == [StepStarted, StepLog, Warned, StepFinished]


def test_output_after_a_cancel_is_kept_and_not_reported() -> None:
    recorder, cancel = Recorder(), CancelToken()
    with Events(recorder).unit("RUN", cancel) as activity:
        activity.log(1, b"before\n")
        cancel.cancel()
        activity.log(1, b"after\n")
    assert [log.data for log in recorder.of(StepLog)] == [b"before\n"]
    assert activity.tail.lines() == ("before", "after")


def test_progress_is_thinned_out_but_its_end_is_told() -> None:
    recorder = Recorder()
    with Events(recorder).unit("pull", CancelToken()) as activity:
        for done in range(1000):
            activity.progress("layer", done, 1000)
        activity.progress("layer", 1000, 1000)
    told = recorder.of(StepProgress)
    assert len(told) < 100
    assert told[-1] == StepProgress(1, "layer", 1000, 1000)


def test_events_of_many_threads_reach_the_reporter_one_at_a_time() -> None:
    inside = threading.Lock()
    overlaps: list[int] = []

    class Strict:
        def report(self, event: Event) -> None:
            if not inside.acquire(blocking=False):
                overlaps.append(1)
                return
            threading.Event().wait(0.0001)
            inside.release()

    events = Events(Strict())

    def work() -> None:
        with events.unit("step", CancelToken()) as activity:
            for _ in range(50):
                activity.log(1, b"x")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
