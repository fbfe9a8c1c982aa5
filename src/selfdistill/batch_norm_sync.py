"""Batch norm over all processes, for the networks that Lightning's conversion would change."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BatchNormSync"]


class BatchNormSync(TorchSyncBatchNorm):
    """``trainer.sync_batchnorm=true``: statistics of the global batch in every batch norm, the original ones after it.

    Lightning's own plugin makes plain batch norms of all, also of those that timm joined with their activation
    (EfficientNet, RegNet, …), and so leaves the activation out, in training and afterwards.
    """

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, str, _BatchNorm]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace every batch norm inside ``model``; parameters and buffers stay the same tensors."""
        for parent in list(model.modules()):
            for name, part in list(parent.named_children()):
                if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm):
                    setattr(parent, name, convert_sync_batchnorm(part))
                    self._replaced.append((parent, name, part))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the original ones back, with what was learned."""
        for parent, name, part in self._replaced:
            synced = getattr(parent, name)
            part._parameters.update(synced._parameters)
            # Lightning moves a module between devices, which makes new buffers
            part._buffers.update(synced._buffers)
            setattr(parent, name, part.train(synced.training))
        self._replaced = []
        return model
