"""Each block of code of docs/clients.md is run as it stands there."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.clients.clips import assert_as_told
from tests.support.clients.environments import LITELLM, NEWEST, NODE, OLDEST, OWN, PROGRAMS, PROXY_KEY, Environment
from tests.support.clients.litellm_proxy import settings_and_start
from tests.support.clients.recipes import PAGE, PROXY_URL, Recipe, recipes
from tests.support.servers.server import FINAL, Server

SHELL = Environment(("bash", "-euo", "pipefail"), variables={"LITELLM_MASTER_KEY": PROXY_KEY})
SUFFIX = {"python": ".py", "js": ".mjs", "sh": ".sh"}


def environments(recipe: Recipe) -> list[Environment]:
    """Where it must run."""
    if recipe.language == "sh":
        return [SHELL]
    if recipe.language == "js":
        return [NODE]
    if recipe.section == "LiteLLM's library":
        return [LITELLM]
    return [OWN] if recipe.section == "Our own client" else [NEWEST, OLDEST]


def is_slow(recipe: Recipe, environment: Environment) -> bool:
    """Whether it needs more than `make test` installs and starts."""
    return environment in (OLDEST, LITELLM) or PROXY_URL in recipe.text


# The proxy's settings and its start are run by the fixture litellm_proxy.
RUNS = [
    pytest.param(
        recipe,
        environment,
        id=f"line-{recipe.line}{environment.stamp.replace('.', '-')}",
        marks=[pytest.mark.slow] if is_slow(recipe, environment) else [],
    )
    for recipe in recipes()
    if recipe not in settings_and_start()
    for environment in environments(recipe)
]


@pytest.mark.parametrize(("recipe", "environment"), RUNS)
def test_a_recipe(
    server: Server, request: pytest.FixtureRequest, tmp_path: Path, recipe: Recipe, environment: Environment
) -> None:
    if "curl " in recipe.text and not shutil.which("curl"):
        pytest.skip("curl is not there")
    proxy = request.getfixturevalue("litellm_proxy") if PROXY_URL in recipe.text else PROXY_URL
    program = tmp_path / f"recipe{SUFFIX[recipe.language]}"
    program.write_text(recipe.at(server.url, proxy))
    said = environment.run(program, server.url, tmp_path)
    with server.client() as client:
        video = client.get("/v1/videos", params={"limit": 1}).json()["data"][0]
    if "video.mp4" in recipe.text:
        assert_as_told(video, tmp_path / "video.mp4")
    else:
        assert json.loads(said)["object"] == "video"
        server.wait_for(video["id"], *FINAL)


def test_the_page_names_the_versions_that_are_run() -> None:
    def pin(file: Path, package: str) -> str:
        (version,) = re.findall(rf"^{package}==(\S+)$", file.read_text(), re.MULTILINE)
        return str(version)

    versions = {
        pin(ROOT / "constraints.txt", "openai"),
        pin(PROGRAMS / "openai-oldest.txt", "openai"),
        pin(PROGRAMS / "litellm.txt", "litellm"),
        json.loads((PROGRAMS / "package.json").read_text())["dependencies"]["openai"],
    }
    table = re.findall(r"^\| (?:`openai`|LiteLLM).*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {version for row in table for version in re.findall(r"\d+\.\d+\.\d+", row)} == versions
