"""How different two slices look, pixel by pixel: LPIPS where its weights are at hand, local SSIM otherwise.

LPIPS (Zhang et al., CVPR 2018) compares features of SqueezeNet 1.1 (Iandola et al., 2016), trained on ImageNet. Its
weights are not part of this project and nothing is downloaded: they are one safetensors file with the entries of
`Lpips`, under the names that torchvision's `squeezenet1_1` and the authors' `lpips` package give them. With both at
hand, this writes it:

    trunk = torchvision.models.squeezenet1_1(weights="IMAGENET1K_V1").state_dict()
    heads = lpips.LPIPS(net="squeeze").state_dict()
    entries = {k: v for k, v in trunk.items() if k.startswith("features.")}
    entries |= {k: v for k, v in heads.items() if k.startswith("lin") and not k.startswith("lins")}
    safetensors.torch.save_file(entries, "lpips_squeeze.safetensors")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Settings, hyper
from harness.cost import counted
from harness.problems import Problem, UserError
from harness.training import seeded

SQUEEZE_CODE = "lpips package, squeeze"
STEM = 64
FIRES = (  # (squeeze, expand) of each fire module; None: halve
    None, (16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256),
)  # fmt: skip
TAPS = (1, 4, 7, 9, 10, 11, 12)  # entries of the trunk whose outputs are compared, on their way into the next
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in −1..1, as the lpips package has them
WINDOW, WINDOW_WIDTH = 11, 1.5  # side and deviation of SSIM's window (Wang et al., 2004)
C1, C2 = 0.01**2, 0.03**2

Compare = Callable[[Tensor], Tensor]
"""Slices [B, 1, H, W] in 0..1 to their distance from slices fixed before, [B, 1, H, W], 0 where equal."""


class Perceptual(Settings):
    """The term that weighs differences by how different the surroundings look."""

    weights: str | None = hyper(
        None,
        "safetensors file with LPIPS and its SqueezeNet; null: local SSIM, (1 − SSIM) / 2, in the place of LPIPS",
        origin="ours; published: LPIPS, whose weights are not ours to pass on",
    )
    input: Literal["correct", "published"] = hyper(
        "correct",
        "intensities 0..1 are mapped to −1..1 before LPIPS; published: twice over, which makes them −3..1",
        origin="ours",
    )

    def deviations(self) -> tuple[str, ...]:
        if self.weights is None:
            return ("local SSIM in place of LPIPS (no weights file)",)
        return ("LPIPS fed −3..1, as in the public code",) if self.input == "published" else ()


class Distance:
    """The perceptual term at work: `against(x)` gives a function that measures other slices' distances from x."""

    def __init__(self, settings: Perceptual, device: str):
        self.published = settings.input == "published"
        self.network: Lpips | None = None
        if settings.weights is not None:
            self.network = load_lpips(settings.weights).to(device)
            counted(self.network.features, "perceptual")

    def against(self, reference: Tensor) -> Compare:
        if self.network is None:
            return lambda x: local_ssim(x, reference)
        network, features = self.network, self.network.taps(self._input(reference))
        return lambda x: network.distance(network.taps(self._input(x)), features, x.shape[-2:])

    def _input(self, x: Tensor) -> Tensor:
        signed = 2 * x - 1
        if self.published:
            signed = 2 * signed - 1
        return signed.expand(-1, 3, -1, -1)


class Trunk(nn.Sequential):
    """SqueezeNet 1.1 without its classifier; gives the features of all taps."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, STEM, 3, stride=2), nn.ReLU()]
        width = STEM
        for fire in FIRES:
            if fire is None:
                layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
                continue
            layers.append(Fire(width, *fire))
            width = 2 * fire[1]
        super().__init__(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for index, layer in enumerate(self):
            x = layer(x)
            if index in TAPS:
                found.append(x)
        return found


class Fire(nn.Module):
    """A 1 × 1 convolution that squeezes, then 1 × 1 and 3 × 3 convolutions side by side."""

    def __init__(self, width: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class Lpips(nn.Module):
    """Squared differences of features of unit length, weighed by channel, enlarged to the slice, summed over taps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Trunk()
        widths = [STEM, *(2 * fire[1] for index, fire in enumerate(FIRES) if fire and index + 2 in TAPS)]
        for index, width in enumerate(widths):
            # The lpips package has a dropout before the convolution, hence the name of its weight.
            self.add_module(f"lin{index}", nn.ModuleDict({"model": nn.ModuleDict({"1": _weighing(width)})}))

    def taps(self, x: Tensor) -> list[Tensor]:
        """Features of unit length for each tap; x [B, 3, H, W] in −1..1."""
        shift, scale = (x.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        found: list[Tensor] = self.features((x - shift) / scale)
        return [tap / (tap.square().sum(1, keepdim=True).sqrt() + 1e-10) for tap in found]

    def distance(self, taps: list[Tensor], others: list[Tensor], size: torch.Size) -> Tensor:
        """[B, 1, *size], 0 or more where the weights are."""
        total = torch.zeros((), device=taps[0].device)
        for index, (one, other) in enumerate(zip(taps, others, strict=True)):
            weighing = cast("nn.Conv2d", self.get_submodule(f"lin{index}.model.1"))
            weighed = weighing((one - other).square())
            total = total + F.interpolate(weighed, size=size, mode="bilinear", align_corners=False)
        return total


def load_lpips(path: str) -> Lpips:
    """LPIPS in eval mode with the weights of a file. Raises UserError where it cannot be read or is another network."""
    with seeded(0):  # the weights are replaced; torch's own generator stays as it is
        network = Lpips()
    try:
        found = load_file(Path(path).expanduser())
    except (OSError, SafetensorError) as error:
        raise UserError(Problem(path, f"the LPIPS weights cannot be read: {error}; see perceptual.weights")) from error
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            what = f"has shape {tuple(found[name].shape)}" if name in found else "is missing"
            raise UserError(
                Problem(path, f"no LPIPS weights with SqueezeNet 1.1: {name} {what}, wanted {tuple(tensor.shape)}")
            )
    network.load_state_dict({name: found[name] for name in wanted})
    return network.eval().requires_grad_(False)


def local_ssim(x: Tensor, y: Tensor) -> Tensor:
    """(1 − SSIM) / 2 around each pixel of slices [B, 1, H, W] in 0..1: 0 where equal, at most 1."""
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    ssim = ((2 * mean_x * mean_y + C1) * (2 * covariance + C2)) / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    return ((1 - ssim) / 2).clamp(0, 1)


def blurred(x: Tensor, deviation: float = WINDOW_WIDTH, radius: int = WINDOW // 2) -> Tensor:
    """Slices [B, 1, H, W] through a Gaussian window that reaches `radius` pixels; mirrored at the border."""
    if radius == 0:
        return x
    place = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    window = torch.exp(-0.5 * (place / deviation) ** 2)
    window = window / window.sum()
    rows, columns = x.shape[-2:]
    padded = F.pad(x, (radius,) * 4, mode="reflect" if radius < min(rows, columns) else "replicate")
    return F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def _weighing(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, 1, 1, bias=False)
