"""Networks for ptychography: the PtychoNN baseline, plain MLPs and plain CNNs.

All take far-field diffraction patterns (n, 1, 64, 64) float32, scaled to [0, 1], and return
(n, 2, 64, 64) float32: channel 0 is the amplitude of the object (0 to 1), channel 1 its phase in
radians (−π to π).

All begin with `Contrast`: the patterns of a scan share nearly all their light, and without their
mean taken away a network learns little more than the mean patch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from edgexnas.host.networks.bragg_models import convolution_stages, he_init, hidden_layers

__all__ = ["CnnPtycho", "Contrast", "MlpPtycho", "PtychoNN", "Shadow"]

PATTERN_SIZE = 64
"""Side of a pattern in pixels, as in PtychoNN."""

PIXELS = PATTERN_SIZE**2
HEAD_SPREAD = 1e-3
"""Standard deviation of the weights that heads start with. A head then starts near one amplitude
and no phase, and adds no pattern of its own to what training leaves open."""

MAGNIFICATIONS = (1, 2, 4)
"""Of the middle of a pattern, for networks of convolutions."""

FOLDS: tuple[tuple[tuple[int, ...], bool], ...] = (
    ((), False), ((2, 3), False), ((2,), False), ((3,), False),
    ((), True), ((2, 3), True), ((2,), True), ((3,), True),
)  # fmt: skip
"""Axes that are reversed, and whether rows and columns are then exchanged: the eight folds of the
square. Checkpoints hold their numbers."""

KEPT = 0.9
"""Share of the patterns' contrast that a magnification must keep in view."""

FITTED = 2048
"""Patterns that suffice to choose it."""


