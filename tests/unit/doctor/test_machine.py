"""Python, packages, processors, shared memory, and who writes mp4 files."""

import sys
from pathlib import Path

import pytest

from serve_app.doctor.checks import machine
from serve_app.doctor.checks.folders import check_exposed, filesystem_type
from serve_app.doctor.children.run import MARK, ChildError, ask_child
from serve_app.doctor.finding import State
from tests.support.doctor import FakeChild, by_name, only, patient

MOUNTS = (
    "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "30 22 0:41 / /srv/data rw,relatime shared:1 - nfs4 server:/x rw\n"
    "31 22 0:42 / /srv/my\\040data rw - cifs //x rw\n"
)


def test_this_python_and_its_packages_are_as_needed(tmp_path: Path) -> None:
    s = patient(tmp_path)
    assert only(machine.check_python(s)).state is State.OK
    assert by_name(machine.check_packages(s))["packages"].state is State.OK


def test_an_old_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "python_version", lambda: "3.9.18")
    found = only(machine.check_python(patient(tmp_path)))
    assert found.state is State.FAULT and found.told.startswith("3.9.18") and "runs on" in found.told
    assert "make the environment anew" in found.advice


def test_a_package_that_is_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "requires", lambda name: ["filelock>=999", "no-such-package>=1", 'x; extra == "dev"'])
    found = by_name(machine.check_packages(patient(tmp_path)))["packages"]
    assert (
        found.state is State.FAULT and "filelock>=999 (" in found.told and "no-such-package>=1 (missing)" in found.told
    )
    assert "pip install -c constraints.txt" in found.advice


def test_other_versions_than_those_that_are_tested(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# a comment\ntorch==2.13.0\nray==2.60.0\n")
    found = only(machine._pins(pins, {"torch": "2.13.0+cpu", "ray": "2.59.0"}))
    assert found.state is State.WARNING and found.told.endswith("ray 2.59.0 (2.60.0)")


def test_more_threads_than_processors(tmp_path: Path) -> None:
    found = only(machine.check_processors(patient(tmp_path, {"sampler": {"torch_threads": 4096}})))
    assert (
        found.state is State.WARNING and "sampler.torch_threads 4096" in found.told and "leave it out" in found.advice
    )
    assert only(machine.check_processors(patient(tmp_path))).state is State.OK


def test_memory_that_is_less_than_the_model(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 1500000 kB\n")
    found = only(machine.check_memory(patient(tmp_path, root=tmp_path)))
    assert found.state is State.FAULT and found.told.startswith("1.5 of 2.0 GB are free; about 3.0 are needed")
    assert "more memory" in found.advice


def test_shared_memory_of_a_machine_that_has_none(tmp_path: Path) -> None:
    assert only(machine.check_shared_memory(patient(tmp_path, root=tmp_path))).state is State.SKIPPED


@pytest.mark.parametrize("encoder", ["x264", "nvenc", "auto"])
def test_an_encoder_that_encodes_nothing(tmp_path: Path, encoder: str) -> None:
    child = FakeChild(codec={"problem": "No capable devices found"})
    found = only(machine.check_video_encoder(patient(tmp_path, {"decoder": {"encoder": encoder}}, ask=child)))
    codec = "nvenc" if encoder == "nvenc" else "x264"
    assert found.state is State.FAULT and "No capable devices found" in found.told and found.told.startswith(codec)
    assert ("decoder.encoder" in found.advice) is (encoder == "nvenc")
    assert child.asked == [("codec", codec, "32", "32")]


@pytest.mark.parametrize(
    ("path", "kind"), [("/srv/data/a", "nfs4"), ("/srv/my data", "cifs"), ("/srv/database", "ext4"), ("/", "ext4")]
)
def test_the_file_system_of_a_path(tmp_path: Path, path: str, kind: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    assert filesystem_type(Path(path), tmp_path) == kind
    assert filesystem_type(Path(path), tmp_path / "nothing") == ""


def test_who_can_reach_the_app(tmp_path: Path) -> None:
    s = patient(tmp_path)
    assert only(check_exposed(s)).state is State.OK
    s.plan.serve["http_options"]["host"] = "0.0.0.0"
    found = only(check_exposed(s))
    assert found.state is State.FAULT and "other machines can reach" in found.told
    assert found.advice.startswith("Set access.mode: keys")
    opened = patient(tmp_path, {"access": {"mode": "open-to-anyone"}})
    assert only(check_exposed(opened)).state is State.WARNING


def test_a_child_that_says_nothing_is_told_by_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python, program = sys.executable, tmp_path / "program"

    def child(code: str) -> None:
        program.write_text(f"#!{python}\n{code}\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))

    child(f"print('noise'); print({MARK!r} + '{{\"a\": 1}}')")
    assert ask_child("x", limit_s=60) == {"a": 1}
    child("import sys; sys.exit('the driver is gone')")
    with pytest.raises(ChildError, match="ended with code 1: the driver is gone"):
        ask_child("x", limit_s=60)
    child("import os; os.kill(os.getpid(), 11)")
    with pytest.raises(ChildError, match="by SIGSEGV"):
        ask_child("x", limit_s=60)
    child("import time; time.sleep(1000)")
    with pytest.raises(ChildError, match=r"no answer within 0\.5 s"):
        ask_child("x", limit_s=0.5)
