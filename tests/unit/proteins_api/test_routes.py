"""What clients of /esm2 get: the model's own numbers whatever is beside them, in three forms, and errors by name."""

import asyncio
import io
import json
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load

from deployments.proteins.alphabet import AMINO_ACIDS, VOCABULARY, ProteinSequence
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Pooling, Query
from deployments.proteins.scores import pseudo_perplexity, substitution_table
from serve_app.proteins.answers import NPZ, SAFETENSORS
from serve_app.proteins.schemas import BatchAnswer, PredictAnswer, ProteinHealth
from tests.support.proteins.api import ProteinApi, running_api
from tests.support.proteins.devices import alone
from tests.support.proteins.sequences import drawn_sequence
from tests.support.waiting import until

A, B = drawn_sequence(70, 1), drawn_sequence(33, 2)


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.array(found), wanted, rtol=1e-5, atol=1e-5)


def mean(model: Esm2, sequence: ProteinSequence, layer: int = -1) -> Any:
    return alone(model, Query(sequence.tokens, (layer,), ("mean",))).embeddings[layer, "mean"]


async def test_the_least_gives_the_mean_of_the_last_layer(api: ProteinApi, model: Esm2) -> None:
    answer = await api.post("/predict", sequence=A.text)
    PredictAnswer.model_validate(answer)
    (embedding,) = answer["embeddings"]
    assert (embedding["layer"], embedding["pooling"]) == (model.num_layers, "mean")
    close(embedding["values"], mean(model, A))
    assert (answer["model"], answer["revision"], answer["length"], answer["id"]) == ("tiny", "r1", 70, None)
    assert (answer["num_layers"], answer["hidden_size"]) == (model.num_layers, model.hidden_size)
    assert answer["contacts"] is answer["masked"] is answer["mutations"] is answer["substitutions"] is None


async def test_layers_and_poolings_are_as_asked(api: ProteinApi, model: Esm2) -> None:
    answer = await api.post("/predict", sequence=A.text, layers=[0, 2, -1], pooling=["bos", "max", "per_residue"])
    PredictAnswer.model_validate(answer)
    poolings: tuple[Pooling, ...] = ("bos", "max", "per_residue")
    wanted = alone(model, Query(A.tokens, (0, 2, -1), poolings)).embeddings
    assert [(one["layer"], one["pooling"]) for one in answer["embeddings"]] == [
        (layer, pooling) for layer in (0, 2, model.num_layers) for pooling in poolings
    ]
    for one, key in zip(answer["embeddings"], wanted, strict=True):
        close(one["values"], wanted[key])


async def test_a_batch_is_what_its_sequences_are_alone(api: ProteinApi, model: Esm2) -> None:
    drawn = [drawn_sequence(length, length) for length in (1, 2, 300, 17, 1022, 64)]
    answer = await api.post("/predict/batch", sequences=[one.text for one in drawn])
    BatchAnswer.model_validate(answer)
    assert [one["index"] for one in answer["results"]] == list(range(6))
    for one, sequence in zip(answer["results"], drawn, strict=True):
        close(one["embeddings"][0]["values"], mean(model, sequence))
    assert sum(len(device.calls) > 0 for device in api.devices) > 1, "the groups went to several devices"


async def test_a_wrong_sequence_costs_the_others_nothing(api: ProteinApi, model: Esm2) -> None:
    items = [A.text, "MK1", {"id": "b", "sequence": "A" * 1023}, {"id": "c", "sequence": ""}, B.text]
    answer = await api.post("/predict/batch", sequences=items)
    BatchAnswer.model_validate(answer)
    first, *wrong, last = answer["results"]
    close(first["embeddings"][0]["values"], mean(model, A))
    close(last["embeddings"][0]["values"], mean(model, B))
    assert [(one["id"], one["error"]["code"]) for one in wrong] == [
        (None, "sequence_invalid"),
        ("b", "sequence_too_long"),
        ("c", "sequence_empty"),
    ]
    alone_wrong = await api.post("/predict", 400, sequence="MK1")
    assert alone_wrong["error"]["code"] == "sequence_invalid" and alone_wrong["error"]["param"] == "sequence"


