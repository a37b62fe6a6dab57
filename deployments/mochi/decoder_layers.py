"""The layers of Mochi's decoder for a video that comes in pieces: our forward on the weights of diffusers' modules.

What a layer makes is written once, straight into the memory that the next convolution reads: behind the frames that
its kernel still needs from the piece before, inside the border that replicates the edges. So a convolution is one
call without padding.

All activations are [1, C, t, h, w], in memory as the memory format says: t, h, w, C (channels last) or C, t, h, w.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.mochi.block import fast_linear

NormSilu = Callable[[Tensor, Tensor, Tensor, int, float, Tensor], object]
"""What `norm_silu` is; that of `norm_kernels` is another one."""


class Layer(Protocol):
    """A layer that goes on where its last call ended, and is asked for the last frames of a piece alone."""

    expansion: int
    """How many frames it makes of one."""

    def frames_read(self, wanted: int) -> int:
        """How many of the last frames of its inputs the last `wanted` of its outputs depend on, within a piece."""

    def forget(self) -> None:
        """Start a new video."""

    def __call__(self, inputs: Tensor, wanted: int) -> Tensor:
        """The last `wanted` frames of what it makes.

        Args:
            inputs: the last frames of the piece: `frames_read(wanted)` or more, or all that there are. Less than all
                is right in the first piece of a video alone: what comes after needs all of the others.
        """


class CausalConvolution:
    """A convolution that is causal in time, with the memory of its inputs.

    Before the first piece its past is the first frame repeated, as in the original.

    Raises:
        ValueError: the original pads with something else than its edges.
    """

    def __init__(self, original: Any, memory_format: torch.memory_format) -> None:
        if original.pad_mode != "replicate":
            raise ValueError(f"pad_mode is {original.pad_mode!r}; only 'replicate', Mochi's own, can be streamed")
        self.past_frames: int = original.time_pad  # that the kernel sees before a frame
        self._border: tuple[int, int] = original.height_pad, original.width_pad
        self._convolve = _convolution(original.conv, memory_format)
        self._memory_format = memory_format
        self._memory: Tensor | None = None  # of past frames, a piece and the border
        self._written = 0  # frames of the piece in it
        self._has_past = False

    def forget(self) -> None:
        """Start a new video."""
        self._memory = None
        self._has_past = False

    def room(self, like: Tensor) -> Tensor:
        """Where the next piece goes, of the size of `like`; all of it must be written."""
        (top, left), (frames, height, width) = self._border, like.shape[-3:]
        if self._memory is None or self._memory.shape[2] < self.past_frames + frames:
            before = self._memory
            shape = 1, like.shape[1], self.past_frames + frames, height + 2 * top, width + 2 * left
            self._memory = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=self._memory_format)
            if before is not None:
                self._memory[:, :, : self.past_frames] = before[:, :, : self.past_frames]
        self._written = frames
        piece = self._memory[:, :, self.past_frames : self.past_frames + frames]
        return piece[..., top : top + height, left : left + width]

    def convolve(self, wanted: int, onto: Tensor | None = None) -> Tensor:
        """The last `wanted` frames made of what was written, which then is the past of the next piece.

        Args:
            wanted: frames.
            onto: they are added to these, in place.
        """
        assert self._memory is not None
        memory = self._memory[:, :, : self.past_frames + self._written]
        piece = memory[:, :, self.past_frames :]
        for dim, width in zip((3, 4), self._border, strict=True):  # first the rows, then the columns with the corners
            _replicate_edges(piece, dim, width)
        if not self._has_past:
            memory[:, :, : self.past_frames] = piece[:, :, :1]
        made = self._convolve(memory[:, :, self._written - wanted :], onto)
        self._keep_past(memory)
        return made

    def _keep_past(self, memory: Tensor) -> None:
        # Frame by frame where source and target would overlap.
        step = max(1, self.past_frames if self._written >= self.past_frames else 1)
        for start in range(0, self.past_frames, step):
            source = self._written + start
            memory[:, :, start : start + step] = memory[:, :, source : source + step]
        self._has_past = True


_Convolution = Callable[[Tensor, Tensor | None], Tensor]
"""Of the inputs, added in place to the second tensor if there is one."""


def _convolution(layer: nn.Conv3d, memory_format: torch.memory_format) -> _Convolution:
    """The layer without padding; a frozen fp32 one on the CPU by oneDNN, on weights that are in its own order already.

    torch puts them in order at each call: a third of the time that a small picture takes.
    """
    weight = layer.weight
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.requires_grad
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if is_plain and has_onednn and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return _packed_convolution(layer)
    layer.to(memory_format=memory_format)  # type: ignore[call-overload]

    def convolve(inputs: Tensor, onto: Tensor | None) -> Tensor:
        made = F.conv3d(inputs, layer.weight, layer.bias)
        return made if onto is None else onto.add_(made)

    return convolve


def _packed_convolution(layer: nn.Conv3d) -> _Convolution:
    options = [0, 0, 0], [1, 1, 1], [1, 1, 1], 1  # padding, stride, dilation, groups
    weight = torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *options, None)

    def convolve(inputs: Tensor, onto: Tensor | None) -> Tensor:
        made: Tensor
        if onto is None:
            made = torch.ops.mkldnn._convolution_pointwise(inputs, weight, layer.bias, *options, "none", [], "")
        else:
            made = torch.ops.mkldnn._convolution_pointwise_.binary(
                onto, inputs, weight, layer.bias, *options, "add", 1.0, None, [], None
            )
        return made

    return convolve


def _replicate_edges(frames: Tensor, dim: int, width: int) -> None:
    """Fill the outermost `width` entries at both ends of `dim` with those beside them."""
    size = frames.shape[dim]
    for border, edge in ((0, width), (size - width, size - width - 1)):
        frames.narrow(dim, border, width).copy_(frames.narrow(dim, edge, 1))


def norm_silu(inputs: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, out: Tensor) -> None:
    """SiLU of the group norm of each frame, written into `out`.

    Args:
        inputs: [t, C, h, w].
        weight: [C], as `bias`.
        groups: so many groups of channels are normalised.
        eps: added to the variance.
        out: as `inputs`, of any strides.
    """
    values = inputs.float()
    # Centred before it is squared: torch's own kernel for this layout is not, and loses two bits on the CPU.
    centred = values - _of_groups(values.mean((2, 3)), groups)[..., None, None]
    variance = _of_groups(centred.square().mean((2, 3)), groups)
    scale = (variance + eps).rsqrt() * weight
    scaled = torch.addcmul(bias.view(1, -1, 1, 1).float(), centred, scale[..., None, None])
    if out.dtype != scaled.dtype:
        out.copy_(F.silu(scaled))
    else:
        torch.ops.aten.silu.out(scaled, out=out)


def _of_groups(values: Tensor, groups: int) -> Tensor:
    """[t, C] to the means of groups of neighbours, each at all the places of its group."""
    frames, channels = values.shape
    means = values.view(frames, groups, -1).mean(2, keepdim=True)
    return means.expand(-1, -1, channels // groups).reshape(frames, channels)


def _last_frames(values: Tensor, count: int) -> Tensor:
    return values[:, :, values.shape[2] - count :]


class ResidualBlock:
    """Norm, SiLU and convolution, twice, added to the inputs.

    Args:
        original: diffusers' `MochiResnetBlock3D`.
        memory_format: of activations and weights.
        norm_silu: writes the inputs of the convolutions.
    """

    expansion = 1

    def __init__(self, original: Any, memory_format: torch.memory_format, norm_silu: NormSilu) -> None:
        self._norms = original.norm1.norm_layer, original.norm2.norm_layer
        self._convolutions = (
            CausalConvolution(original.conv1, memory_format),
            CausalConvolution(original.conv2, memory_format),
        )
        self._norm_silu = norm_silu

    def frames_read(self, wanted: int) -> int:
        return wanted + sum(convolution.past_frames for convolution in self._convolutions)

    def forget(self) -> None:
        for convolution in self._convolutions:
            convolution.forget()

    def __call__(self, inputs: Tensor, wanted: int) -> Tensor:
        """As `Layer` says; it is made in the place of the inputs."""
        first, second = self._convolutions
        between = min(inputs.shape[2], wanted + second.past_frames)
        self._write(first, self._norms[0], inputs, between)
        self._write(second, self._norms[1], first.convolve(between), wanted)
        return second.convolve(wanted, onto=_last_frames(inputs, wanted))

    def _write(self, convolution: CausalConvolution, norm: Any, inputs: Tensor, wanted: int) -> None:
        """Give a convolution what it reads for its last `wanted` frames."""
        read = _last_frames(inputs, min(inputs.shape[2], wanted + convolution.past_frames))
        frames, room = (values[0].transpose(0, 1) for values in (read, convolution.room(read)))
        self._norm_silu(frames, norm.weight, norm.bias, norm.num_groups, norm.eps, room)


class Upsampler:
    """A linear layer whose channels are then laid out as more frames, rows and columns.

    Args:
        original: diffusers' `MochiUpBlock3D`, of which this is what follows its residual blocks.
        memory_format: of activations.
    """

    def __init__(self, original: Any, memory_format: torch.memory_format) -> None:
        side = int(original.spatial_expansion)
        self.expansion = int(original.temporal_expansion)
        self._expansions = self.expansion, side, side
        self._memory_format = memory_format
        # Channels innermost, so that they stay together when the others become places.
        self._layer = nn.Linear(original.proj.in_features, original.proj.out_features, device="meta")
        for name in ("weight", "bias"):
            value = getattr(original.proj, name).detach()
            ordered = value.unflatten(0, (-1, *self._expansions)).movedim(0, 3).flatten(0, 3).contiguous()
            setattr(self._layer, name, nn.Parameter(ordered, requires_grad=False))

    def frames_read(self, wanted: int) -> int:
        return -(-wanted // self.expansion)

    def forget(self) -> None:
        """Nothing: a frame depends on one frame."""

    def __call__(self, inputs: Tensor, wanted: int) -> Tensor:
        return self.spread(self.project(inputs, wanted), wanted)

    def project(self, inputs: Tensor, wanted: int) -> Tensor:
        """[1, t, h, w, st, sh, sw, C']: what the last `wanted` frames are made of, not yet in their places."""
        read = _last_frames(inputs, self.frames_read(wanted))
        values = fast_linear(self._layer, read.movedim(1, -1))
        return values.view(*values.shape[:-1], *self._expansions, -1)

    def spread(self, projected: Tensor, wanted: int) -> Tensor:
        """From what `project` makes, with any number of channels, to the last `wanted` frames [1, C', t, h, w]."""
        _, frames, height, width, more_frames, more_rows, more_columns, channels = projected.shape
        shape = 1, channels, frames * more_frames, height * more_rows, width * more_columns
        out = torch.empty(shape, dtype=projected.dtype, device=projected.device, memory_format=self._memory_format)
        places = out.view(1, channels, frames, more_frames, height, more_rows, width, more_columns)
        places.copy_(projected.permute(0, 7, 1, 4, 2, 5, 3, 6))
        return _last_frames(out, wanted)


class Output:
    """The last activation and linear layer, for every pixel; with the upsampling before them, if there is one.

    They are done before its channels become places, which then are those of three colours.

    Args:
        activation: of the decoder.
        projection: to the colours.
        upsampler: what comes right before.
    """

    def __init__(self, activation: nn.Module, projection: nn.Linear, upsampler: Upsampler | None) -> None:
        self._activation = activation
        self._projection = projection
        self._upsampler = upsampler
        self.expansion = 1 if upsampler is None else upsampler.expansion

    def frames_read(self, wanted: int) -> int:
        return wanted if self._upsampler is None else self._upsampler.frames_read(wanted)

    def forget(self) -> None:
        """Nothing: a frame depends on one frame."""

    def __call__(self, inputs: Tensor, wanted: int) -> Tensor:
        if self._upsampler is None:
            pixels = _last_frames(inputs, wanted).movedim(1, -1)
            return self._colours(pixels).movedim(-1, 1)
        return self._upsampler.spread(self._colours(self._upsampler.project(inputs, wanted)), wanted)

    def _colours(self, pixels: Tensor) -> Tensor:
        return fast_linear(self._projection, self._activation(pixels))


def decoder_layers(decoder: Any, memory_format: torch.memory_format, norm_silu: NormSilu) -> list[Layer]:
    """The layers of diffusers' `MochiDecoder3D` behind its first convolution, in their order.

    Raises:
        ValueError: see `CausalConvolution`.
    """
    layers: list[Layer] = []
    for block in (decoder.block_in, *decoder.up_blocks, decoder.block_out):
        layers += [ResidualBlock(original, memory_format, norm_silu) for original in block.resnets]
        if hasattr(block, "proj"):
            layers.append(Upsampler(block, memory_format))
    if layers and isinstance(last := layers[-1], Upsampler):
        return [*layers[:-1], Output(decoder.nonlinearity, decoder.proj_out, last)]
    return [*layers, Output(decoder.nonlinearity, decoder.proj_out, None)]


def wanted_frames(layers: Sequence[Layer], dropped: Sequence[int]) -> list[int]:
    """How many of the last frames each layer must make of one latent frame, so that the last one makes all its own.

    Args:
        layers: in their order.
        dropped: of each layer, frames at the beginning of what it makes that the next one must not see.
    """
    made = 1
    available = [made := layer.expansion * made - drop for layer, drop in zip(layers, dropped, strict=True)]
    wanted = available[-1:]
    for layer, most in zip(layers[:0:-1], available[-2::-1], strict=True):
        wanted.append(min(most, layer.frames_read(wanted[-1])))
    return wanted[::-1]
