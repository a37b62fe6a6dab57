"""Which lines of a server's processes come where."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from deployments.logs.masking import Mask
from serve_app.local.server_log import Phase, ServerLog, own_records_to

SECRET = "the-secret-of-the-store"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line(message: str, level: str = "INFO", terminal: bool = False, **more: Any) -> str:
    """As a process of ours writes it."""
    fields = {"asctime": "2026-11-28 00:37:02,472", "levelname": level, "message": message, "stage": "sampler"}
    return json.dumps(fields | {"process": 7, "terminal": terminal} | more)


def batch(*lines: str, pid: object = 7, **more: Any) -> dict[str, Any]:
    return {"lines": list(lines), "pid": pid, "is_err": True, "actor_name": "ServeController"} | more


CONTROLLER = "WARNING 2026-11-28 00:14:40,504 controller 371 -- HTTPOptions.host won't accept connections"
DIED = "A worker died or was killed while executing a task"


def server_log(path: Path, screen: io.StringIO, as_json: bool = False) -> ServerLog:
    return ServerLog(path / "server.log", Mask([SECRET]), as_json, screen)


def test_the_terminal_has_what_is_for_people_and_the_file_all(tmp_path: Path) -> None:
    screen = Terminal()
    log = server_log(tmp_path, screen)
    log.take(batch(line("running on cpu"), line("has 8 slots", terminal=True, notice=True), CONTROLLER))
    log.take(batch(line("store \x1b[2J away", "WARNING", True), line("bad", "ERROR", True, exc_text="Trace\nE: 1")))
    log.close()
    assert screen.getvalue().splitlines() == [
        "has 8 slots",
        "WARNING sampler: store  [2J away",
        "ERROR sampler: bad",
        "Trace",
        "E: 1",
    ]
    written = (tmp_path / "server.log").read_text().splitlines()
    assert written[0] == "INFO 2026-11-28 00:37:02,472 sampler 7 -- running on cpu"
    assert written[2].endswith(f"ServeController 7 -- {CONTROLLER}") and written[2].startswith("WARNING ")
    assert len(written) == 7


def test_without_a_terminal_all_goes_to_stderr_as_it_is_written(tmp_path: Path) -> None:
    screen = io.StringIO()
    log = server_log(tmp_path, screen, as_json=True)
    log.take(batch(line("running on cpu", job="video_1"), CONTROLLER, '{"not": "a line"}', "{"))
    log.close()
    told = [json.loads(one) for one in screen.getvalue().splitlines()]
    assert screen.getvalue() == (tmp_path / "server.log").read_text()
    assert [one["message"] for one in told] == ["running on cpu", CONTROLLER, '{"not": "a line"}', "{"]
    assert told[0]["job"] == "video_1" and "terminal" not in told[0]
    assert (told[1]["levelname"], told[1]["stage"], told[1]["process"]) == ("WARNING", "ServeController", 7)


@pytest.mark.parametrize(("phase", "shown"), [(Phase.STARTING, 0), (Phase.RUNNING, 2), (Phase.STOPPING, 0)])
def test_what_ray_says_of_a_start_and_a_stop_is_in_the_file_alone(tmp_path: Path, phase: Phase, shown: int) -> None:
    screen = Terminal()
    log = server_log(tmp_path, screen)
    log.phase = phase
    log.take(batch(DIED, pid="raylet", is_err=False, actor_name=None))
    log.take(batch("ERROR 2026-11-28 00:14:40,504 controller 371 -- cannot start", "a print", CONTROLLER))
    log.take(batch("[2026-11-28] raylet's own log", pid="raylet", actor_name=None))
    log.take(batch("======== Autoscaler status", pid="autoscaler"))
    log.close()
    assert len(screen.getvalue().splitlines()) == shown
    assert len((tmp_path / "server.log").read_text().splitlines()) == 5


def test_secrets_are_hidden_in_what_is_not_ours_too(tmp_path: Path) -> None:
    screen = io.StringIO()
    log = server_log(tmp_path, screen)
    log.take(batch(f"a library prints {SECRET}"))
    with own_records_to(log, ("a-logger",)):
        logging.getLogger("a-logger").error("this process, too: %s", SECRET)
    log.close()
    assert SECRET not in screen.getvalue() and screen.getvalue().count("***") == 2


def test_this_process_tells_people_what_is_ours(tmp_path: Path) -> None:
    screen = Terminal()
    log = server_log(tmp_path, screen)
    names = ("serve_app.local.server", "ray.serve")
    before = [list(logging.getLogger(name).handlers) for name in names]
    with own_records_to(log, names):
        for name in names:
            logging.getLogger(name).warning("of %s", name)
    log.close()
    assert screen.getvalue() == "WARNING server: of serve_app.local.server\n"
    assert "of ray.serve" in (tmp_path / "server.log").read_text()
    assert [list(logging.getLogger(name).handlers) for name in names] == before


def test_a_disk_that_is_full_costs_lines_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "server.log").mkdir()  # nothing can be written there
    screen = Terminal()
    log = server_log(tmp_path, screen)
    log.take(batch(line("has 8 slots", terminal=True, notice=True)))
    log.close()
    assert screen.getvalue() == "has 8 slots\n"
    assert capsys.readouterr().err == ""