async def test_masks_are_filled_in(api: ProteinApi, model: Esm2) -> None:
    masked = ProteinSequence(A.residues[:3] + "#" + A.residues[4:9] + "#" + A.residues[10:])
    answer = await api.post("/predict", sequence=masked.text)
    told = answer["masked"]
    assert told["positions"] == [4, 10] and told["vocabulary"] == list(VOCABULARY)
    close(told["logits"], alone(model, Query(masked.tokens, logits_at=(3, 9))).logits)
    best = [int(np.argmax(row)) for row in told["logits"]]
    assert [likely[0]["residue"] for likely in told["most_likely"]] == [VOCABULARY[token] for token in best]
    assert answer["embeddings"], "embeddings come along, as nothing else was asked for"
    without = await api.post("/predict", sequence=masked.text, logits=False)
    assert without["masked"] is None
    none = await api.post("/predict", 400, sequence=A.text, logits=True)
    assert none["error"]["code"] == "sequence_without_mask"


async def test_contacts(api: ProteinApi, model: Esm2) -> None:
    answer = await api.post("/predict", sequence=B.text, contacts=True)
    close(answer["contacts"], alone(model, Query(B.tokens, contacts=True)).contacts)
    assert answer["embeddings"] == [], "they were not asked for"
    both = await api.post("/predict", sequence=B.text, contacts=True, layers=[-1])
    assert len(both["embeddings"]) == 1 and both["contacts"]


@pytest.mark.parametrize("scoring", ["masked_marginals", "wild_type_marginals"])
async def test_scores(api: ProteinApi, model: Esm2, scoring: Any) -> None:
    wild = B.residues[4] if B.residues[4] in AMINO_ACIDS else "X"
    single, double = f"{B.residues[1]}2A", f"{B.residues[1]}2A:{wild}5G"
    answer = await api.post(
        "/predict",
        sequence=B.text,
        mutations=[single, double],
        substitutions=True,
        pseudo_perplexity=True,
        scoring=scoring,
    )
    plan = substitution_table(B, scoring)
    table = plan.finish(model.run(plan.queries))
    close(answer["substitutions"]["scores"], table)
    assert answer["substitutions"]["amino_acids"] == AMINO_ACIDS
    assert [one["mutation"] for one in answer["mutations"]] == [single, double]
    close(answer["mutations"][0]["score"], table[1, AMINO_ACIDS.index("A")])
    perplexity = pseudo_perplexity(B)
    close(answer["pseudo_perplexity"], perplexity.finish(model.run(perplexity.queries)).value)


async def test_mutations_of_one_sequence_of_a_batch(api: ProteinApi) -> None:
    answer = await api.post(
        "/predict/batch", sequences=["MKTAY", {"sequence": "MATAY", "mutations": ["A2G"]}], mutations=["K2A"]
    )
    first, second = answer["results"]
    assert first["mutations"][0]["mutation"] == "K2A" and second["mutations"][0]["mutation"] == "A2G"
    wrong = await api.post("/predict/batch", sequences=["MKTAY", "MATAY"], mutations=["K2A"])
    assert "error" not in wrong["results"][0]
    assert wrong["results"][1]["error"]["code"] == "mutation_mismatch"


async def test_a_long_protein_is_read_in_windows_when_asked(api: ProteinApi) -> None:
    long = drawn_sequence(1500, 3)
    refused = await api.post("/predict", 400, sequence=long.text)
    assert refused["error"]["code"] == "sequence_too_long" and "windows" in refused["error"]["message"]
    answer = await api.post("/predict", sequence=long.text, windows=True, pooling="per_residue", overlap=100)
    assert answer["length"] == 1500 and np.array(answer["embeddings"][0]["values"]).shape[0] == 1500
    for asked in ({"contacts": True}, {"pseudo_perplexity": True}, {"substitutions": True}):
        wrong = await api.post("/predict", 400, sequence=long.text, windows=True, **asked)
        assert next(iter(asked)) in wrong["error"]["message"]


