"""The harness of `make cluster-test`: what it draws, asks for and judges. Its pods need root: no test starts them."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppSettings
from tests.chaos.judge import Ended, Outcome
from tests.cluster import scale
from tests.cluster.__main__ import NAMES, PARTS, main
from tests.cluster.growth import growth_order
from tests.cluster.life import CHANGED, PODS, STRIKES, problems, serve_config, without_cut
from tests.cluster.placement import Step, as_json
from tests.cluster.ray_cluster import RayCluster, environment
from tests.cluster.service import ENDED, Service
from tests.support.cluster.manifests import needs, profile
from tests.support.cluster.placement import Cluster

GOOD = Ended("video_1", "completed", steps=8, steps_run=8, completions=1)
OUTCOME = Outcome("head", 1, (GOOD,), strikes=1, in_flight=1, seconds=1.0)
STEP = Step(1, {"ingress": 2, "encoder": 1, "sampler": 1, "decoder": 1}, 1.0, {"gpu-1": ["sampler"]})
BY_NAME = {strike.name: strike for strike in STRIKES}


@given(seed=st.integers(0, 10**6), changes=st.integers(0, 8))
def test_an_order_goes_from_the_fewest_to_the_most_within_the_bounds(seed: int, changes: int) -> None:
    bounds = {"sampler": (1, 4), "decoder": (1, 3), "encoder": (1, 1)}
    steps = growth_order(bounds, changes, random.Random(seed))
    assert steps[0] == {name: least for name, (least, _) in bounds.items()}
    assert steps[-1] == {name: most for name, (_, most) in bounds.items()}
    assert all(bounds[name][0] <= count <= bounds[name][1] for step in steps for name, count in step.items())
    assert all(sum(a[name] != b[name] for name in bounds) == 1 for a, b in zip(steps, steps[1:], strict=False))
    assert steps == growth_order(bounds, changes, random.Random(seed))


@pytest.mark.parametrize("changed", [None, CHANGED, scale.CHANGED])
def test_the_applications_are_deployed_as_the_manifest_deploys_them(changed: dict[str, object] | None) -> None:
    config = serve_config(changed)
    ServeDeploySchema.model_validate(config)
    settings: AppSettings = profile(config)
    assert settings.model.source == "models/shapes"
    assert settings.ingress.resources and settings.registry.resources


def test_the_pods_hold_the_most_replicas_that_there_may_be(tmp_path: Path) -> None:
    groups = RayCluster("a", 10, tmp_path, {}).groups
    assert all(group.least <= PODS[name] <= group.most for name, group in groups.items())
    pods = Cluster([replace(group, least=PODS[name], most=PODS[name]) for name, group in groups.items()])
    for part, (need, _, most) in needs(profile(serve_config())).items():
        assert all(pods.place(f"{part} {number}", need) for number in range(most)), part


def test_samplers_come_and_go_alone_on_as_many_pods(tmp_path: Path) -> None:
    wanted = needs(profile(serve_config(scale.CHANGED)))
    assert wanted["sampler"][1:] == (0, scale.SAMPLERS)
    groups = RayCluster("a", 10, tmp_path, {}).groups
    pods = Cluster([replace(group, least=scale.PODS[name], most=scale.PODS[name]) for name, group in groups.items()])
    for part, (need, _, most) in wanted.items():
        assert all(pods.place(f"{part} {number}", need) for number in range(most)), part


def test_what_a_burst_shows_is_judged() -> None:
    good = scale.Scaling([1.0] * scale.SAMPLERS, 9.0, 30.0, idle=scale.SAMPLERS, gpu_pods=7)
    assert good.problems == []
    assert replace(good, ready_s=[1.0]).problems == ["no more than 1 of 6 samplers ran"]
    assert replace(good, gone_s=None).problems == ["420 s after the last video there are samplers"]
    assert replace(good, idle=5).problems == ["5 GPU pods are idle to the autoscaler, and 6 have no replica"]


def test_a_pod_has_the_environment_of_the_manifest_and_of_its_group(tmp_path: Path) -> None:
    head = RayCluster("a", 10, tmp_path, {"MORE": "1"}).head
    assert {"RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY", "MOCHI_SERVE__ACCESS__MODE"} <= environment().keys()
    assert environment().keys() <= head.environ.keys()
    assert head.environ["MORE"] == "1"
    assert "--num-cpus=0" in head.command and "--head" in head.command


def test_what_is_not_as_promised_is_named() -> None:
    again = replace(OUTCOME, ended=(replace(GOOD, steps_run=11),))
    assert problems(BY_NAME["head"], OUTCOME) == []
    assert problems(BY_NAME["head"], again) == ["steps run twice: 3"]
    assert problems(BY_NAME["node"], again) == []  # what its sampler had not yet written is gone with the machine
    assert problems(BY_NAME["roll"], replace(OUTCOME, repeated={"GET 503": 2})) == ["requests repeated: 2"]
    assert problems(BY_NAME["drain"], replace(OUTCOME, strikes=0)) == ["nothing was struck"]


def test_no_more_is_excused_than_connections_ended_with_the_machine() -> None:
    repeated = {"POST RemoteProtocolError": 2, "probe GET ReadError": 1, "GET 503": 1, "GET ReadTimeout": 1}
    assert without_cut(repeated, 0) == repeated
    assert without_cut(repeated, 2) == {"probe GET ReadError": 1, "GET 503": 1, "GET ReadTimeout": 1}
    assert without_cut(repeated, 9) == {"GET 503": 1, "GET ReadTimeout": 1}


def test_connections_that_have_ended_are_counted_by_pod(tmp_path: Path) -> None:
    service = Service(tmp_path)
    (tmp_path / "service.log").write_text(
        f"[NOTICE] a line\n{ENDED} 10.77.0.5 --\n{ENDED} 10.77.0.53 --\n{ENDED} 10.77.0.5 SD\n"
    )
    assert (service.ended_at("10.77.0.5"), service.ended_at("10.77.0.53"), service.ended_at("10.77.0.9")) == (2, 1, 0)


def test_a_replica_without_a_place_is_not_clean() -> None:
    assert as_json([STEP])["clean"]
    stuck = as_json([STEP, replace(STEP, problem="2 of 4 sampler")])
    assert not stuck["clean"] and "2 of 4 sampler" in stuck["problems"][0]
    assert not as_json([])["clean"]


@pytest.mark.parametrize(("option", "allowed"), [("--parts", PARTS), ("--strikes", NAMES)])
def test_an_unknown_name_is_refused(option: str, allowed: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, "gremlin"])
    told = capsys.readouterr().err
    assert "gremlin" in told and all(name in told for name in allowed)
