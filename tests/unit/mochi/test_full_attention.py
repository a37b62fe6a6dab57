"""Which kernel attends: FlashAttention 4 where it is installed and right, torch's own everywhere else."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.mochi import full_attention
from deployments.mochi.full_attention import attend_full, attention_name

CPU = torch.device("cpu")
HOPPER = (9, 0)

Kernel = Callable[[Tensor, Tensor, Tensor], object]


def torchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, S, heads, d], as FlashAttention has them."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def chosen(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel | None, capability: tuple[int, int], dtype: torch.dtype
) -> full_attention.Attend | None:
    """What is taken where `kernel` is installed as FlashAttention 4, on a GPU of that capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(full_attention, "find_spec", lambda name: None if kernel is None else object())
    if kernel is not None:
        cute = ModuleType("flash_attn.cute")
        cute.flash_attn_func = kernel  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
        monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    return full_attention._flash(CPU, dtype, 2, 16)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    full_attention._flash.cache_clear()
    yield
    full_attention._flash.cache_clear()


@pytest.mark.parametrize("answer", [torchs, lambda *parts: (torchs(*parts), None)])
def test_flash_attention_is_taken_on_hopper(monkeypatch: pytest.MonkeyPatch, answer: Kernel) -> None:
    attend = chosen(monkeypatch, answer, HOPPER, torch.bfloat16)
    assert attend is not None
    parts = list(torch.randn(3, 7, 2, 16))
    torch.testing.assert_close(attend(*parts), attend_full(*parts))


@pytest.mark.parametrize(
    ("kernel", "capability", "dtype"),
    [(None, HOPPER, torch.bfloat16), (torchs, (8, 9), torch.bfloat16), (torchs, HOPPER, torch.float32)],
)
def test_elsewhere_torch_chooses(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel | None, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    assert chosen(monkeypatch, kernel, capability, dtype) is None
    assert attention_name(CPU, dtype, 2, 16) == ""


def broken(*parts: Tensor) -> Tensor:
    raise TypeError("no such kernel here")


def wrong(*parts: Tensor) -> Tensor:
    return 1.1 * torchs(*parts)


@pytest.mark.parametrize(("kernel", "says"), [(broken, "no such kernel here"), (wrong, "is wrong by 0.1")])
def test_one_that_fails_or_is_wrong_is_left_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kernel: Kernel, says: str
) -> None:
    assert chosen(monkeypatch, kernel, HOPPER, torch.bfloat16) is None
    assert says in caplog.text and "torch chooses" in caplog.text


def test_a_broken_device_is_not_held_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*parts: Tensor) -> Tensor:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    with pytest.raises(torch.AcceleratorError):
        chosen(monkeypatch, lost, HOPPER, torch.bfloat16)
