"""Loading the included model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.errors import PermanentError
from deployments.mochi.loading import check_scheduler, load_text_encoder, load_transformer, load_vae
from tests.support.workers.fakes import SHAPES

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_parts_are_frozen_and_in_the_dtype(name: Any, dtype: torch.dtype) -> None:
    _, encoder = load_text_encoder(SHAPES, name, CPU)
    vae = load_vae(SHAPES, name, CPU)
    assert vae.encoder is None
    for part in (encoder, load_transformer(SHAPES, name, CPU), vae):
        assert not part.training
        assert {p.dtype for p in part.parameters()} == {dtype}
        assert not any(p.requires_grad for p in part.parameters())


def test_scheduler_of_the_included_model_is_supported() -> None:
    check_scheduler(SHAPES)


def test_other_schedulers_are_refused(tmp_path: Path) -> None:
    shutil.copytree(SHAPES / "scheduler", tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": 3.0}))
    with pytest.raises(PermanentError, match=r"shift is 3\.0; only 1\.0") as caught:
        check_scheduler(tmp_path)
    assert caught.value.code == "model_unsupported"
