"""Lines as they leave a process."""

import logging

import pytest

from deployments.logs.ids import log_ids
from deployments.logs.lines import LOGGER, NOTICE, TERMINAL, name_replica
from deployments.tracing.context import TraceContext
from tests.support.logs import begun_log

TRACE = TraceContext("1" * 32, "2" * 16, True)
SECRET = "the-secret-of-the-store"
log = logging.getLogger(LOGGER)


def test_a_line_has_the_ids_as_fields() -> None:
    with begun_log("sampler") as lines, log_ids(job="video_1", tenant="acme", lease="l", trace=lambda: TRACE):
        name_replica("r1")
        log.info("step %d", 3)
    (line,) = lines()
    wanted = {"job": "video_1", "tenant": "acme", "lease": "l", "trace_id": "1" * 32, "span_id": "2" * 16}
    wanted |= {"stage": "sampler", "replica": "r1", "levelname": "INFO", "message": "step 3"}
    assert {name: line.get(name) for name in wanted} == wanted


def test_text_names_the_job_before_the_message() -> None:
    with begun_log("sampler", "text") as lines:
        log.info("first")
        with log_ids(job="video_1"):
            log.info("50%% of %s", "it")
    assert [line["message"] for line in lines()] == ["first", "[video_1] 50% of it"]


def test_no_secret_is_in_a_line_whoever_writes_it() -> None:
    """Without the mask in LineFactory each of these fails."""
    with begun_log("sampler", secrets=[SECRET]) as lines:
        log.info(f"with {SECRET}")
        log.info("with %s", SECRET)
        log.warning("of %s", {"secret_key": "short"})
        try:
            raise ValueError(f"cannot use {SECRET}")
        except ValueError:
            log.exception("failed")
        library = logging.getLogger("urllib3.connectionpool")
        record = library.makeRecord(
            library.name, logging.WARNING, __file__, 1, "retrying %s", ("/b/1.mp4?X-Amz-Signature=f00",), None
        )
    text = str(lines())
    assert SECRET not in text and "short" not in text
    assert text.count("***") == 4
    assert "ValueError: cannot use ***" in lines()[3]["exc_text"]
    assert record.getMessage() == "retrying /b/1.mp4?X-Amz-Signature=***"


def test_fields_that_serve_gives_its_own_lines_are_taken() -> None:
    """Of its access log: Python refuses a field that a record has already, and the call would fail with it."""
    with begun_log("sampler") as lines, log_ids(job="video_1"):
        name_replica("r1")
        log.info("CALL run OK", extra={"replica": "r1", "deployment": "d", "request_id": "q", "route": "/"})
    assert lines()[0] | {"replica": "r1", "request_id": "q", "job": "video_1"} == lines()[0]


def test_arguments_that_do_not_fit_end_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with begun_log("sampler") as lines:
        log.info("%d steps", "many")
        log.info("goes on")
    assert [line["message"] for line in lines()] == ["goes on"]
    assert "Logging error" in capsys.readouterr().err


def test_the_terminal_is_for_notices_warnings_and_what_went_wrong() -> None:
    with begun_log("sampler") as lines:
        log.info("nothing")
        log.info("a replica is there", extra=NOTICE)
        log.warning("careful")
        log.error("broken")
        of_ray = log.makeRecord(LOGGER, logging.WARNING, "/x/site-packages/ray/serve/router.py", 1, "busy", (), None)
        log.handle(of_ray)
    assert [line[TERMINAL] for line in lines()] == [False, True, True, True, False]
