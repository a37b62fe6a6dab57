"""The spans of a sample's steps on one replica: one from checkpoint to checkpoint."""

from deployments.tracing.span import SILENT, Span

FROM = "mochi_serve.step.from"
TO = "mochi_serve.step.to"


class StepSpans:
    """Of one sample.

    Args:
        stretch: the span of the task.
    """

    def __init__(self, stretch: Span) -> None:
        self._stretch = stretch
        self._steps: Span = SILENT
        self._from: int | None = None

    def begin(self, step: int) -> None:
        """The sample is in the loop after so many steps."""
        self._from = step
        self._steps = self._stretch.child("steps", {FROM: step})

    def checkpoint(self, step: int) -> None:
        """Its state after `step` steps is taken for a checkpoint."""
        self.end(step)
        self._stretch.event("checkpoint", {"mochi_serve.step": step})
        self.begin(step)

    def end(self, step: int) -> None:
        """It leaves the loop after `step` steps; once it has not come in, or has done none, there is no span."""
        if self._from is not None and step > self._from:
            self._steps.set({TO: step})
            self._steps.end()
        self._from = None
