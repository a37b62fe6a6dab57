"""What a half-made video looks like so far: latents to a small picture, by a linear map fitted once for a model.

The decoder takes seconds on a GPU; three weighted sums of the twelve channels take microseconds and show colours and
motion at an eighth of the resolution. The map belongs to the model: it lies in the model's folder (`preview.json`) or
in object storage, where the first video that is decoded leaves it.
"""

import json
import logging
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from deployments.clip import LATENT_CHANNELS, SPATIAL_COMPRESSION
from deployments.errors import PermanentError, WorkerError

if TYPE_CHECKING:
    from deployments.storage.object_store import Store

FORMAT = "mochi-serve-preview-1"
FILE = "preview.json"
RIDGE = 1e-3
LONG_SIDE = 160  # pixels
QUALITY = 70  # WebP's, 0 to 100
WEBP_METHOD = 2  # 0 is fast, 6 small

# The places of what is summed up for each pixel: the latents, a one, the three colours.
_LATENTS = slice(0, LATENT_CHANNELS)
_ONE = LATENT_CHANNELS
_COLOURS = slice(LATENT_CHANNELS + 1, LATENT_CHANNELS + 4)
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True, eq=False)
class PreviewMap:
    """RGB in 0 to 1 = latents @ weights + bias, for latents as they are sampled (not denormalised)."""

    weights: Tensor  # [12, 3] fp32 on the CPU
    bias: Tensor  # [3] fp32 on the CPU

    def rgb(self, latents: Tensor) -> Tensor:
        """[12, h, w] to [h, w, 3] fp32 on the CPU, not clamped."""
        return latents.float().cpu().permute(1, 2, 0) @ self.weights + self.bias


