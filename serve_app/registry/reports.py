"""What the workers report, and what follows for a job: progress, ends of stages. Failures: `lost_attempts.py`."""

import time

from deployments.messages import (
    STEPPED,
    Checkpointed,
    Directive,
    Event,
    Failed,
    Finished,
    InputUnusable,
    Parked,
    Progress,
    Report,
    Started,
)
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.jobs import STAGE_BEFORE, overall_progress
from serve_app.registry.job_traces import tell_dispatch
from serve_app.registry.leases import Lease
from serve_app.registry.lost_attempts import LostAttempts
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.retries import remake_pause


class JobReports:
    """Handles reports by lease. Each is idempotent; one under a lapsed lease is answered `stop`."""

    def __init__(self, state: RegistryState, lost_attempts: LostAttempts) -> None:
        self._state = state
        self._lost_attempts = lost_attempts

    async def handle(self, report: Report) -> Directive:
        """Returns what the worker is to do: continue, stop because its lease is over, or park the job.

        Raises:
            RegistryUnavailableError: the database is away; the worker repeats what it must not
                lose.
        """
        lease = self._state.leases.find(report.job_id, report.lease)
        if lease is None:
            return Directive.STOP
        self._state.leases.renew(lease, time.monotonic())
        with lease.in_log():
            await self._take(lease, report.event)
        return lease.directive

    async def _take(self, lease: Lease, event: Event) -> None:
        match event:
            case Started(replica, device):
                lease.replica = replica
                if not lease.has_begun:
                    lease.has_begun = True
                    tell_dispatch(lease, event, self._state.unix_time())
                    log.info(f"{lease.stage} on {replica} ({device})")
            case Progress():
                await self._take_progress(lease, event)
            case Checkpointed(step):
                await self._keep_checkpoint(lease, step)
            case Parked():
                await self._park(lease, event)
            case Finished():
                await self._finish_stage(lease, event)
            case Failed():
                await self._lost_attempts.fail(lease, event)
            case InputUnusable():
                await self._go_back(lease, event)

    async def _take_progress(self, lease: Lease, event: Progress) -> None:
        is_stepped = lease.stage in STEPPED
        if is_stepped and not lease.has_stepped:
            # The first step says where the replica began: at the checkpoint of the task, or before
            # it if it could not read that one. Steps that are run again must be counted again.
            lease.begin_at(event.begun_at)
        # `done` counts frames when decoding, which are no steps.
        lease.report(event.done if is_stepped else lease.step, event.device_s, event.passes)
        if event.preview:
            lease.preview = event.preview
            lease.preview_step = event.done
        if lease.advance(overall_progress(lease.stage, event.done, event.total)):
            self._state.wake.set()
        self._state.feed.publish_progress(lease.job_id)
        now = time.monotonic()
        if self._state.leases.needs_saving(lease, now):
            # Set before the write and not after it: the reports that arrive meanwhile need not save
            # again.
            lease.saved_at = now
            if is_stepped:  # the other stages teach the estimates only as a whole, at their end
                self._state.learn_costs(lease)
            await self._save(lease)

    async def _save(self, lease: Lease) -> None:
        async with lease.saving() as used:
            is_held = await self._state.database.run(
                claims_sql.renew,
                lease.job_id,
                lease.token,
                expires_at=self._state.unix_time() + self._state.settings.lease_s,
                step=lease.step,
                progress=lease.progress,
                used=used,
            )
        if not is_held:
            self._state.stop_lost_lease(lease)

    async def _keep_checkpoint(self, lease: Lease, step: int) -> None:
        lease.keep_checkpoint(step)
        is_held = await self._state.database.run(claims_sql.keep_checkpoint, lease.job_id, lease.token, step=step)
        if not is_held:
            self._state.stop_lost_lease(lease)

    async def _park(self, lease: Lease, event: Parked) -> None:
        lease.report(event.step, event.device_s, event.passes)
        note = f"parked at step {event.step}: {event.reason}"
        async with lease.saving() as used:
            job = await self._state.database.run(
                ends_sql.park,
                lease.job_id,
                lease.token,
                now=self._state.unix_time(),
                step=event.step,
                used=used,
                note=note,
            )
        self._state.end_lease_with(lease, job)
        if job is not None:
            log.info(note)

    async def _finish_stage(self, lease: Lease, event: Finished) -> None:
        # Who is done has run all steps, whatever the last report said.
        begun_at = lease.saved_before.steps
        held_s = None if lease.granted_at is None else time.monotonic() - lease.granted_at
        lease.report(lease.job.spec.steps if lease.stage in STEPPED else lease.step, event.device_s, event.passes)
        seconds = event.seconds | {"device": round(lease.reported.device_s, 4)}
        async with lease.saving() as used:
            job = await self._state.database.run(
                ends_sql.finish_stage,
                lease.job_id,
                lease.token,
                seconds=seconds,
                now=self._state.unix_time(),
                used=used,
            )
        self._state.end_lease_with(lease, job)
        if job is not None:
            log.info(f"{lease.stage} done, now {job.state}")
            if held_s is not None:
                self._state.costs.observe_held(
                    lease.stage, job.spec, held_s - event.seconds.get("denoise", 0.0), job.spec.steps - begun_at
                )

    async def _go_back(self, lease: Lease, event: InputUnusable) -> None:
        """What the stage before left cannot be used: it is made again, after a pause that grows."""
        if lease.stage not in STAGE_BEFORE:
            await self._lost_attempts.fail(lease, Failed("internal_error", event.reason, transient=True))
            return
        now = self._state.unix_time()
        # The row's count does not change under a lease.
        pause_s = remake_pause(lease.job.remakes + 1, self._state.settings)
        async with lease.saving() as used:
            job = await self._state.database.run(
                ends_sql.go_back,
                lease.job_id,
                lease.token,
                now=now,
                available_at=now + pause_s,
                note=f"{STAGE_BEFORE[lease.stage]} again: {event.reason}",
                used=used,
            )
        self._state.end_lease_with(lease, job, pause_s)
        if job is not None:
            log.warning(f"back to {job.stage} in {pause_s:.1f} s: {event.reason}")
