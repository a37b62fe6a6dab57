"""The way to the replicas of a stage, as it travels to the registry's actor."""

from ray import cloudpickle

from serve_app.registry.replicas import StageRouter


def test_the_router_can_be_handed_to_an_actor() -> None:
    assert isinstance(cloudpickle.loads(cloudpickle.dumps(StageRouter())), StageRouter)
