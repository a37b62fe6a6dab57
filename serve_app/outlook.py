"""Where each job stands: its place in the queue, and when it will likely start and end, from measured step times."""

import math
import time
from dataclasses import replace

from deployments.messages import Stage
from serve_app.board import Board
from serve_app.forecast import Ahead, Forecast, forecast
from serve_app.jobs import Job, JobState, Place
from serve_app.leases import Lease

MIN_AGE_S = 0.5
# A forecast of a long queue takes a while: no more than this share of the registry's time goes into it.
SHARE = 0.05
UNKNOWN_RETRY_S = 10
MAX_RETRY_S = 60


class Outlook:
    """Places of all jobs, made anew when somebody asks and they are old, or lack the job that is asked for."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._places: dict[str, Place] = {}
        self._made_at = -math.inf
        self._took = 0.0

    def place(self, job: Job) -> Place | None:
        """None for a job that has ended."""
        if job.final:
            return None
        self._refresh(job.id)
        place = self._places.get(job.id)
        if place is None or job.state is JobState.QUEUED:
            return place
        return replace(place, position=None)

    def _refresh(self, job_id: str) -> None:
        now = time.monotonic()
        fresh_for = MIN_AGE_S if job_id in self._places else 0.0
        if now - self._made_at > max(fresh_for, self._took / SHARE):
            self._places = self._all_places()
            self._made_at = time.monotonic()
            self._took = self._made_at - now

    def retry_after_s(self) -> int:
        """When there is room for another job: as long as a job holds its slot, over the slots."""
        leases, crowd = self._board.leases.of_stage(Stage.SAMPLING), self._crowd()
        slots = self._board.replicas.slots(Stage.SAMPLING, time.monotonic())
        if not slots or not leases or not self._board.costs.measured(Stage.SAMPLING):
            return UNKNOWN_RETRY_S
        mean_s = sum(self._wall_s(lease.job, crowd) for lease in leases) / len(leases)
        return max(1, min(MAX_RETRY_S, math.ceil(mean_s / slots)))

    def _all_places(self) -> dict[str, Place]:
        board, wall = self._board, time.time()
        positions = {job.id: n for stage in Stage for n, job in enumerate(board.room.order(stage))}
        to_come = self._forecast() if board.costs.measured(Stage.SAMPLING) else {}
        places = {}
        for job_id, position in positions.items():
            coming = to_come.get(job_id)
            starts = None if coming is None else wall + coming.starts_in_s
            places[job_id] = Place(position, starts, None if coming is None else wall + coming.finishes_in_s)
        for lease in board.leases.all():
            ends = self._ends_in_s(lease, to_come.get(lease.job_id))
            places[lease.job_id] = Place(None, None, None if ends is None else wall + ends)
        return places

    def _forecast(self) -> dict[str, Forecast]:
        """Of those that wait for a sampler, then those that must be encoded first: encoding is short."""
        board, crowd = self._board, self._crowd()
        encoding = [lease.job for lease in board.leases.of_stage(Stage.ENCODING)]
        waiting = [*board.room.order(Stage.SAMPLING), *encoding, *board.room.order(Stage.ENCODING)]
        ahead = [Ahead(job.id, self._wall_s(job, crowd), self._tail_s(job)) for job in waiting]
        held = [self._left_s(lease, crowd) for lease in board.leases.of_stage(Stage.SAMPLING)]
        ahead_to_decode = {job.id: self._decoding(n, job) for n, job in enumerate(board.room.order(Stage.DECODING))}
        slots = board.replicas.slots(Stage.SAMPLING, time.monotonic())
        return forecast(ahead, held, slots) | ahead_to_decode

    def _decoding(self, position: int, job: Job) -> Forecast:
        slots = max(1, self._board.replicas.slots(Stage.DECODING, time.monotonic()))
        starts = self._tail_s(job) * (position + 1) / slots
        return Forecast(starts, starts + self._tail_s(job))

    def _ends_in_s(self, lease: Lease, coming: Forecast | None) -> float | None:
        if not self._board.costs.measured(lease.stage):
            return None
        if lease.stage is Stage.ENCODING:
            return None if coming is None else coming.finishes_in_s
        if lease.stage is Stage.DECODING:
            return self._tail_s(lease.job)
        return self._left_s(lease, self._crowd()) + self._tail_s(lease.job)

    def _crowd(self) -> float:
        """Samples that share a replica: each of them gets its part of the device's time."""
        replicas = len(self._board.replicas.alive(Stage.SAMPLING, time.monotonic()))
        return max(1.0, len(self._board.leases.of_stage(Stage.SAMPLING)) / max(1, replicas))

    def _wall_s(self, job: Job, crowd: float) -> float:
        steps = job.spec.num_inference_steps - (job.step if job.stage is Stage.SAMPLING else 0)
        return self._board.costs.estimate(Stage.SAMPLING, job.spec, steps) * crowd

    def _left_s(self, lease: Lease, crowd: float) -> float:
        return self._board.costs.estimate(Stage.SAMPLING, lease.job.spec, lease.steps_left) * crowd

    def _tail_s(self, job: Job) -> float:
        return self._board.costs.estimate(Stage.DECODING, job.spec, 0)
