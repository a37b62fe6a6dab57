"""What every stage of the training shares: the learning rate, the average of the weights, checkpoints, progress."""

import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

WARMUP_STEPS = 100
FLOOR = 0.02  # of the base learning rate, at the end
REPORT_EVERY = 50  # steps
CHECKPOINT_EVERY_S = 120.0


def rate(step: int, steps: int) -> float:
    """Share of the base learning rate: up in `WARMUP_STEPS`, then along a cosine down to `FLOOR`."""
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1.0, (step + 1) / WARMUP_STEPS) * (FLOOR + (1 - FLOOR) * cosine)


def set_rate(optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * rate(step, steps)


def group(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    """A parameter group that `set_rate` knows the base rate of."""
    return {"params": list(parameters), "lr": lr, "base_lr": lr, "weight_decay": weight_decay}


Update = Callable[[torch.optim.Optimizer, Tensor, Iterable[nn.Parameter]], None]


def update(optimiser: torch.optim.Optimizer, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
    """One step downhill, the gradient's norm bounded by 1."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


@torch.no_grad()
def average(mean: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of the weights; shorter at first, so that the random start is forgotten."""
    kept = min(decay, (step + 1) / (step + 20))
    torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - kept)


def python_random(generator: torch.Generator) -> random.Random:
    """Randomness for scenes and prompts, drawn from that of a stage."""
    return random.Random(int(torch.randint(1 << 62, (), generator=generator)))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def claim(folder: Path, recipe: str) -> None:
    """Make a work folder, or go on with one of the same recipe.

    Raises:
        SystemExit: the folder belongs to another recipe; names both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "recipe.txt"
    if not note.exists():
        note.write_text(recipe)
    elif (begun := note.read_text()) != recipe:
        raise SystemExit(
            f"{folder} was begun by another recipe ({begun}); this one is {recipe}. Give another folder with --work, "
            "or delete that one with all that is in it"
        )


class Plan(Protocol):
    """The settings of a stage: how many steps, and more that only the stage reads."""

    @property
    def steps(self) -> int: ...


class Stage:
    """The steps of one stage: counted, reported, and kept so that a stopped run goes on where it was.

    Args:
        name: of the stage, in reports and as the name of its checkpoint.
        folder: of the checkpoint.
        plan: the stage's settings.
        generator: draws all the randomness of the stage.
        checkpoint_every_s: seconds between two checkpoints.
        parts: what has a `state_dict`: networks, optimiser.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        plan: Plan,
        generator: torch.Generator,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
        **parts: Any,
    ) -> None:
        self._name = name
        self._steps = plan.steps
        self._plan = repr(plan)
        self._path = folder / f"{name}.checkpoint.pt"
        self._generator = generator
        self._checkpoint_every_s = checkpoint_every_s
        self._parts = parts
        self._spent_s = 0.0  # by earlier runs
        self._loss: float | None = None
        self._curve: list[list[float]] = []

    def __iter__(self) -> Iterator[int]:
        first = self._load()
        begun = written = time.monotonic()
        for step in range(first, self._steps):
            yield step
            now = time.monotonic()
            if (step + 1) % REPORT_EVERY == 0 or step + 1 == self._steps:
                self._curve.append([step + 1, round(self.loss, 5)])
                self._report(step + 1, (now - begun) / (step + 1 - first))
            if now - written > self._checkpoint_every_s or step + 1 == self._steps:
                self._save(step + 1, now - begun)
                written = now
        self._spent_s += time.monotonic() - begun

    def log(self) -> dict[str, Any]:
        """What the stage did: its plan, the seconds of all its runs, and the loss every `REPORT_EVERY` steps."""
        return {"plan": self._plan, "seconds": round(self._spent_s, 1), "loss": self._curve}

    @property
    def loss(self) -> float:
        """The loss, averaged over some fifty steps."""
        return math.nan if self._loss is None else self._loss

    def note(self, loss: Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SystemExit(f"{self._name}: the loss is {value}, so the training cannot go on from here")
        self._loss = value if self._loss is None else 0.98 * self._loss + 0.02 * value

    def _load(self) -> int:
        if not self._path.exists():
            return 0
        state = torch.load(self._path, weights_only=True, map_location="cpu")
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._generator.set_state(state["generator"])
        self._spent_s = state["seconds"]
        self._loss = state["loss"]
        self._curve = state["curve"]
        return int(state["step"])

    def _save(self, step: int, seconds: float) -> None:
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"step": step, "seconds": self._spent_s + seconds}
        state |= {"generator": self._generator.get_state(), "loss": self._loss, "curve": self._curve}
        save(self._path, state)

    def _report(self, step: int, each: float) -> None:
        remaining = (self._steps - step) * each / 60
        say(f"{self._name} {step}/{self._steps}  loss {self.loss:.4f}  {each:.2f} s a step, {remaining:.0f} min left")


def say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()