async def test_fasta_keeps_names_and_their_order(api: ProteinApi, model: Esm2) -> None:
    text = f">one first of all\n{A.text[:40]}\n{A.text[40:]}\n\n>two\n{B.text}*\n;a note\n>one\nmk-1\n"
    answer = await api.client.post(
        "/predict/batch?pooling=mean,max&layers=0,-1&remove_gaps=true",
        content=text,
        headers={"content-type": "text/x-fasta"},
    )
    assert answer.status_code == 200, answer.text
    first, second, third = answer.json()["results"]
    assert [one["id"] for one in (first, second, third)] == ["one", "two", "one"]
    assert len(first["embeddings"]) == 4
    close(first["embeddings"][2]["values"], mean(model, A))
    close(second["embeddings"][2]["values"], mean(model, B))
    assert third["error"]["code"] == "sequence_invalid"
    as_field = await api.post("/predict/batch", fasta=f">x\n{A.text}\n")
    assert as_field["results"][0]["id"] == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MKT\n>a\nMKT", "before the first header"),
        ("\n\n", "no sequence"),
        ("".join(f">{i}\nMKT\n" for i in range(65)), "65 sequences; at most 64"),
    ],
)
async def test_what_is_no_fasta_is_refused(api: ProteinApi, text: str, message: str) -> None:
    answer = await api.client.post("/predict/batch", content=text, headers={"content-type": "text/plain"})
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("overlap=%C2%B2", "overlap"),
        ("layers=--1", "layers"),
        ("layers=9" + "9" * 6_000, "layers"),
        ("windows=maybe", "windows"),
        ("poolings=mean", "poolings"),
        ("fasta=x&layers=7", "layers"),
    ],
)
async def test_options_in_the_url_are_checked(api: ProteinApi, query: str, param: str) -> None:
    answer = await api.client.post(f"/predict/batch?{query}", content=">a\nMKT", headers={"content-type": "text/plain"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


async def test_options_in_the_url_may_be_all_that_a_body_may(api: ProteinApi) -> None:
    query = "layers=0,2&pooling=max&contacts=true&windows=false&overlap=10&scoring=wild_type_marginals"
    query += "&mutations=M1A,K2A:T3G"
    answer = await api.client.post(f"/predict/batch?{query}", content=">a\nMKT", headers={"content-type": "text/plain"})
    (result,) = answer.json()["results"]
    assert [one["layer"] for one in result["embeddings"]] == [0, 2] and len(result["contacts"]) == 3
    assert [one["mutation"] for one in result["mutations"]] == ["M1A", "K2A:T3G"]


async def test_arrays_come_as_npz_and_safetensors(api: ProteinApi, model: Esm2) -> None:
    fields = {"sequences": [A.text, B.text], "pooling": ["per_residue"], "contacts": True, "layers": [-1]}
    as_npz = await api.client.post("/predict/batch", json=fields, headers={"accept": NPZ})
    as_safetensors = await api.client.post("/predict/batch", json=fields, headers={"accept": SAFETENSORS})
    assert (as_npz.headers["content-type"], as_safetensors.headers["content-type"]) == (NPZ, SAFETENSORS)
    name = f"1.embeddings.{model.num_layers}.per_residue"
    wanted = alone(model, Query(B.tokens, (-1,), ("per_residue",), contacts=True))
    with np.load(io.BytesIO(as_npz.content)) as arrays:
        close(arrays[name], wanted.embeddings[-1, "per_residue"])
        close(arrays["1.contacts"], wanted.contacts)
        told = json.loads(str(arrays["answer"]))
    close(load(as_safetensors.content)[name], wanted.embeddings[-1, "per_residue"])
    assert told["results"][1]["embeddings"][0]["values"] == {"array": name}
    BatchAnswer.model_validate(told)


async def test_safetensors_tell_the_answer_in_their_header(api: ProteinApi, tmp_path: Any) -> None:
    answer = await api.client.post("/predict", json={"sequence": B.text}, headers={"accept": SAFETENSORS})
    (tmp_path / "answer.safetensors").write_bytes(answer.content)
    with safe_open(str(tmp_path / "answer.safetensors"), "np") as file:
        told = json.loads(file.metadata()["answer"])
    PredictAnswer.model_validate(told)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("text/html, application/*;q=0.8", "application/json"),
        (f"application/json;q=0.1, {NPZ}", NPZ),
        (f"{SAFETENSORS};q=0, */*;q=0.5", "application/json"),
    ],
)
async def test_the_form_is_the_one_that_is_preferred(api: ProteinApi, accept: str, kind: str) -> None:
    answer = await api.client.post("/predict", json={"sequence": "MKT"}, headers={"accept": accept})
    assert answer.headers["content-type"] == kind and answer.headers["vary"] == "Accept"