class PreviewFit:
    """Least squares over any number of latent frames; keeps only their second moments."""

    def __init__(self) -> None:
        self._moments = torch.zeros(LATENT_CHANNELS + 4, LATENT_CHANNELS + 4, dtype=torch.float64)

    def add(self, latents: Tensor, frames: Tensor) -> None:
        """Add one latent frame and the frames it was decoded to: one for the first of a clip, six for each other.

        Args:
            latents: [12, h, w], normalised.
            frames: [t, 8h, 8w, 3] uint8 on the CPU.

        Raises:
            ValueError: the frames are not eight times the size of the latents.
        """
        _, height, width = latents.shape
        wanted = (SPATIAL_COMPRESSION * height, SPATIAL_COMPRESSION * width, 3)
        if len(frames) == 0 or tuple(frames.shape[1:]) != wanted:
            raise ValueError(f"frames are {tuple(frames.shape)}; needed are [t >= 1, {', '.join(map(str, wanted))}]")
        pixels = latents.cpu().double().flatten(1).T
        columns = [pixels, pixels.new_ones(len(pixels), 1), _block_means(frames).flatten(0, 1)]
        joined = torch.cat(columns, dim=1)
        self._moments += joined.T @ joined

    def solve(self) -> PreviewMap:
        """The map so far.

        The ridge is a thousandth of the latents' nominal variance of 1: nothing for a clip with content, while a
        near-constant one gives its mean colour and small weights.

        Raises:
            ValueError: nothing was added.
        """
        mean, covariance = self._statistics()
        ridge = RIDGE * torch.eye(LATENT_CHANNELS, dtype=torch.float64)
        weights = torch.linalg.solve(covariance[_LATENTS, _LATENTS] + ridge, covariance[_LATENTS, _COLOURS])
        return PreviewMap(weights.float(), (mean[_COLOURS] - mean[_LATENTS] @ weights).float())

    def r_squared(self, preview: PreviewMap) -> float:
        """The share of the colours' variance over what was added that `preview` explains; at most 1.

        Raises:
            ValueError: nothing was added, or the colours do not vary.
        """
        mean, covariance = self._statistics()
        spread = float(covariance[_COLOURS, _COLOURS].trace())
        if spread <= 0:
            raise ValueError("the frames are of one colour: there is no variance to explain")
        error = torch.zeros(LATENT_CHANNELS + 4, 3, dtype=torch.float64)
        error[_LATENTS] = preview.weights.double()
        error[_ONE] = preview.bias.double()
        error[_COLOURS] = -torch.eye(3, dtype=torch.float64)
        return 1 - float((error.T @ self._moments @ error).trace()) / float(self._moments[_ONE, _ONE]) / spread

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [16] and covariance [16, 16] of (latents, 1, colours)."""
        count = self._moments[_ONE, _ONE]
        if count == 0:
            raise ValueError("a preview map needs at least one latent frame with its frames")
        mean = self._moments[_ONE] / count
        return mean, self._moments / count - torch.outer(mean, mean)


def _block_means(frames: Tensor) -> Tensor:
    """[t, 8h, 8w, 3] uint8 to [h, w, 3] fp64 in 0 to 1: over time and blocks of 8 x 8 pixels."""
    count, height, width, _ = frames.shape
    block = SPATIAL_COMPRESSION
    sums = frames.sum(0, dtype=torch.int32).view(height // block, block, width // block, block, 3).sum((1, 3))
    return sums.double() / (255 * count * block * block)


def predicted_clean(before: Tensor, after: Tensor, sigma_before: Tensor | float, sigma_after: Tensor | float) -> Tensor:
    """Where the sample is heading: latents + (1 - sigma) * velocity, with the velocity of its last step.

    Early latents are nearly all noise; this shows the video from the first steps on, without another forward pass.
    Guidance is in it. Nothing here waits for the device.

    Args:
        before: a part of the latents before an Euler step, fp32, any shape.
        after: the same part after it.
        sigma_before: of the step.
        sigma_after: of the step; larger than `sigma_before`.
    """
    return after + (1 - sigma_after) * (after - before) / (sigma_after - sigma_before)


def preview_image(preview: PreviewMap, latents: Tensor) -> bytes:
    """A WebP of the middle latent frame, the longer side 160 pixels: a few kB, a few milliseconds.

    Shows the latents it is given; give it `predicted_clean` where the step before is known.

    Args:
        latents: [12, T, h, w], normalised; the middle frame alone, [12, 1, h, w], does.
    """
    rgb = preview.rgb(latents[:, latents.shape[1] // 2])
    picture = Image.fromarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    scale = LONG_SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    file = BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(file, "WEBP", quality=QUALITY, method=WEBP_METHOD)
    return file.getvalue()


def preview_key(revision: str) -> str:
    """The object with the map of the transformer of this revision (`models.store.model_fingerprint`)."""
    return f"models/{revision}/{FILE}"


def to_json(preview: PreviewMap) -> str:
    """As text; `from_json` gives back the same values."""
    data = {"format": FORMAT, "weights": preview.weights.tolist(), "bias": preview.bias.tolist()}
    return json.dumps(data, indent=1) + "\n"


def from_json(text: str | bytes) -> PreviewMap:
    """Read a map.

    Raises:
        PermanentError: `preview_malformed`; says what is wrong.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise _malformed(f"is no JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _malformed(f'must be a JSON object with "format": "{FORMAT}"')
    return PreviewMap(_matrix(data, "weights", (LATENT_CHANNELS, 3)), _matrix(data, "bias", (3,)))


def _matrix(data: dict[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    try:
        values = torch.tensor(data[name], dtype=torch.float32)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _malformed(f"needs {name!r}, numbers of shape {list(shape)}") from error
    if tuple(values.shape) != shape or not bool(values.isfinite().all()):
        raise _malformed(f"{name!r} must be finite numbers of shape {list(shape)}, not {list(values.shape)}")
    return values


def _malformed(why: str) -> PermanentError:
    return PermanentError("preview_malformed", f"the preview map {why}; delete it and the decoder makes a new one")


def load_preview(folder: Path) -> PreviewMap | None:
    """The map in a model's folder; None when there is none.

    Raises:
        PermanentError: `preview_malformed`, also when the file cannot be read.
    """
    path = folder / FILE
    try:
        return from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _malformed(f"cannot be read ({error})") from error


async def find_preview(folder: Path, store: "Store", revision: str) -> PreviewMap | None:
    """The model's map, from its folder or else from object storage; None when there is none yet.

    Never raises for a map: what is damaged or out of reach is logged and counts as none.
    """
    try:
        found = load_preview(folder)
    except PermanentError as error:
        _logger.warning("%s: %s", folder / FILE, error.message)
        found = None
    return found or await _stored_preview(store, preview_key(revision))


async def _stored_preview(store: "Store", key: str) -> PreviewMap | None:
    try:
        return from_json(await store.get(key))
    except WorkerError as error:
        if error.code != "object_missing":
            _logger.warning("%s: %s", key, error.message)
        return None


async def keep_preview(folder: Path, store: "Store", revision: str, fit: PreviewFit) -> bool:
    """Put the fitted map into object storage unless the model has one; whether it has one now. Never raises."""
    if await find_preview(folder, store, revision) is not None:
        return True
    try:
        await store.put(preview_key(revision), to_json(fit.solve()).encode(), "application/json")
    except WorkerError as error:
        _logger.warning("the preview map could not be kept, the next video tries again: %s", error.message)
        return False
    _logger.info("fitted the preview map of model %s", revision)
    return True
