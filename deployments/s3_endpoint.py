"""The address of an S3 API as a setting gives it: a host and perhaps a port. Pure."""

import ipaddress
import re

MAX_PORT = 65535
_PARTS = re.compile(r"(\[[^]]*\]|[^:/]*)(?::([0-9]*))?")
_HOST = re.compile(r"(?:(?![-_])[a-z0-9_-]{1,63}(?<![-_])\.)*(?![-_])[a-z0-9_-]{1,63}(?<![-_])")
_AWS = re.compile(r"(?:.*\.)?amazonaws\.com(?:\.cn)?")
# As `s3.eu-west-1.amazonaws.com`, `s3.dualstack.`, `s3-fips.`, an interface of a VPC; not the old `s3-eu-west-1`.
_AWS_S3 = re.compile(
    r"(?:(?:bucket|accesspoint)\.vpce-[a-z0-9-]+\.)?s3(?:-fips|-accelerate|-external-1)?\."
    r"(?:dualstack\.)?(?:([a-z]{2}(?:-[a-z]+)+-[0-9]+)\.)?(?:vpce\.)?amazonaws\.com(?:\.cn)?"
)


def normalised(endpoint: str) -> str:
    """In lower case and without a slash at the end: signatures cover the host as clients write it."""
    return endpoint.lower().removesuffix("/")


def problem(endpoint: str) -> str | None:
    """What is wrong with a normalised endpoint and what is allowed, to follow the name of its setting; None if nothing.

    It quotes nothing but a port: what stands before a host may be a secret.
    """
    if "://" in endpoint:
        return "is host:port without a scheme"
    if "@" in endpoint:
        return "is host:port; keys go into access_key and secret_key"
    if "/" in endpoint or "?" in endpoint or "#" in endpoint:
        return "is host:port without a path: the API must be at the root of its host"
    parts = _PARTS.fullmatch(endpoint)
    if parts is None or not _is_host(parts[1]):
        return "is host:port, with a name or an address ([...] around one of IPv6) as host"
    if parts[2] is not None and not 1 <= int(parts[2] or 0) <= MAX_PORT:
        return f"has the port {parts[2] or 'missing'!r}; a port is a number from 1 to {MAX_PORT}"
    if _AWS.fullmatch(parts[1]) and not _AWS_S3.fullmatch(parts[1]):
        return "is a host of AWS, but not of S3: s3.REGION.amazonaws.com is, without a bucket before it"
    return None


def aws_region(endpoint: str) -> str | None:
    """The region that a normalised endpoint at AWS names; None for one that names none, or is elsewhere."""
    found = _AWS_S3.fullmatch(endpoint.partition(":")[0])
    return None if found is None else found[1]


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return _HOST.fullmatch(text) is not None
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True
