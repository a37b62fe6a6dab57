"""Addresses of an S3 API: which are taken, how they are written, and that minio takes the same."""

import pytest
from minio import Minio
from pydantic import ValidationError

from deployments.s3_endpoint import aws_region, normalised, problem
from deployments.settings import StorageSettings

KEYS = {"access_key": "a", "secret_key": "b"}
GOOD = [
    "localhost",
    "minio:9000",
    "minio_1:9000",
    "10.0.0.7:9000",
    "[::1]:9000",
    "storage.example.com:65535",
    "s3.amazonaws.com",
    "s3.eu-west-1.amazonaws.com",
    "s3.dualstack.eu-central-1.amazonaws.com",
    "s3-fips.us-gov-west-1.amazonaws.com",
    "s3.cn-north-1.amazonaws.com.cn",
    "bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com",
]


@pytest.mark.parametrize("endpoint", GOOD)
def test_what_is_taken_is_taken_by_minio_too(endpoint: str) -> None:
    assert problem(endpoint) is None
    Minio(endpoint, region=aws_region(endpoint) or "us-east-1")


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ("", "is host:port"),
        (":9000", "is host:port"),
        ("https://a:1", "without a scheme; set public_secure: true for https"),
        ("ftp://a", "without a scheme"),
        ("me:secret@a:1", "keys go into access_key"),
        ("a:1/bucket", "without a path"),
        ("a:1?x=y", "without a path"),
        ("a//", "without a path"),
        ("a:99999", "'99999'; a port is a number from 1 to 65535"),
        ("a:0", "a port is a number"),
        ("a:", "a port is a number"),
        ("a:-1", "is host:port"),
        ("a b:1", "is host:port"),
        ("-a:1", "is host:port"),
        ("::1", "is host:port"),
        ("[::1", "is host:port"),
        ("[fe80::zz]:1", "is host:port"),
        ("videos.s3.eu-west-1.amazonaws.com", "without a bucket before it"),
        ("ec2-1-2-3-4.amazonaws.com", "not of S3"),
    ],
)
@pytest.mark.parametrize("name", ["endpoint", "public_endpoint"])
def test_what_is_wrong_is_told_with_the_name_of_the_setting(name: str, endpoint: str, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StorageSettings.model_validate({**KEYS, name: endpoint})
    message = str(caught.value.errors()[0]["msg"])
    assert f"{name} " in message and told.replace("public_", "" if name == "endpoint" else "public_") in message
    assert "secret@" not in message


def test_capitals_and_a_slash_at_the_end_are_written_as_clients_do() -> None:
    assert normalised("S3.Example.COM:9000/") == "s3.example.com:9000"
    settings = StorageSettings.model_validate(
        {**KEYS, "endpoint": "MinIO:9000/", "public_endpoint": "Videos.Example.com"}
    )
    assert (settings.endpoint, settings.public_endpoint) == ("minio:9000", "videos.example.com")


def test_the_region_is_that_of_the_endpoint() -> None:
    aws = "S3.eu-west-1.amazonaws.com"
    assert StorageSettings.model_validate({**KEYS, "endpoint": aws}).region == "eu-west-1"
    assert StorageSettings.model_validate({**KEYS, "endpoint": aws, "region": "eu-west-1"}).region == "eu-west-1"
    assert StorageSettings.model_validate({**KEYS, "endpoint": "s3.amazonaws.com"}).region == "us-east-1"
    assert StorageSettings.model_validate({**KEYS, "endpoint": "a:1", "region": "garage"}).region == "garage"


@pytest.mark.parametrize("name", ["endpoint", "public_endpoint"])
def test_a_region_that_the_endpoint_is_not_in_is_refused(name: str) -> None:
    given = {**KEYS, "endpoint": "a:1", name: "s3.eu-west-1.amazonaws.com", "region": "eu-north-1"}
    with pytest.raises(ValidationError, match=f"{name} is in the region eu-west-1, and region is 'eu-north-1'"):
        StorageSettings.model_validate(given)