def as_object(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Bring two raw images (n, 1, 64, 64) to amplitude and phase (n, 2, 64, 64)."""
    return torch.cat([torch.sigmoid(amplitude), math.pi * torch.tanh(phase)], dim=1)


class Contrast(nn.Module):
    """Patterns minus their mean, in units of their spread: constants of the training data.

    They are stored with the weights and exported with the graph, but not trained. A fresh layer
    changes nothing.
    """

    mean: Tensor
    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, PATTERN_SIZE, PATTERN_SIZE))
        self.register_buffer("gain", torch.ones(()))

    def fit(self, patterns: Tensor) -> None:
        """Take the constants from scaled patterns (n, 1, 64, 64)."""
        self.mean.copy_(patterns.mean(0, keepdim=True))
        spread = (patterns - self.mean).square().mean().sqrt()
        # Patterns that are all alike have no contrast to scale.
        self.gain.copy_(1 / spread if spread > 0 else torch.ones(()))

    def forward(self, patterns: Tensor) -> Tensor:
        """Shape unchanged."""
        return (patterns - self.mean) * self.gain


class Shadow(nn.Module):
    """Lays a pattern over the patch: the middle of it, magnified, turned or mirrored if need be.

    A defocused beam casts a magnified shadow of the object, so that a pixel of the pattern tells
    most of one place of the patch. Convolutions see neighbours only: they learn little where that
    place is far away. Nor need the detector's axes be those of the positions. Magnification and
    fold are constants of the training data, stored with the weights and exported with the graph. A
    fresh layer changes nothing.
    """

    choice: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Magnification, number of the fold, whether fitted.
        self.register_buffer("choice", torch.tensor([1, 0, 0]))
        self._magnification, self._fold = 1, 0

    def fit(self, patterns: Tensor, targets: Tensor) -> None:
        """Take the constants from patterns (n, 1, 64, 64) and their patches (n, 2, 64, 64).

        Only once: trained weights rely on them.
        """
        if self.choice[2]:
            return
        patterns, targets = patterns[:FITTED], targets[:FITTED]
        phase = targets[:, 1:]
        shown = _contrasts(phase - phase.mean((2, 3), keepdim=True))
        best = -1.0
        spread = (patterns - patterns.mean(0)).square().sum((0, 1))
        for magnification in MAGNIFICATIONS:
            # What lies outside the magnified view is lost to the network.
            if magnification > 1 and _middle(spread, magnification).sum() < KEPT * spread.sum():
                continue
            for fold in range(len(FOLDS)):
                laid = _contrasts(_lay(patterns, magnification, fold))
                # Squared, because a place may brighten or darken with the phase behind it.
                score = float((laid * shown).mean(0).square().mean())
                if score > best:
                    best = score
                    self.choice.copy_(torch.tensor([magnification, fold, 1]))
        self._read()

    def forward(self, patterns: Tensor) -> Tensor:
        """Shape unchanged."""
        return _lay(patterns, self._magnification, self._fold)

    def _read(self) -> None:
        magnification, fold, _ = self.choice.tolist()
        self._magnification, self._fold = int(magnification), int(fold)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        # As plain numbers: an exported graph holds one way, not a choice.
        self._read()


def _lay(patterns: Tensor, magnification: int, fold: int) -> Tensor:
    if magnification > 1:
        patterns = nn.functional.interpolate(
            _middle(patterns, magnification),
            scale_factor=float(magnification),
            mode="bilinear",
            align_corners=False,
        )
    axes, exchanged = FOLDS[fold]
    patterns = patterns.flip(axes) if axes else patterns
    return patterns.transpose(2, 3) if exchanged else patterns


def _middle(images: Tensor, magnification: int) -> Tensor:
    """Cut the part of (..., 64, 64) images that is seen when they are magnified."""
    side = PATTERN_SIZE // magnification
    first = (PATTERN_SIZE - side) // 2
    return images[..., first : first + side, first : first + side]


def _contrasts(images: Tensor) -> Tensor:
    """(n, 256): 16×16 means of 4×4 pixels, each with mean 0 and variance 1 over the images."""
    small = nn.functional.avg_pool2d(images, PATTERN_SIZE // 16).flatten(1)
    centred = small - small.mean(0)
    return centred / (centred.square().mean(0).sqrt() + 1e-6)


class PtychoNN(nn.Module):
    """The baseline of Cherukara et al., Appl. Phys. Lett. 117, 044103 (2020).

    An encoder of six convolutions in three widths and two decoders alike, one for the amplitude
    and one for the phase; 1,247,074 parameters at a width of 32.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        wide, full = 2 * width, 4 * width
        self.contrast = Contrast()
        self.shadow = Shadow()
        self.encoder = nn.Sequential(
            *_pair(1, width), nn.MaxPool2d(2),
            *_pair(width, wide), nn.MaxPool2d(2),
            *_pair(wide, full), nn.MaxPool2d(2),
        )  # fmt: skip
        self.amplitude = self._decoder(wide, full)
        self.phase = self._decoder(wide, full)
        he_init(self)
        quieten(self.amplitude[-1], self.phase[-1])

    @staticmethod
    def _decoder(wide: int, full: int) -> nn.Sequential:
        return nn.Sequential(
            *_pair(full, full), Doubling(),
            *_pair(full, wide), Doubling(),
            *_pair(wide, wide), Doubling(),
            nn.Conv2d(wide, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, patterns: Tensor) -> Tensor:
        """Amplitude and phase (n, 2, 64, 64) from patterns (n, 1, 64, 64)."""
        features = self.encoder(self.shadow(self.contrast(patterns)))
        return as_object(self.amplitude(features), self.phase(features))


class MlpPtycho(nn.Module):
    """4,096 pixels → `layers` hidden layers of `units` with ReLU → two heads of 4,096 pixels."""

    def __init__(self, units: int, layers: int) -> None:
        super().__init__()
        self.contrast = Contrast()
        self.hidden = nn.Sequential(nn.Flatten(), *hidden_layers(PIXELS, units, layers))
        self.amplitude = nn.Linear(units, PIXELS)
        self.phase = nn.Linear(units, PIXELS)
        he_init(self.hidden)
        quieten(self.amplitude, self.phase)

    def forward(self, patterns: Tensor) -> Tensor:
        """Amplitude and phase (n, 2, 64, 64) from patterns (n, 1, 64, 64)."""
        features = self.hidden(self.contrast(patterns))
        image = (-1, 1, PATTERN_SIZE, PATTERN_SIZE)
        return as_object(
            self.amplitude(features).reshape(image), self.phase(features).reshape(image)
        )


class CnnPtycho(nn.Module):
    """A shared encoder and two decoders of padded 3×3 convolutions of one width.

    64 pixels can be halved and doubled again only three times each way, so "128 up-sample layers"
    cannot mean 128 doublings. Each of the three parts deals its convolutions as evenly as
    possible to three stages; every encoder stage ends in 2×2 max-pooling and every decoder stage
    in a doubling, and a stage without convolutions is its pooling or doubling alone. A
    convolution to one channel ends each decoder. From 9 layers on the convolutions between equal
    widths are ReZero residuals, because deep plain stacks do not train.
    """

    def __init__(
        self, filters: int, encoder_layers: int, decoder1_layers: int, decoder2_layers: int
    ) -> None:
        super().__init__()
        self.contrast = Contrast()
        self.shadow = Shadow()
        self.encoder = nn.Sequential(
            *convolution_stages(1, filters, encoder_layers, nn.MaxPool2d(2))
        )
        self.amplitude = _decoder(filters, decoder1_layers)
        self.phase = _decoder(filters, decoder2_layers)
        he_init(self)
        quieten(self.amplitude[-1], self.phase[-1])

    def forward(self, patterns: Tensor) -> Tensor:
        """Amplitude and phase (n, 2, 64, 64) from patterns (n, 1, 64, 64)."""
        features = self.encoder(self.shadow(self.contrast(patterns)))
        return as_object(self.amplitude(features), self.phase(features))


def _decoder(filters: int, layers: int) -> nn.Sequential:
    stages = convolution_stages(filters, filters, layers, Doubling())
    return nn.Sequential(*stages, nn.Conv2d(filters, 1, 3, padding=1))


def quieten(*heads: nn.Module) -> None:
    for head in heads:
        assert isinstance(head, nn.Conv2d | nn.Linear)
        assert head.bias is not None
        nn.init.normal_(head.weight, std=HEAD_SPREAD)
        nn.init.zeros_(head.bias)


class Doubling(nn.Upsample):
    """Bilinear doubling of height and width.

    While it trains on a GPU it is written as sums of neighbours: the gradient of torch's own is a
    scatter with atomic additions, which is slow in bfloat16 and differs from run to run.
    """

    def __init__(self) -> None:
        super().__init__(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, 2h, 2w)."""
        if not (self.training and images.is_cuda):
            return super().forward(images)
        return doubled(images)


def doubled(images: Tensor) -> Tensor:
    """(n, c, h, w) → (n, c, 2h, 2w), bilinear, edges repeated."""
    for axis in (2, 3):
        length = images.shape[axis]
        first, last = images.narrow(axis, 0, 1), images.narrow(axis, length - 1, 1)
        before = torch.cat([first, images.narrow(axis, 0, length - 1)], axis)
        after = torch.cat([images.narrow(axis, 1, length - 1), last], axis)
        # New pixels lie a quarter of a pixel beside the old ones.
        pairs = [torch.lerp(images, before, 0.25), torch.lerp(images, after, 0.25)]
        images = torch.stack(pairs, axis + 1).flatten(axis, axis + 1)
    return images.contiguous(memory_format=torch.channels_last)


def _pair(channels: int, filters: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(),
        nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU(),
    ]  # fmt: skip
