"""Whether two requests are the same: two fingerprints of each, 64 hexadecimal digits. Pure.

What was sent stays the same when the server's defaults change, or what it fills in. What is asked for is the same
however it is written: a default may be written out. Requests are the same if either of the two is. Both are kept with
the jobs, so neither may change for a request that is kept.
"""

import hashlib
import json

from deployments.messages import VideoSpec
from serve_app.jobs import Tier
from serve_app.requests.schema import SIZE_PARTS, EnhanceRequest, RemixRequest, VideoRequest

SENT_VERSION = 1


def fingerprint_of_asked(spec: VideoSpec, request: VideoRequest | RemixRequest | EnhanceRequest, **more: object) -> str:
    """Over the request as it was understood: however it was written, with its defaults filled in.

    Args:
        spec: what is made.
        request: what was sent, checked.
        more: in place of fields of the spec, as a seed that was drawn is none of the request, and beside them.
    """
    fields: dict[str, object] = spec.to_json() | {"priority": request.priority or Tier.STANDARD} | more
    if request.webhook_url is not None:
        fields["webhook_url"] = request.webhook_url
    if request.cancel_after is not None:
        # The duration and not the time that it ends at: a repeated request comes later and is the same.
        fields["cancel_after"] = float(request.cancel_after)
    return fingerprint_of(fields)


def fingerprint_of_sent(request: VideoRequest | RemixRequest | EnhanceRequest, **more: object) -> str:
    """Over the fields that were sent, in this API's own words; what was left out is no part of it.

    Args:
        request: what was sent, checked.
        more: what the route tells beside the body.
    """
    fields = request.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if all(side in fields for side in SIZE_PARTS):  # whether these become a size is a setting of the model
        width, height = (fields.pop(side) for side in SIZE_PARTS)
        fields["size"] = f"{width}x{height}"
    return fingerprint_of({"version": SENT_VERSION, "sent": fields} | more)


def fingerprint_of(fields: dict[str, object]) -> str:
    """Of what can be written as JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
