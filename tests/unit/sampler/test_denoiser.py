"""The transformer on its device: samples of states, the rotary tables that are kept, the blocks that are compiled."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo

from benchmarks.common import full_size as fs
from deployments.errors import TransientError
from deployments.messages import Stage
from deployments.mochi.block import run_block
from deployments.mochi.compiled_block import CompiledBlock
from deployments.mochi.denoise import Sample, initial_noise
from deployments.mochi.packed_weights import packed_weight, video_projections
from deployments.mochi.weights.loading import load_transformer
from deployments.sampler.denoiser import COMPILED_VARIABLE, Denoiser, compiled_block, finite_when_done
from deployments.sampler.state import SampleState
from deployments.settings import SamplingSettings
from tests.support.workers.fakes import SHAPES, captured, spec, worker_settings


@pytest.fixture(scope="module")
def transformer() -> Any:
    return load_transformer(SHAPES, "float32", torch.device("cpu"))


@pytest.fixture
def denoiser(transformer: Any) -> Denoiser:
    return Denoiser(transformer, min_step_s=0)


def state(width: int = 32, step: int = 0) -> SampleState:
    video = spec(width=width, height=32, num_frames=7, num_inference_steps=4)
    mask = torch.arange(16) < 5
    embeds = {"prompt_embeds": torch.ones(16, 96), "prompt_mask": mask}
    embeds |= {"negative_embeds": torch.zeros(16, 96), "negative_mask": mask}
    return SampleState(video, "revision", "float32", step, initial_noise(video) + step, embeds)


@torch.no_grad()
def test_a_sample_is_what_its_state_says(denoiser: Denoiser) -> None:
    begun = state(step=2)
    sample = denoiser.prepare(begun, [])
    assert torch.equal(sample.latents, begun.latents)
    assert (sample.step, sample.num_steps, sample.guidance_scale) == (2, 4, begun.spec.guidance_scale)
    (stepped,) = denoiser.step([sample])
    assert isinstance(stepped, Sample) and stepped.step == 3


@torch.no_grad()
def test_samples_of_one_shape_share_their_tables(denoiser: Denoiser) -> None:
    first = denoiser.prepare(state(), [])
    assert denoiser.prepare(state(step=1), [first]).rope is first.rope


@torch.no_grad()
@pytest.mark.parametrize("in_loop", [False, True])
def test_tables_of_shapes_without_samples_are_dropped_for_new_ones(denoiser: Denoiser, in_loop: bool) -> None:
    first = denoiser.prepare(state(), [])
    others: list[Sample] = [first] if in_loop else []
    denoiser.prepare(state(width=48), others)
    assert (denoiser.prepare(state(), others).rope is first.rope) == in_loop


@torch.no_grad()
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_ceases_to_be_numbers_fails_in_that_step_and_alone(denoiser: Denoiser, bad: float) -> None:
    good, odd = denoiser.prepare(state(), []), denoiser.prepare(state(step=1), [])
    alone = denoiser.step([good, odd])
    odd.latents[3, 1, 2, 2] = bad
    stepped, error = denoiser.step([good, odd])
    assert isinstance(stepped, Sample) and isinstance(alone[0], Sample)
    assert torch.equal(stepped.latents, alone[0].latents)
    assert isinstance(error, TransientError) and error.code == "non_finite_latents"
    assert "in step 2 of 4" in error.message


def test_each_tensor_is_told_whether_it_holds_numbers() -> None:
    tensors = [torch.zeros(2, 3), torch.tensor([[1.0, float("nan"), 0.0]] * 2), torch.full((2, 3), 3e38)]
    assert finite_when_done(tensors) == [True, False, True]


MODEL = worker_settings(Stage.SAMPLING).model


@pytest.fixture
def tiny() -> Any:
    config = fs.TINY | {"text_embed_dim": 96, "num_layers": 1}
    return fs.random_transformer(torch.device("cpu"), torch.float32, **config)


@pytest.fixture
def fresh() -> Iterator[None]:
    dynamo.reset()
    yield
    dynamo.reset()


@pytest.mark.parametrize(("rows_at_once", "graphs"), [(None, 2), (1, 1)])
def test_steps_after_the_warm_up_compile_nothing_on_any_thread(
    rows_at_once: int | None, graphs: int, tiny: Any, fresh: None
) -> None:
    compiled = CompiledBlock(MODEL.max_sequence_length, backend="eager")
    denoiser = Denoiser(tiny, 0, compiled, rows_at_once)
    denoiser.warm_up(MODEL)
    assert compiled.graphs == graphs and denoiser.note == "compiled" and denoiser.block is compiled

    stepped: list[object] = []

    @torch.no_grad()
    def work() -> None:
        denoiser.warm_up(MODEL)
        stepped.extend(denoiser.step([denoiser.prepare(state(width), []) for width in (48, 48, 48)]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [isinstance(sample, Sample) and sample.step for sample in stepped] == [1, 1, 1]
    assert compiled.graphs == graphs and denoiser.recompilations == 0


def test_a_block_that_cannot_be_compiled_is_told(tiny: Any, fresh: None, tmp_path: Path) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    dynamo.register_backend(backend, name="no_compiler")
    denoiser = Denoiser(tiny, 0, CompiledBlock(MODEL.max_sequence_length, backend="no_compiler"))
    denoiser.warm_up(MODEL)
    assert denoiser.note == "not compiled (RuntimeError: no compiler here)"
    assert denoiser.block is run_block and denoiser.recompilations == 0


def test_eager_blocks_are_not_told_of(denoiser: Denoiser) -> None:
    denoiser.warm_up(MODEL)
    assert (denoiser.note, denoiser.block, denoiser.recompilations) == ("", run_block, 0)


@pytest.mark.parametrize(("wish", "compiles"), [("auto", False), (False, False), (True, True)])
def test_on_a_cpu_blocks_are_compiled_only_where_the_settings_say_so(
    wish: Any, compiles: bool, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMPILED_VARIABLE, raising=False)
    block = compiled_block(tiny, MODEL, SamplingSettings(compile=wish), tmp_path)
    assert (block is not None) == compiles
    assert (packed_weight(video_projections(tiny.transformer_blocks[0].attn1)) is not None) == compiles
    assert os.environ.get(COMPILED_VARIABLE) == (str(tmp_path / "compiled") if compiles else None)
    assert (tmp_path / "compiled").is_dir() == compiles


def test_the_operators_folder_of_kernels_stays(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMPILED_VARIABLE, "/elsewhere")
    compiled_block(tiny, MODEL, SamplingSettings(compile=True), tmp_path)
    assert os.environ[COMPILED_VARIABLE] == "/elsewhere" and list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told_and_no_obstacle(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(COMPILED_VARIABLE, raising=False)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with captured(caplog):
        assert compiled_block(tiny, MODEL, SamplingSettings(compile=True), blocked) is not None
    assert COMPILED_VARIABLE not in os.environ and "cannot be kept" in caplog.text
