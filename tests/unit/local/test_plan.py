"""Reading what is to be run: the Serve config and the profiles that it names."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.local.plan import LaunchPlan, read_files, read_plan, read_settings
from tests.support import ROOT

Write = Callable[[str, str], Path]


def serve_config(folder: Path, http_options: object) -> Path:
    application = {"import_path": "x:y", "args": {"config": str(ROOT / "configs" / "shapes.yaml")}}
    path = folder / "serve_config.yaml"
    path.write_text(json.dumps({"applications": [application], "http_options": http_options}))
    return path


@pytest.fixture
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("MOCHI_SERVE_CONFIG", "MOCHI_SERVE__ACCESS__MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_in_root")
def test_serve_refuses_to_be_in_the_open_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve_config(tmp_path, {"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="other machines can reach"):
        read_plan(config, 8265)
    read_settings(config)  # what makes the first key must not need one
    monkeypatch.setenv("MOCHI_SERVE__ACCESS__MODE", "keys")
    assert read_plan(config, 8265).host == "0.0.0.0"


@pytest.mark.usefixtures("_in_root")
def test_options_that_are_no_mapping_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="http_options must be a mapping"):
        read_plan(serve_config(tmp_path, ["127.0.0.1"]), 8265)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("applications: [", "is not YAML"),
        ("", "must be a mapping with the key applications"),
        ("applications: []", "must be a mapping with the key applications"),
        ("applications: [1]", "each of applications must be a mapping"),
        ("applications: [{args: {config: nowhere.yaml}}]", "cannot read the profile 'nowhere.yaml'"),
        ("applications: [{args: {confg: a.yaml}}]", "args.confg of an application: Extra inputs are not permitted"),
        ("applications: [{args: {settings: {jobs: {lease: 3}}}}]", "args.settings: jobs.lease: unknown key"),
    ],
)
def test_a_wrong_serve_config_is_named(write: Write, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        read_plan(write("serve_config.yaml", text), 8265)


@pytest.mark.usefixtures("_in_root")
def test_the_settings_of_the_arguments_count(write: Write) -> None:
    apps = "applications: [{args: {settings: {jobs: {lease_s: 12}}}}, {args: {settings: {jobs: {lease_s: 12}}}}]"
    assert read_settings(write("serve_config.yaml", apps)).jobs.lease_s == 12


def test_a_missing_serve_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml.* --config"):
        read_plan(tmp_path / "none.yaml", 8265)


def test_profiles_with_two_data_folders_are_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = (ROOT / "configs" / "shapes.yaml").read_text()
    a = write("a.yaml", f"{profile}\ndata_dir: a\n")
    b = write("b.yaml", f"{profile}\ndata_dir: b\n")
    both = write("serve_config.yaml", f"applications: [{{args: {{config: {a}}}}}, {{args: {{config: {b}}}}}]")
    monkeypatch.delenv("MOCHI_SERVE_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="different data folders"):
        read_plan(both, 8265)


PROTEINS = {"name": "proteins", "route_prefix": "/esm2", "import_path": "serve_app.app:proteins"}


def serve_with(folder: Path, profile: str, *more: Mapping[str, object]) -> Path:
    args = {"config": str(ROOT / "configs" / profile), "settings": {"jobs": {"lease_s": 12}}}
    api = {"name": "api", "import_path": "x:y", "args": args, "logging_config": {"log_level": "INFO"}}
    mochi = {"name": "mochi", "route_prefix": None, "import_path": "x:z", "args": args}
    path = folder / "serve_config.yaml"
    path.write_text(json.dumps({"applications": [api, mochi, *more]}))
    return path


@pytest.mark.usefixtures("_in_root")
@pytest.mark.parametrize("read", [read_plan, read_files])
def test_a_profile_with_proteins_adds_their_application_once(
    tmp_path: Path, read: Callable[[Path, int], LaunchPlan]
) -> None:
    path = serve_with(tmp_path, "esm2.yaml")
    api, mochi, proteins = read(path, 8265).serve["applications"]
    assert [api, mochi] == json.loads(path.read_text())["applications"]
    assert proteins == PROTEINS | {"args": api["args"], "logging_config": api["logging_config"]}


@pytest.mark.usefixtures("_in_root")
def test_an_application_of_proteins_that_is_listed_stays_as_it_is(tmp_path: Path) -> None:
    own = PROTEINS | {"name": "esm", "route_prefix": "/proteins", "args": {"config": str(ROOT / "configs/esm2.yaml")}}
    path = serve_with(tmp_path, "esm2.yaml", own)
    assert read_plan(path, 8265).serve["applications"] == json.loads(path.read_text())["applications"]


@pytest.mark.usefixtures("_in_root")
def test_a_profile_without_proteins_adds_none_until_the_environment_names_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve_with(tmp_path, "shapes.yaml")
    assert [app["name"] for app in read_plan(path, 8265).serve["applications"]] == ["api", "mochi"]
    monkeypatch.setenv("MOCHI_SERVE__PROTEINS__SOURCE", "facebook/esm2_t6_8M_UR50D")
    assert [app["name"] for app in read_plan(path, 8265).serve["applications"]] == ["api", "mochi", "proteins"]