async def test_a_form_that_there_is_not_is_refused_before_any_work(api: ProteinApi) -> None:
    answer = await api.client.post("/predict", json={"sequence": "MKT"}, headers={"accept": "image/png"})
    assert answer.status_code == 406 and answer.json()["error"]["code"] == "not_acceptable"
    assert not any(device.calls for device in api.devices)


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        ("/predict", {}, "sequence", "missing_required_parameter"),
        ("/predict", {"sequence": "MKT", "layer": 1}, "layer", "unknown_parameter"),
        ("/predict", {"sequence": "MKT", "layers": [99]}, "layers", "invalid_value"),
        ("/predict", {"sequence": "MKT", "layers": []}, "layers", "invalid_value"),
        ("/predict", {"sequence": "MKT", "pooling": "median"}, "pooling", "invalid_value"),
        ("/predict", {"sequence": "MKT", "model": "esm1"}, "model", "model_not_found"),
        ("/predict", {"sequence": 5}, "sequence", "invalid_value"),
        ("/predict", {"sequence": "MKT", "mutations": ["K2"]}, "sequence", "mutation_invalid"),
        ("/predict/batch", {}, "sequences", "missing_required_parameter"),
        ("/predict/batch", {"sequences": []}, "sequences", "invalid_value"),
        ("/predict/batch", {"sequences": ["MKT"] * 65}, "sequences", "batch_too_large"),
        ("/predict/batch", {"sequences": ["MKT"], "fasta": ">a\nM"}, "sequences", "conflicting_parameters"),
        ("/predict/batch", {"sequences": [{"sequence": "M", "name": "x"}]}, "sequences", "invalid_value"),
    ],
)
async def test_what_is_wrong_is_named(
    api: ProteinApi, path: str, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = await api.post(path, 400, **fields)
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code)
    assert not any(device.calls for device in api.devices)


async def test_too_much_for_one_request_is_refused_at_once(model: Esm2) -> None:
    async with running_api(model, max_request_tokens=2_048) as api:
        answer = await api.post("/predict", 400, sequence="MKTAY" * 20, pseudo_perplexity=True)
        assert answer["error"]["code"] == "too_much_work" and "10200 tokens" in answer["error"]["message"]


async def test_an_answer_that_would_be_too_large_is_refused_at_once(model: Esm2) -> None:
    async with running_api(model, max_answer_numbers=1_000_000) as api:
        fields = {"sequences": ["MKTAY" * 200] * 32, "pooling": "per_residue"}
        answer = await api.post("/predict/batch", 400, **fields)
        assert answer["error"]["code"] == "answer_too_large" and "1024000 numbers" in answer["error"]["message"]
        assert not any(device.calls for device in api.devices)
        contacts = await api.post("/predict/batch", 400, sequences=["MKTAY" * 200, "MKT"], contacts=True)
        assert contacts["error"]["code"] == "answer_too_large"


