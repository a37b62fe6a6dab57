"""Replicas that do nothing and take what the real ones take: an application of Serve."""

from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application

REGISTRY = "JobRegistry"
NAMESPACE = "cluster-test"


class DummyArgs(BaseModel):
    """options: `ray_actor_options` of each deployment, that of the root first. registry: resources of the actor."""

    options: dict[str, dict[str, Any]]
    registry: dict[str, float]


class Dummy:
    """A replica."""

    def __init__(self, downstream: object = None) -> None:
        pass


class DummyRegistry:
    """The detached actor beside them."""


def app(args: DummyArgs) -> Application:
    """Bound as the real ones are; how many replicas there are says the configuration of Serve."""
    # Not in every replica: it loads what the product needs.
    from serve_app.app import named_actor

    named_actor(DummyRegistry, REGISTRY, NAMESPACE, args.registry).remote()
    (root, of_root), *others = args.options.items()
    bound = [_deployment(name, options).bind() for name, options in others]
    application: Application = _deployment(root, of_root).bind(downstream=bound)
    return application


def _deployment(name: str, options: dict[str, Any]) -> Any:
    return serve.deployment(Dummy).options(name=name, ray_actor_options=options)
