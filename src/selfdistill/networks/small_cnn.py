"""A small convolutional network for images of 8 to 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfdistill.networks.backbones import Backbone, Features, block_positions


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class SmallCNN(Backbone):
    """Four 3×3 convolution stages, halving the map twice, then the average of the map.

    Args:
        channels: C of the images.
        widths: output channels of the stages; the last one is ``dim``.
    """

    ignores = frozenset({"image_size", "patch_size", "small_stem", "drop_path", "pretrained"})

    def __init__(self, channels: int = 3, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        strides = (1, 2, 1, 2)
        self.stages = nn.ModuleList(_stage(a, b, s) for a, b, s in zip(inputs, widths, strides, strict=True))
        self.widths = tuple(widths)
        self.dim = widths[-1]
        self.depth = len(widths)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def checkpoint_activations(self, on: bool = True) -> None:
        self.recomputes = on

    def layer_dims(self, layers: Sequence[int]) -> list[int]:
        return [self.widths[i] for i in block_positions(layers, self.depth)]

    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        self.refuse_token_arguments(mask, keep)
        wanted = block_positions(layers, self.depth)
        taps: dict[int, Tensor] = {}
        x = images
        checkpointing = self.recomputes and torch.is_grad_enabled()
        for i, stage in enumerate(self.stages):
            x = checkpoint(stage, x, use_reentrant=False) if checkpointing else stage(x)
            if i in wanted:
                taps[i] = x.flatten(2).transpose(1, 2)
        return Features(x.mean((2, 3)), None, tuple(taps[i] for i in wanted))
