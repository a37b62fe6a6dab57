"""Models in the object store and on the hub, and the caches for them, before anything is started."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployments.embedder.settings import ARCHITECTURES, ProteinSettings
from deployments.messages import Stage
from deployments.proteins.esm2 import Esm2
from deployments.replica.connections import bucket_opener
from deployments.settings import ModelSettings, StorageSettings
from deployments.storage.models.hub import Hub
from deployments.storage.models.single import single_model_folder
from deployments.storage.object_store import ObjectStore
from serve_app.errors import ConfigError, StartupError
from serve_app.local.model_source import check_model_place, check_protein_place, check_protein_source
from tests.support import ROOT
from tests.support.proteins.models import make_esm
from tests.support.servers.hub import hub_server
from tests.support.servers.ports import free_ports
from tests.support.workers.fakes import SHAPES, worker_settings
from tests.support.workers.published_model import published_model

MODEL = "genmo/mochi-1-preview"


def model(source: str) -> ModelSettings:
    return worker_settings(Stage.SAMPLING).model.model_copy(update={"source": source})


def line(model: ModelSettings, storage: StorageSettings, hub: Hub, cache: Path) -> str:
    with pytest.raises(StartupError) as caught:
        check_model_place(model, "float32", storage, hub, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_model_in_the_store(
    storage_settings: StorageSettings, object_store: ObjectStore, tmp_path: Path
) -> None:
    for path in SHAPES.glob("*/*"):
        if path.suffix in (".json", ".safetensors"):
            key = f"check/mochi/{path.relative_to(SHAPES)}"
            await object_store.put(key, path.read_bytes(), "application/octet-stream")
    index = (SHAPES / "model_index.json").read_bytes()
    await object_store.put("check/mochi/model_index.json", index, "application/json")
    source = f"s3://{storage_settings.bucket}/check/mochi"
    await asyncio.to_thread(check_model_place, model(source), "float32", storage_settings, Hub(), tmp_path / "cache")
    await object_store.put("check/mochi/vae/config.json", b'{"_class_name": "AutoencoderKLWan"}', "application/json")
    told = await asyncio.to_thread(line, model(source), storage_settings, Hub(), tmp_path / "cache")
    assert told.startswith(f"{source}/vae/config.json is of the class 'AutoencoderKLWan'")
    (tmp_path / "file").write_text("")
    told = await asyncio.to_thread(line, model(source), storage_settings, Hub(), tmp_path / "file" / "cache")
    assert told.startswith(f"the cache of models {tmp_path}/file/cache cannot be written")


def test_a_store_that_is_away_is_waited_for_later(storage_settings: StorageSettings, tmp_path: Path) -> None:
    away = storage_settings.model_copy(update={"endpoint": f"127.0.0.1:{free_ports(1)[0]}"})
    check_model_place(model("s3://bucket/mochi"), "float32", away, Hub(), tmp_path)


def test_a_model_on_the_hub(storage_settings: StorageSettings, tmp_path: Path) -> None:
    published = published_model(tmp_path / "published")
    with hub_server(MODEL, published) as server:
        hub = Hub(server.endpoint, tmp_path / "cache")
        check_model_place(model(MODEL), "float32", storage_settings, hub)
        assert not [name for name in server.read if name.endswith("safetensors")]
        (tmp_path / "file").write_text("")
        told = line(model(MODEL), storage_settings, Hub(server.endpoint, tmp_path / "file" / "x"), tmp_path)
        assert told.startswith(f"the cache of models {tmp_path}/file/x cannot be written")
    told = line(model(MODEL), storage_settings, Hub(server.endpoint, tmp_path / "empty"), tmp_path)
    assert f"the hub cannot be reached ([Errno 111] Connection refused), and {tmp_path}/empty does not hold" in told


def test_a_server_does_not_start_with_another_model(tmp_path: Path) -> None:
    """One line, before Ray is loaded."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "dit.safetensors").write_bytes(b"")
    profile = yaml.safe_load((ROOT / "configs" / "shapes.yaml").read_text())
    profile["model"]["source"] = str(tmp_path / "model")
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    application = {"name": "api", "import_path": "x:y", "args": {"config": str(tmp_path / "profile.yaml")}}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    code = (
        "import sys\nfrom serve_app.cli.main import app\ntry:\n    app()\n"
        "finally:\n    assert not {'ray', 'torch'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, "serve", "--config", str(tmp_path / "serve.yaml"), "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    told = " ".join(done.stderr.split())
    assert "holds single files of weights (dit.safetensors) and no model_index.json; expected is" in told
    assert "Traceback" not in done.stderr and not (tmp_path / "ray-token").exists()


ESM = "facebook/esm2_t6_8M_UR50D"


def proteins(source: object) -> ProteinSettings:
    return ProteinSettings(source=str(source))


def protein_line(source: object, storage: StorageSettings, hub: Hub, cache: Path) -> str:
    with pytest.raises(StartupError) as caught:
        check_protein_place(proteins(source), storage, hub, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_protein_model_on_the_hub(storage_settings: StorageSettings, tmp_path: Path) -> None:
    published = make_esm(tmp_path / "published")
    with hub_server(ESM, published) as server:
        hub = Hub(server.endpoint, tmp_path / "cache")
        check_protein_place(proteins(ESM), storage_settings, hub)
        assert not [name for name in server.read if name.endswith("safetensors")]
        folder = single_model_folder(
            "proteins.source", proteins(ESM), ARCHITECTURES, "float32", bucket_opener(storage_settings), tmp_path, hub
        )
        assert Esm2(folder).num_layers == 3
    check_protein_place(proteins(ESM), storage_settings, hub)  # the hub is away, and the model is here
    told = protein_line(ESM, storage_settings, Hub(server.endpoint, tmp_path / "empty"), tmp_path)
    assert f"the hub cannot be reached ([Errno 111] Connection refused), and {tmp_path}/empty does not hold" in told


def test_what_is_no_protein_model_is_told(storage_settings: StorageSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^proteins\.source '/nope': no such folder"):
        check_protein_source(proteins("/nope"))
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        check_protein_source(proteins(SHAPES))
    folder = make_esm(tmp_path / "esm")
    check_protein_source(proteins(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ConfigError, match=r"names BertForMaskedLM as `architectures`; supported is EsmForMaskedLM or"):
        check_protein_source(proteins(folder))
