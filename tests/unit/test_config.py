"""Settings: what is read, what overrides it, and what an error says and does not say."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.clip import ClipShape, cfg_rows
from deployments.messages import Stage
from deployments.settings import Settings
from deployments.step_rules import StepRules, linear_steps, step_plan
from serve_app.config import AppArgs, AppSettings, load_settings
from serve_app.errors import ConfigError
from tests.support import ROOT

PROFILES = sorted((ROOT / "configs").glob("*.yaml"))
SECRET = "hunter2-tr0ub4dor"


def tree() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "configs/shapes.yaml").read_text())
    return parsed


def write(folder: Path, content: object) -> str:
    path = folder / "profile.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def load(folder: Path, environ: Mapping[str, str] | None = None, **sections: object) -> AppSettings:
    """The included profile with whole sections replaced, and an environment laid over it."""
    return load_settings(write(folder, tree() | sections), environ or {})


def refusal(folder: Path, sections: Mapping[str, object], environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(folder, tree() | dict(sections)), environ or {})
    return str(caught.value)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_profile_loads(profile: Path) -> None:
    settings = load_settings(str(profile), {})
    m = settings.model
    assert m.name == ("fastmochi" if profile.stem.startswith("fastmochi") else "mochi-1")
    assert m.width.default * m.height.default * m.num_frames.default <= m.max_pixels


@pytest.mark.parametrize("profile", [p for p in PROFILES if not p.stem.startswith("fastmochi")], ids=lambda p: p.stem)
def test_each_quality_of_a_profile_is_less_work_than_the_one_before(profile: Path) -> None:
    model = load_settings(str(profile), {}).model
    assert model.quality == "exact" and model.offered == ("exact", "fast", "draft")
    plans = [step_plan(model.steps_of(each), model.guidance_of(each), model.rules_of(each)) for each in model.offered]
    work = [len(plan.steps) * plan.mean_full_rows for plan in plans]
    assert work[0] == 2 * model.num_inference_steps.default
    assert 0.6 * work[0] >= work[1] > work[2]


def test_a_bound_of_pictures_leaves_the_default_size(tmp_path: Path) -> None:
    refused = refusal(tmp_path, {"model": tree()["model"] | {"max_picture_pixels": 9215}})
    assert "max_picture_pixels is below the default size's 9216; raise it or lower the defaults" in refused
    assert load(tmp_path, model=tree()["model"] | {"max_picture_pixels": 9216}).model.fits_picture(9216)


def test_distilled_weights_have_their_own_schedule(tmp_path: Path) -> None:
    schedule = {"threshold_noise": 0.1, "linear_part": 0.75, "guidance_scale": 1.5}
    model = load(tmp_path, model=tree()["model"] | schedule).model
    assert model.rules_of("exact") == StepRules(threshold_noise=0.1, linear_part=0.75)
    assert model.rules_of("fast").threshold_noise == 0.1 and model.guidance_of("fast") == 1.5


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.data_dir == Path("data")
    assert settings.database_url == f"sqlite:///{Path('data').resolve()}/jobs.db"
    assert settings.storage.endpoint is None
    assert settings.jobs.max_attempts == 5


CARDS_OF_80_GB = [path for path in PROFILES if path.stem in ("kuberay", "mochi-1-one-gpu", "mochi-1-preview")]


@pytest.mark.parametrize("profile", CARDS_OF_80_GB, ids=lambda path: path.stem)
def test_on_a_gpu_small_clips_share_a_pass_and_large_ones_do_not(profile: Path) -> None:
    most = load_settings(str(profile), {}).sampling.max_batch_tokens
    two_samples_guided = 2 * cfg_rows(6.0)
    assert two_samples_guided * ClipShape(848, 480, 25).tokens <= most < cfg_rows(6.0) * ClipShape(848, 480, 85).tokens


@pytest.mark.parametrize("profile", CARDS_OF_80_GB, ids=lambda path: path.stem)
def test_several_samples_share_a_gpu_only_where_there_is_no_other(profile: Path) -> None:
    """Replicas are counted by jobs over slots. 20 GB of weights and 6.15 a sample of full size were measured."""
    sampler = load_settings(str(profile), {}).sampler
    assert (sampler.slots > 1) == (sampler.max_replicas == 1)
    assert 20 + 6.15 * sampler.slots <= 85.5 * (sampler.memory_fraction or 0.9)


def test_a_worker_sees_its_part_only(tmp_path: Path) -> None:
    settings = load(tmp_path)
    worker = settings.worker(Stage.SAMPLING, "registry")
    assert (worker.slots, worker.torch_threads) == (settings.sampler.slots, settings.sampler.torch_threads)
    assert (worker.registry, worker.namespace) == ("registry", "mochi-serve")
    assert "database" not in type(worker).model_fields


def test_a_stage_without_a_dtype_computes_in_the_models(tmp_path: Path) -> None:
    settings = load(tmp_path, encoder=tree()["encoder"] | {"dtype": "bfloat16"})
    assert settings.model.dtype == "float32"
    assert settings.dtypes == {"text_encoder": "bfloat16", "transformer": "float32", "vae": "float32"}


def test_a_worker_sees_what_it_and_those_before_it_compute_in(tmp_path: Path) -> None:
    """So another dtype of the decoder starts no sampler anew."""
    sections = {name: tree()[name] for name in ("encoder", "sampler", "decoder")}
    plain, changed = load(tmp_path), load(tmp_path, decoder=sections["decoder"] | {"dtype": "bfloat16"})
    for stage in (Stage.ENCODING, Stage.SAMPLING):
        assert plain.worker(stage, "registry") == changed.worker(stage, "registry")
    worker = changed.worker(Stage.DECODING, "registry")
    assert worker.model.dtype == worker.dtypes["vae"] == "bfloat16"
    encoder = load(tmp_path, encoder=sections["encoder"] | {"dtype": "bfloat16"}).worker(Stage.SAMPLING, "registry")
    assert encoder.dtypes == {"text_encoder": "bfloat16", "transformer": "float32"}


@pytest.mark.parametrize(
    "profile", [p for p in PROFILES if p.stem.startswith(("mochi-1", "kuberay"))], ids=lambda p: p.stem
)
def test_mochi_1_is_made_as_its_authors_make_it(profile: Path) -> None:
    model = load_settings(str(profile), {}).model
    assert (model.zero_empty_prompt, model.frame_drop, model.guidance_scale) == (True, "each_upsample", 6.0)
    assert model.num_inference_steps.default == 64


def test_fp8_is_for_samplers_in_bfloat16_on_a_gpu(tmp_path: Path) -> None:
    sections = {"model": tree()["model"] | {"weights": "fp8"}, "sampler": tree()["sampler"]}
    assert "needs a GPU, and sampler.num_gpus is 0; set int8" in refusal(tmp_path, sections)
    sections["sampler"] |= {"num_gpus": 1}
    assert "set sampler.dtype to bfloat16" in refusal(tmp_path, sections)
    sections["sampler"] |= {"dtype": "bfloat16"}
    assert load(tmp_path, **sections).worker(Stage.SAMPLING, "registry").model.weights == "fp8"
    assert load(tmp_path, model=tree()["model"] | {"weights": "int8"}).model.weights == "int8"


def test_a_worker_is_told_its_share_of_the_gpu(tmp_path: Path) -> None:
    sampler = {"num_gpus": 0.5, "memory_fraction": 0.4, "cpu_fallback": True}
    settings = load(tmp_path, sampler=sampler)
    worker = settings.worker(Stage.SAMPLING, "registry")
    assert (worker.memory_fraction, worker.cpu_fallback) == (0.4, True)
    refused = refusal(tmp_path, {"sampler": sampler | {"num_gpus": 0}})
    assert "memory_fraction is of a GPU's memory, and num_gpus is 0" in refused


def test_the_environment_names_the_profile(tmp_path: Path) -> None:
    other = write(tmp_path, tree() | {"namespace": "other"})
    assert load_settings("configs/none.yaml", {"MOCHI_SERVE_CONFIG": other}).namespace == "other"


def test_the_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).namespace = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"storge": {}}, ["storge: unknown key; allowed are", "storage", "decoder"]),
        ({"storage": {"end_point": "a:1"}}, ["storage.end_point: unknown key; allowed are endpoint, "]),
        ({"jobs": {"max_attempts": "many"}}, ["jobs.max_attempts: ", "valid integer", "'many'"]),
        ({"jobs": {"max_attempts": 0}}, ["jobs.max_attempts: ", "greater than or equal to 1", "(got 0)"]),
        ({"jobs": {"lease_s": 1}}, ["jobs.lease_s: ", "greater than 1", "(got 1)"]),
        ({"ingress": {"max_body_bytes": 10}}, ["ingress.max_body_bytes: ", "1000", "(got 10)"]),
        ({"ingress": {"min_replicas": 3}}, ["ingress: max_replicas must be at least min_replicas"]),
        ({"sampler": {"num_gpus": 0, "min_replicas": 2}}, ["sampler: max_replicas must be at least"]),
        ({"sampler": {}}, ["sampler.num_gpus: is missing"]),
        ({"sampler": 4}, ["sampler: ", "(got 4)"]),
        ({"storage": {"local_port": 80}}, ["storage.local_port: ", "1024", "(got 80)"]),
        ({"storage": {"endpoint": "http://a:1"}}, ["storage: endpoint is host:port without a scheme"]),
        ({"storage": {"endpoint": "a:1"}}, ["storage: endpoint needs access_key and secret_key"]),
        ({"database": {"url": "mysql://h/d"}}, ["database: url has the driver 'mysql'; allowed are sqlite"]),
        ({"database": {"url": "postgres"}}, ["database: url is not a database URL; write postgresql+psycopg"]),
        ({"safety": {"classifier": {"src": "x"}}}, ["safety.classifier.src: unknown key; allowed are source, "]),
        ({"namespace": ""}, ["namespace: ", "at least 1 character"]),
        ({"model": tree()["model"] | {"dtype": "int8"}}, ["model.dtype: ", "float32", "bfloat16", "'int8'"]),
        (
            {"model": tree()["model"] | {"width": {"default": 60, "minimum": 32, "maximum": 64}}},
            ["model: width: default, minimum and maximum are multiples of 16"],
        ),
        (
            {"model": tree()["model"] | {"fps": {"default": 70, "minimum": 1, "maximum": 60}}},
            ["model.fps: must hold minimum <= default <= maximum"],
        ),
        (
            {"model": tree()["model"] | {"num_frames": {"default": 25, "minimum": 7, "maximum": 60}}},
            ["model: num_frames: default, minimum and maximum are 6k + 1"],
        ),
        (
            {"model": tree()["model"] | {"qualities": {"best": {}}}},
            ["model.qualities.best", "'fast' or 'draft'"],
        ),
        (
            {"model": tree()["model"] | {"qualities": {"fast": {"steps": 4}}}},
            ["model.qualities.fast.steps: unknown key; allowed are num_inference_steps, "],
        ),
        (
            {"model": tree()["model"] | {"qualities": {"fast": {"guidance_from": 0.5, "guidance_until": 0.1}}}},
            ["model.qualities.fast: guidance_from must be at most guidance_until"],
        ),
        (
            {"model": tree()["model"] | {"qualities": {"draft": {"num_inference_steps": 201}}}},
            ["model: qualities.draft: num_inference_steps must be from 2 to 200"],
        ),
        (
            {"model": tree()["model"] | {"qualities": {}, "quality": "fast"}},
            ["model: quality is fast; offered are exact"],
        ),
        (
            {"model": tree()["model"] | {"qualities": {"fast": {"threshold_noise": 0.6, "linear_part": 0.1}}}},
            ["model: qualities.fast: with 3 steps the schedule goes beyond sigma 1", "lower threshold_noise"],
        ),
        (
            {
                "model": tree()["model"] | {"qualities": {"fast": {}}},
                "scheduling": {"draft_when_wait_over_s": 60},
            },
            ["scheduling.draft_when_wait_over_s is set, and the model offers no draft; add draft to model.qualities"],
        ),
        ({"scheduling": {"draft_when_wait_over_s": 0}}, ["scheduling.draft_when_wait_over_s: ", "greater than 0"]),
        ({"model": tree()["model"] | {"linear_part": 1}}, ["model.linear_part: ", "less than 1"]),
        ({"model": tree()["model"] | {"loras": {"ink": {}}}}, ["model.loras.ink.source: is missing"]),
        (
            {"model": tree()["model"] | {"loras": {"ink": {"source": "/ink", "scale": 2}}}},
            ["model.loras.ink.scale: unknown key; allowed are source, revision, weight_name, description"],
        ),
        ({"model": tree()["model"] | {"loras": {"in k": {"source": "/ink"}}}}, ["model.loras.in k", "pattern"]),
        (
            {"model": tree()["model"] | {"loras": {"ink": {"source": "/ink", "weight_name": "a/b.bin"}}}},
            ["model.loras.ink.weight_name: ", "pattern"],
        ),
    ],
)
def test_an_error_names_the_key_and_what_is_allowed(
    tmp_path: Path, sections: dict[str, object], said: list[str]
) -> None:
    message = refusal(tmp_path, sections)
    assert all(part in message for part in said), message
    assert "profile.yaml" in message
    assert "\n" not in message


def test_all_bad_keys_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"jobs": {"max_attempts": 0, "lease_s": 0}, "namespace": ""})
    assert all(key in message for key in ("jobs.max_attempts", "jobs.lease_s", "namespace"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "must be a mapping of keys"),
        ("", "must be a mapping of keys"),
        ("model: {", "is not YAML: line "),
        ("model: \x07", "is not YAML"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(write(tmp_path, content), {})


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_settings(str(path), {})


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the profile .* MOCHI_SERVE_CONFIG"):
        load_settings(str(tmp_path / name), {})


def write_chain(folder: Path, *trees: Mapping[str, object]) -> str:
    """Profiles 0.yaml, 1.yaml, ..., each of which extends the next one; the path of the first."""
    for number, content in enumerate(trees):
        extends = {"extends": f"{number + 1}.yaml"} if number + 1 < len(trees) else {}
        (folder / f"{number}.yaml").write_text(yaml.safe_dump({**extends, **content}))
    return str(folder / "0.yaml")


def test_a_profile_lies_over_the_one_that_it_extends(tmp_path: Path) -> None:
    above = {"jobs": {"lease_s": 12}, "access": {"cors_origins": ["https://b.example"]}, "proteins": {"source": "x/y"}}
    below = tree() | {
        "jobs": {"lease_s": 20, "max_attempts": 3},
        "access": {"cors_origins": ["https://a.example"], "mode": "keys"},
    }
    settings = load_settings(write_chain(tmp_path, above, below), {})
    assert (settings.jobs.lease_s, settings.jobs.max_attempts) == (12, 3)
    assert (settings.access.mode, settings.access.cors_origins) == ("keys", ("https://b.example",))
    assert settings.proteins is not None and settings.proteins.source == "x/y"
    assert settings.model == load(tmp_path).model


def test_a_profile_extends_one_that_extends_another(tmp_path: Path) -> None:
    path = write_chain(
        tmp_path,
        {"namespace": "first"},
        {"namespace": "second", "jobs": {"lease_s": 12, "max_attempts": 2}},
        tree() | {"namespace": "third", "jobs": {"max_attempts": 3, "max_queued": 4}},
    )
    settings = load_settings(path, {"MOCHI_SERVE__JOBS__MAX_QUEUED": "9"}, {"jobs": {"max_queued": 7, "lease_s": 15}})
    jobs = settings.jobs
    assert (settings.namespace, jobs.lease_s, jobs.max_attempts, jobs.max_queued) == ("first", 15, 2, 9)


def test_the_profile_that_is_extended_lies_beside_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write_chain(tmp_path, {}, tree() | {"namespace": "beside"})
    (elsewhere / "1.yaml").write_text(yaml.safe_dump(tree() | {"namespace": "elsewhere"}))
    monkeypatch.chdir(elsewhere)
    assert load_settings(path, {}).namespace == "beside"


def test_no_profile_extends_itself(tmp_path: Path) -> None:
    last = tmp_path / "1.yaml"
    path = write_chain(tmp_path, {}, {})
    for name in ("0.yaml", "1.yaml", "../" + tmp_path.name + "/0.yaml"):
        last.write_text(yaml.safe_dump(tree() | {"extends": name}))
        with pytest.raises(ConfigError, match="extends must be the name of a profile beside it that does not extend"):
            load_settings(path, {})


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("none.yaml", "cannot read the profile .*none.yaml"),
        (5, r"profile.yaml: extends must be the name of a profile .*\(got 5\)"),
        (["shapes.yaml"], "profile.yaml: extends must be the name of a profile"),
    ],
)
def test_a_profile_that_extends_none_is_named(tmp_path: Path, extends: object, said: str) -> None:
    assert re.search(said, refusal(tmp_path, {"extends": extends}))


def test_what_is_wrong_in_the_profile_that_is_extended_is_named(tmp_path: Path) -> None:
    path = write_chain(tmp_path, {"namespace": "above"}, tree() | {"jobs": {"lease": 3}})
    with pytest.raises(ConfigError, match=re.escape("0.yaml: jobs.lease: unknown key; allowed are lease_s")):
        load_settings(path, {})


def test_overrides_of_every_type(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        {
            "MOCHI_SERVE__DATA_DIR": "/var/lib/mochi",
            "MOCHI_SERVE__STORAGE__SECURE": "false",
            "MOCHI_SERVE__STORAGE__LOCAL_PORT": "9000",
            "MOCHI_SERVE__JOBS__LEASE_S": "12.5",
            "MOCHI_SERVE__MODEL__REVISION": "1234567",
            "MOCHI_SERVE__MODEL__WIDTH": "{default: 32, minimum: 32, maximum: 64}",
            "MOCHI_SERVE__MODEL__WIDTH__DEFAULT": "48",
            "MOCHI_SERVE__ENCODER__TORCH_THREADS": "",
        },
    )
    assert settings.data_dir == Path("/var/lib/mochi")
    assert settings.storage.secure is False
    assert settings.storage.local_port == 9000
    assert settings.jobs.lease_s == 12.5
    assert settings.model.revision == "1234567"
    assert (settings.model.width.default, settings.model.width.maximum) == (48, 64)
    assert settings.encoder.torch_threads is None


@pytest.mark.parametrize(
    "value",
    [
        "https://a.example,https://b.example",
        " https://a.example , https://b.example, ",
        '["https://a.example", "https://b.example"]',
        "[https://a.example, https://b.example]",
    ],
)
def test_a_list_comes_in_with_commas_or_as_json(tmp_path: Path, value: str) -> None:
    settings = load(tmp_path, {"MOCHI_SERVE__ACCESS__CORS_ORIGINS": value, "MOCHI_SERVE__MODEL__ALIASES": value})
    assert settings.access.cors_origins == ("https://a.example", "https://b.example")
    assert settings.model.aliases == list(settings.access.cors_origins)


def test_every_list_mapping_and_optional_section_comes_in(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        {
            "MOCHI_SERVE__ACCESS__CORS_ORIGINS": "https://a.example",
            "MOCHI_SERVE__SCHEDULING__WEIGHTS": "{team-a: 2, team-b: 0.5}",
            "MOCHI_SERVE__SAFETY__CLASSIFIER": "{source: org/model, refuse: [x]}",
            "MOCHI_SERVE__SAFETY__CLASSIFIER__REFUSE": "toxic,obscene",
        },
    )
    assert settings.access.cors_origins == ("https://a.example",)
    assert settings.scheduling.weights == {"team-a": 2, "team-b": 0.5}
    assert settings.safety.classifier is not None
    assert settings.safety.classifier.refuse == ("toxic", "obscene")


@pytest.mark.parametrize("secret", ["12345", "0123", "yes", "[a]", "{a", "#a", "@a", "*a", "a: b", "'", " a "])
def test_a_secret_comes_in_as_it_is(tmp_path: Path, secret: str) -> None:
    settings = load(
        tmp_path,
        {
            "MOCHI_SERVE__STORAGE__ENDPOINT": "s3.example.com",
            "MOCHI_SERVE__STORAGE__ACCESS_KEY": secret,
            "MOCHI_SERVE__STORAGE__SECRET_KEY": secret,
        },
    )
    for key in (settings.storage.access_key, settings.storage.secret_key):
        assert key is not None and key.get_secret_value() == secret


def test_an_override_fills_a_section_that_is_empty_in_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, {"MOCHI_SERVE__JOBS__MAX_ATTEMPTS": "2"}, jobs=None).jobs.max_attempts == 2


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    environ = {"MOCHI_SERVE_SERVICE_HOST": "10.0.0.1", "MOCHI": "x"}
    assert load(tmp_path, environ) == load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MOCHI_SERVE__STORAGE__PORT", "1", "storage.port: unknown key; allowed are endpoint"),
        ("MOCHI_SERVE__STORGE__PORT", "1", "storge: unknown key; allowed are"),
        ("MOCHI_SERVE__", "1", "unknown key; allowed are"),
        ("MOCHI_SERVE__JOBS__MAX_ATTEMPTS", "many", "jobs.max_attempts: "),
        ("MOCHI_SERVE__JOBS__MAX_ATTEMPTS", "0", "greater than or equal to 1"),
        ("MOCHI_SERVE__JOBS__MAX_ATTEMPTS", "", "jobs.max_attempts: "),
        ("MOCHI_SERVE__NAMESPACE__X", "1", "'namespace' is not a section"),
        ("MOCHI_SERVE__JOBS", "{", "is not YAML"),
        ("MOCHI_SERVE__JOBS", "5", "jobs: "),
        ("MOCHI_SERVE__ACCESS__CORS_ORIGINS", "[a", "is not YAML"),
        ("MOCHI_SERVE__SCHEDULING__WEIGHTS", "team-a", "scheduling.weights: "),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, name: str, value: str, said: str) -> None:
    message = refusal(tmp_path, {"namespace": "here"}, {name: value})
    assert said in message
    assert name in message


@pytest.mark.parametrize(
    "sections",
    [
        {"database": {"url": SECRET}},
        {"database": f"postgresql+psycopg://u:{SECRET}@h/d"},
        {"database": {"url": f"mysql://u:{SECRET}@h/d"}},
        {"database": {"url": f"postgresql+psycopg://u:p@x:{SECRET}@h/d"}},
        {"database": {"url": [SECRET]}},
        {"storage": SECRET},
        {"storage": {"secret_key": {"value": SECRET}}},
        {"storage": {"secret_key": 8_715_423, "endpoint": "a:1"}},
        {"storage": {"endpoint": "a:1", "secret_key": SECRET}},
        {"storage": {"endpoint": "http://a:1", "secret_key": SECRET, "access_key": SECRET}},
    ],
    ids=str,
)
def test_no_error_tells_a_secret(tmp_path: Path, sections: dict[str, object]) -> None:
    message = refusal(tmp_path, sections)
    assert SECRET not in message
    assert "8715423" not in message
    assert "database" in message or "storage" in message


@pytest.mark.parametrize("value", [f"*{SECRET}", f"!{SECRET} x", f'"{SECRET}', f"@{SECRET}", f"a: {SECRET}: b"])
def test_no_error_of_the_yaml_tells_a_secret(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, f"storage:\n  secret_key: {value}\n"), {})
    assert SECRET not in str(caught.value)
    assert "line " in str(caught.value)


def test_no_override_tells_a_secret(tmp_path: Path) -> None:
    for name in ("MOCHI_SERVE__STORAGE", "MOCHI_SERVE__DATABASE", "MOCHI_SERVE__DATABASE__URL"):
        for value in (SECRET, f"*{SECRET}", f"{{{SECRET}"):
            assert SECRET not in refusal(tmp_path, {}, {name: value})


def leaves(section: type[Settings]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        yield name
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from leaves(inner)


def test_operations_tells_of_every_setting() -> None:
    told = set(re.findall(r"[`.]([a-z_]+)`", (ROOT / "docs/operations.md").read_text()))
    sections = {"database", "storage", "ingress", "jobs", "scheduling", "retention", "model", "sampling", "access"}
    sections |= {"webhooks", "safety", "registry", "metrics", "tracing", "logging"}
    assert set(leaves(AppSettings)) - told - sections == set()


def test_settings_do_not_print_their_secrets(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://u:{SECRET}@h/d"
    settings = load(tmp_path, database={"url": url})
    assert SECRET not in repr(settings)
    assert settings.database_url == url


@pytest.mark.parametrize("key", [SECRET, "c2hvcnQ="])
def test_a_key_of_webhooks_that_is_none_is_told_without_it(tmp_path: Path, key: str) -> None:
    message = refusal(tmp_path, {"webhooks": {"key": key}})
    assert "webhooks: key is 32 bytes in base64" in message and key not in message


def test_fastmochi_goes_through_the_sigmas_of_its_card() -> None:
    """linear_quadratic(8, 0.1, 6), guidance 1.5."""
    model = load_settings(str(ROOT / "configs" / "fastmochi-one-gpu.yaml"), {}).model
    rules = model.rules_of("exact")
    assert (model.steps_of("exact"), model.guidance_of("exact")) == (8, 1.5)
    assert (rules.threshold_noise, linear_steps(8, rules.linear_part)) == (0.1, 6)


def arguments(tmp_path: Path, **settings: object) -> AppArgs:
    return AppArgs.model_validate({"config": write(tmp_path, tree()), "settings": settings})


def test_settings_of_the_arguments_lie_between_the_profile_and_the_environment(tmp_path: Path) -> None:
    above = {
        "jobs": {"lease_s": 12, "max_attempts": 3},
        "scheduling": {"weights": {"a": 2}},
        "access": {"mode": "keys"},
    }
    below = write(tmp_path, tree() | {"scheduling": {"weights": {"a": 1, "b": 1}}})
    args = AppArgs(config=below, settings=above)
    settings = args.load({"MOCHI_SERVE__JOBS__MAX_ATTEMPTS": "4"})
    assert (settings.jobs.lease_s, settings.jobs.max_attempts) == (12, 4)
    assert settings.scheduling.weights == {"a": 2, "b": 1}
    assert settings.access.mode == "keys"
    assert settings.model == load(tmp_path).model
    assert args.settings["jobs"] == {"lease_s": 12, "max_attempts": 3}  # the environment is laid over a copy


def test_settings_lie_over_the_profile_that_the_environment_names(tmp_path: Path) -> None:
    other = write(tmp_path, tree() | {"namespace": "other"})
    args = AppArgs.model_validate({"config": "configs/none.yaml", "settings": {"jobs": {"lease_s": 12}}})
    settings = args.load({"MOCHI_SERVE_CONFIG": other})
    assert (settings.namespace, settings.jobs.lease_s) == ("other", 12)


def test_the_arguments_may_hold_a_whole_profile(tmp_path: Path) -> None:
    inline = AppArgs.model_validate({"config": None, "settings": tree() | {"namespace": "inline"}})
    assert inline.load({"MOCHI_SERVE_CONFIG": "configs/none.yaml"}) == load(tmp_path, namespace="inline")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"jobs": {"lease": 3}}, "args.settings: jobs.lease: unknown key; allowed are lease_s"),
        ({"retention": {"sweep_every_s": 0}}, "args.settings: retention.sweep_every_s: Input should be greater"),
        ({"samplers": {}}, "args.settings: samplers: unknown key; allowed are data_dir"),
        ({"jobs": 3}, "args.settings: jobs: Input should be"),
        ({"registry": {"resources": {"a b": 1}}}, "args.settings: registry.resources.a b"),
        ({"ingress": {"resources": {"cpu-node": 0}}}, "args.settings: ingress.resources.cpu-node: Input should be"),
    ],
)
def test_a_wrong_setting_of_the_arguments_is_named(tmp_path: Path, settings: Mapping[str, Any], said: str) -> None:
    for args in (arguments(tmp_path, **settings), AppArgs(config=None, settings=tree() | dict(settings))):
        with pytest.raises(ConfigError, match=re.escape(said)):
            args.load({})


def test_no_error_of_the_arguments_tells_a_secret(tmp_path: Path) -> None:
    args = arguments(tmp_path, storage={"endpoint": "a:1", "secret_key": SECRET, "access": SECRET})
    with pytest.raises(ConfigError) as caught:
        args.load({})
    assert SECRET not in str(caught.value)
