"""A U-Net for ptychography that computes on few pixels.

PtychoNN spends two thirds of its multiplications on 64×64 and 32×32 pixels, and twice, for it has a
decoder each for amplitude and phase. Here one convolution of `stride` brings the pattern to 64 /
stride pixels a side, three stages halve that twice, one decoder serves both images, and its last
convolution gives stride² pixels of each at once (sub-pixel convolution: Shi et al., CVPR 2016).
Skip connections add a stage's features to the decoder's of the same size (Ronneberger, Fischer,
Brox, MICCAI 2015, with sums for concatenations), and separable convolutions (Chollet, CVPR 2017)
take a seventh to a ninth of the multiplications of full ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgexnas.host.networks.bragg_models import he_init
from edgexnas.host.networks.ptycho_models import Contrast, Doubling, Shadow, as_object, quieten

__all__ = ["PtychoUnet"]


class PtychoUnet(nn.Module):
    """Encoder and decoder of three stages with widths of their own.

    Parameters
    ----------
    width1, width2, width3
        Filters of the stages, from the most pixels to the fewest.
    blocks
        Convolutions of a stage in the encoder, and again in the decoder.
    stride
        1, 2 or 4: pixels of the pattern, along each axis, that become one of the first stage.
    skips
        Whether the decoder sees what the encoder saw.
    separable
        Whether 3×3 convolutions between stages are depthwise and then pointwise.
    """

    def __init__(
        self,
        width1: int,
        width2: int,
        width3: int,
        blocks: int,
        stride: int,
        skips: bool,
        separable: bool,
    ) -> None:
        super().__init__()
        self.skips = skips
        self.contrast = Contrast()
        self.shadow = Shadow()
        # Half a stride over the edges, so that each place sees a little of its neighbours.
        reach = 3 if stride == 1 else 2 * stride
        stem = nn.Conv2d(1, width1, reach, stride, padding=(reach - stride + 1) // 2)
        more = blocks - 1
        self.encoder1 = nn.Sequential(stem, nn.ReLU(), *_stack(width1, width1, more, separable))
        self.encoder2 = nn.Sequential(nn.MaxPool2d(2), *_stack(width1, width2, blocks, separable))
        self.encoder3 = nn.Sequential(
            nn.MaxPool2d(2), *_stack(width2, width3, 2 * blocks, separable)
        )
        self.up2 = nn.Sequential(Doubling(), *_stack(width3, width2, 1, separable))
        self.decoder2 = nn.Sequential(*_stack(width2, width2, blocks, separable))
        self.up1 = nn.Sequential(Doubling(), *_stack(width2, width1, 1, separable))
        self.decoder1 = nn.Sequential(*_stack(width1, width1, blocks, separable))
        self.head = nn.Conv2d(width1, 2 * stride**2, 3, padding=1)
        self.stride = stride
        he_init(self)
        quieten(self.head)

    def forward(self, patterns: Tensor) -> Tensor:
        """Amplitude and phase (n, 2, 64, 64) from patterns (n, 1, 64, 64)."""
        first = self.encoder1(self.shadow(self.contrast(patterns)))
        second = self.encoder2(first)
        features = self.up2(self.encoder3(second))
        features = self.decoder2(features + second if self.skips else features)
        features = self.up1(features)
        features = self.decoder1(features + first if self.skips else features)
        image = spread_channels(self.head(features), self.stride)
        return as_object(image[:, :1], image[:, 1:])


def spread_channels(images: Tensor, stride: int) -> Tensor:
    """Lay each stride² channels (n, c·stride², h, w) side by side: (n, c, h·stride, w·stride).

    As `torch.nn.PixelShuffle`, of operations that every bundle may hold.
    """
    if stride == 1:
        return images
    channels, rows, cols = images.shape[1] // stride**2, *images.shape[2:]
    apart = images.reshape(-1, channels, stride, stride, rows, cols)
    return apart.permute(0, 1, 4, 2, 5, 3).reshape(-1, channels, rows * stride, cols * stride)


def _stack(channels: int, filters: int, count: int, separable: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(count):
        if separable:
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
            layers.append(nn.Conv2d(channels, filters, 1))
        else:
            layers.append(nn.Conv2d(channels, filters, 3, padding=1))
        layers.append(nn.ReLU())
        channels = filters
    return layers
