"""Prometheus' own promtool reads the rules, and tries them on made-up series."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.files import RULE_TESTS, RULES


def promtool(*arguments: str, folder: Path = RULES.parent) -> "subprocess.CompletedProcess[str]":
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=900)


def test_the_rules_are_rules() -> None:
    done = promtool("check", "rules", RULES.name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_on_a_server_that_is_well_none_does() -> None:
    done = promtool("test", "rules", RULE_TESTS.name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tests_of_rules_see_a_rule_that_never_fires(tmp_path: Path) -> None:
    tree = yaml.safe_load(RULES.read_text())
    (rule,) = [rule for rule in tree["groups"][0]["rules"] if rule["alert"] == "MochiServeJobsUnaccounted"]
    rule["expr"] = rule["expr"].replace("!= 0", "> 5")
    tests = yaml.safe_load(RULE_TESTS.read_text())
    tests["tests"] = [test for test in tests["tests"] if test["name"].startswith("MochiServeJobsUnaccounted")]
    (tmp_path / RULES.name).write_text(yaml.safe_dump(tree))
    (tmp_path / RULE_TESTS.name).write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", RULE_TESTS.name, folder=tmp_path)
    assert done.returncode != 0 and "MochiServeJobsUnaccounted" in done.stdout + done.stderr
