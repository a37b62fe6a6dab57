"""GPUs against a profile, by what a child tells of them."""

from pathlib import Path
from typing import Any

import psutil

from serve_app.doctor.checks.gpu import check_gpu
from serve_app.doctor.children.run import ChildError
from serve_app.doctor.finding import Finding, State
from tests.support.doctor import FakeChild, by_name, patient

GB = 1_000_000_000
SHARES = {
    "encoder": {"num_gpus": 0.2, "memory_fraction": 0.2},
    "sampler": {"num_gpus": 0.5, "memory_fraction": 0.5},
    "decoder": {"num_gpus": 0.2, "memory_fraction": 0.2},
}
ADVICE = "torch 2.13.0 is built without CUDA: install a CUDA build of it"


def gpu(total: int = 24 * GB, used: int = 0, **more: Any) -> dict[str, Any]:
    plain = {"name": "L4", "total": total, "used": used, "processes": {}, "unfit": None, "problem": None}
    return plain | more


def machine(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    told = {"torch": "2.13.0", "cuda": "13.0", "driver": "580.65", "devices": list(devices), "advice": ADVICE}
    return told | more


def look(tmp_path: Path, answer: Any, profile: dict[str, Any] | None = None, **more: Any) -> dict[str, Finding]:
    return by_name(check_gpu(patient(tmp_path, profile, ask=FakeChild(gpus=answer), **more)))


def test_a_machine_without_gpu_is_fit_for_a_profile_that_needs_none(tmp_path: Path) -> None:
    found = look(tmp_path, machine(cuda=None, driver=None))
    assert found["gpus"].state is State.OK and found["gpus"].told.endswith("the profile needs none")
    assert {found[name].state for name in ("gpu_works", "gpu_processes", "gpu_memory")} == {State.SKIPPED}


def test_a_profile_that_wants_one_where_there_is_none(tmp_path: Path) -> None:
    found = look(tmp_path, machine(cuda=None, driver=None), SHARES)["gpus"]
    assert found.state is State.FAULT and "the profile wants one for encoder, sampler, decoder" in found.told
    assert found.advice == f"{ADVICE}; or take configs/shapes.yaml, which needs no GPU"


def test_fewer_gpus_than_the_first_replicas_take(tmp_path: Path) -> None:
    found = look(tmp_path, machine(gpu()), {name: {"num_gpus": 1} for name in SHARES})["gpus"]
    assert found.state is State.FAULT and "needs 3 GPUs" in found.told and "this machine has 1" in found.told
    assert "let the stages share one" in found.advice


def test_weights_that_do_not_fit_their_share(tmp_path: Path) -> None:
    found = look(tmp_path, machine(gpu(total=20_000_000)), {"sampler": {"num_gpus": 1, "memory_fraction": 0.1}})
    fault = found["gpu_memory"]
    assert fault.state is State.FAULT and "the weights of the sampler take 0.0" in fault.told
    assert "profile for a smaller card" in fault.advice and "model.weights to int8" in fault.advice


def test_shares_that_are_more_than_the_whole(tmp_path: Path) -> None:
    shares = {**SHARES, "sampler": {"num_gpus": 0.5, "memory_fraction": 0.6}}
    fault = look(tmp_path, machine(gpu()), shares)["gpu_memory"]
    assert fault.state is State.FAULT and "are 1 together" in fault.told and fault.advice == "lower them until they fit"
    assert look(tmp_path, machine(gpu()), SHARES)["gpu_memory"].state is State.OK


def test_memory_that_others_hold(tmp_path: Path) -> None:
    busy = gpu(used=20 * GB, processes={"1": 20 * GB})
    warning = look(tmp_path, machine(busy), SHARES)["gpu_processes"]
    assert warning.state is State.WARNING and warning.told.startswith("GPU 0: 20.0 of 24.0 GB are held by 1 (")
    assert "CUDA_VISIBLE_DEVICES" in warning.advice
    assert look(tmp_path, machine(gpu(used=GB // 10)), SHARES)["gpu_processes"].state is State.OK


def test_a_gpu_that_does_not_work_and_one_that_should_not(tmp_path: Path) -> None:
    broken = look(tmp_path, machine(gpu(), gpu(problem="CUDA error: out of memory")))["gpu_works"]
    assert broken.told == "GPU 1 multiplies no matrices: CUDA error: out of memory" and broken.advice == ADVICE
    sick = look(tmp_path, machine(gpu(unfit="the GPU has no spare rows left: replace it")))["gpu_works"]
    assert (sick.told, sick.advice) == ("GPU 0: the GPU has no spare rows left", "replace it")


def test_beside_a_server_no_gpu_is_used_and_its_own_memory_is_not_others(tmp_path: Path) -> None:
    own = psutil.Process()
    child = FakeChild(gpus=machine(gpu(used=23 * GB, processes={str(own.pid): 23 * GB})))
    found = by_name(check_gpu(patient(tmp_path, SHARES, ask=child, server=own)))
    assert child.asked == [("gpus", "look")]
    assert {one.state for one in found.values()} == {State.OK}


def test_a_driver_that_hangs(tmp_path: Path) -> None:
    hung = ChildError("no answer within 120 s")
    assert look(tmp_path, hung, SHARES)["gpus"].state is State.FAULT
    assert look(tmp_path, hung)["gpus"].state is State.WARNING, "the profile needs none"


def test_on_a_cluster_this_machine_needs_no_gpu(tmp_path: Path) -> None:
    found = look(tmp_path, ChildError("not asked"), SHARES, ray_address="auto")
    assert {finding.state for finding in found.values()} == {State.SKIPPED}