async def test_a_model_without_a_head_says_so(model: Esm2) -> None:
    async with running_api(model, info={"predicts_tokens": False, "predicts_contacts": False}) as api:
        scores = await api.post("/predict", 400, sequence="MKTAY", pseudo_perplexity=True)
        assert scores["error"]["code"] == "model_without_lm_head"
        contacts = await api.post("/predict", 400, sequence="MKTAY", contacts=True)
        assert contacts["error"]["code"] == "model_without_contacts"
        assert (await api.post("/predict", sequence="MKTAY"))["embeddings"]


async def test_a_full_line_is_told_and_one_tenant_leaves_room(model: Esm2) -> None:
    async with running_api(model, count=1, info={"pass_tokens": 64}, max_waiting_tokens=2_048) as api:
        (device,) = api.devices
        device.hangs = True
        sequence = "M" * 498
        one, other = {"OpenAI-Organization": "one"}, {"OpenAI-Organization": "other"}

        async def ask(headers: dict[str, str]) -> Any:
            return await api.client.post("/predict", json={"sequence": sequence}, headers=headers)

        asked = [asyncio.create_task(ask(one)) for _ in range(3)]
        await until(lambda: api.service.waiting_tokens == 1_000)
        refused = await ask(one)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) > 0
        asked.append(asyncio.create_task(ask(other)))
        await until(lambda: api.service.waiting_tokens == 1_500)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert api.service.waiting_tokens == 0


async def test_a_request_that_takes_too_long_is_ended(model: Esm2) -> None:
    async with running_api(model, count=1, request_timeout_s=1) as api:
        api.devices[0].hangs = True
        answer = await api.post("/predict", 504, sequence="MKTAY")
        assert answer["error"]["code"] == "request_unfinished"


async def test_health_tells_the_devices_and_their_breakers(api: ProteinApi) -> None:
    healthy = (await api.client.get("/health")).json()
    ProteinHealth.model_validate(healthy)
    assert (healthy["status"], healthy["logical_devices"], len(healthy["devices"])) == ("healthy", 4, 4)
    assert not healthy["physical_cuda_available"]
    api.devices[0].fails = True
    for _ in range(12):
        await api.post("/predict", sequence="MKTAY")
    degraded = await api.client.get("/health")
    assert degraded.status_code == 200 and degraded.json()["status"] == "degraded"
    assert [one["breaker"] for one in degraded.json()["devices"]] == ["open", "closed", "closed", "closed"]
    for device in api.devices:
        device.fails = True
    for _ in range(8):
        await api.client.post("/predict", json={"sequence": "MKTAY"})
    unhealthy = await api.client.get("/health")
    assert unhealthy.status_code == 503 and unhealthy.json()["status"] == "unhealthy"
    assert (await api.post("/predict", 503, sequence="MKTAY"))["error"]["code"] == "no_device"


async def test_while_the_model_is_loaded_it_is_503(api: ProteinApi) -> None:
    await api.forget_all()
    health = await api.client.get("/health")
    assert health.status_code == 503 and health.json()["status"] == "loading" and health.headers["retry-after"]
    assert (await api.post("/predict", 503, sequence="MKTAY"))["error"]["code"] == "model_loading"
    assert (await api.post("/warmup", 503))["error"]["code"] == "model_loading"


async def test_warm_up_reaches_every_device(api: ProteinApi) -> None:
    assert (await api.post("/warmup"))["devices"] == 4


async def test_the_document_describes_it(api: ProteinApi) -> None:
    document = (await api.client.get("/openapi.json")).json()
    jobs = {"", "/{job_id}", *(f"/{{job_id}}/{more}" for more in ("cancel", "events", "history", "parts/{number}"))}
    assert set(document["paths"]) == {"/predict", "/predict/batch", "/health", "/warmup", *(f"/jobs{j}" for j in jobs)}
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        await api.post("/predict", **example["value"])
    for example in document["paths"]["/predict/batch"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ].values():
        await api.post("/predict/batch", **example["value"])
    assert {"application/json", NPZ, SAFETENSORS} == set(
        document["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    )
