"""The tower: backbone and head, exactly what a teacher mirrors.

Shapes: V crops, B images, N patch tokens, M selected tokens, D features, P projections.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selfdistill.networks.backbones import Backbone, Features
from selfdistill.networks.timm_backbones import as_backbone


class Tower(nn.Module):
    """``images -> (features, projection)``, with one backbone pass per resolution and one head pass.

    Args:
        backbone: a :class:`Backbone`, a timm name or any ``nn.Module``.
        head: maps pooled features ``[…, D]`` to projections ``[…, P]``. With ``select`` it is called as
            ``head(pooled, selected_tokens)``, with ``layers`` as ``head(pooled, *layers)``, and its
            return value is passed on as it is.
        noise: standard deviation of Gaussian noise added to the images in train mode. It makes the student
            a differently processed self; the teacher's copy has none.

    Raises:
        ValueError: negative noise.
    """

    backbone: Backbone
    head: nn.Module

    def __init__(self, backbone: Backbone | nn.Module | str, head: nn.Module, noise: float = 0.0) -> None:
        super().__init__()
        if not noise >= 0:
            raise ValueError(f"student.noise: {noise} given, allowed is 0 or more")
        self.noise = noise
        self.backbone = as_backbone(backbone)
        self.head = head

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        *,
        mask: Tensor | Sequence[Tensor | None] | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
        select: Tensor | None = None,
    ) -> tuple[Features, Tensor]:
        """Encode one batch, or several crops of it.

        Args:
            images: ``[B, C, H, W]``, or V crops of it of any sizes (crops of one size pass the backbone
                as one batch; batch norm then sees them together).
            mask: ``[B, N]`` bool, or one (or None) a crop; see :class:`Backbone`.
            mask_token: ``[D]``.
            keep: ``[B, K]`` int64 tokens to encode; single resolution only.
            layers: blocks whose outputs the head takes too; single resolution only.
            select: ``[M]`` int64 into the flattened tokens ``[B·N]`` (crops: ``[V·B·N]`` of the first
                resolution's crops) which the head projects as well.

        Returns:
            Features and projection: ``[B, …]`` for a batch; ``[V, B, …]`` for crops, in their order,
            ``tokens`` being those of the first resolution's crops.
        """
        if self.noise and self.training:
            images = self._noisy(images) if isinstance(images, Tensor) else [self._noisy(crop) for crop in images]
        if isinstance(images, Tensor):
            if mask is not None and not isinstance(mask, Tensor):
                raise ValueError("mask: a list given for one batch, allowed is a tensor [B, N]")
            features = self.backbone(images, mask=mask, mask_token=mask_token, keep=keep, layers=layers)
        else:
            features = self._encode_crops(images, mask, mask_token, keep, layers)
        return features, self._project(features, select)

    def _noisy(self, images: Tensor) -> Tensor:
        return images + self.noise * torch.randn_like(images)

    def _project(self, features: Features, select: Tensor | None) -> Tensor:
        if select is not None:
            if features.tokens is None:
                raise ValueError("select: the backbone gives no patch tokens; choose a vision transformer")
            tokens = features.tokens.reshape(-1, features.tokens.shape[-1]).index_select(0, select)
            return self.head(features.pooled, tokens)
        return self.head(features.pooled, *features.layers)

    def _encode_crops(
        self,
        crops: Sequence[Tensor],
        mask: Tensor | Sequence[Tensor | None] | None,
        mask_token: Tensor | None,
        keep: Tensor | None,
        layers: Sequence[int],
    ) -> Features:
        masks: Sequence[Tensor | None] = [None] * len(crops) if mask is None else list(mask)
        if len(masks) != len(crops):
            raise ValueError(f"mask: {len(masks)} given for {len(crops)} crops; give one (or None) a crop")
        groups: dict[tuple[int, ...], list[int]] = {}
        for v, crop in enumerate(crops):
            groups.setdefault(tuple(crop.shape), []).append(v)
        if len(groups) > 1 and (keep is not None or layers):
            raise ValueError("keep, layers: allowed for crops of one resolution only")
        pooled: dict[int, Tensor] = {}
        first: Features | None = None
        for members in groups.values():
            encoded = self.backbone(
                torch.cat([crops[v] for v in members]),
                mask=_cat_masks([masks[v] for v in members]),
                mask_token=mask_token,
                keep=keep,
                layers=layers,
            )
            pooled.update(zip(members, encoded.pooled.chunk(len(members)), strict=True))
            first = encoded if first is None else first
        assert first is not None, "no crops"
        views = len(next(iter(groups.values())))
        return Features(
            torch.stack([pooled[v] for v in range(len(crops))]),
            None if first.tokens is None else first.tokens.unflatten(0, (views, -1)),
            tuple(layer.unflatten(0, (views, -1)) for layer in first.layers),
        )


def _cat_masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    given = [m for m in masks if m is not None]
    if not given:
        return None
    if len(given) != len(masks):
        raise ValueError("mask: crops of one resolution are masked all or none; give an all-False mask")
    return torch.cat(given)
