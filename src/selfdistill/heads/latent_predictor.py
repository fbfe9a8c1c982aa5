"""I-JEPA's predictor: from the features of a context to the features at other positions."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["LatentPredictor", "sincos_2d"]


class LatentPredictor(nn.Module):
    """A narrow transformer that is told where to look (I-JEPA, arXiv 2301.08243).

    The context tokens and one learnt mask token for each wanted position, each with the embedding of its
    position, attend to each other; the outputs at the mask tokens are the predictions. Target blocks of an
    image are predicted apart: they see the context, not each other.

    Args:
        in_dim: features of the context tokens and of the predictions D.
        grid: patches along (height, width).
        width: features inside, a multiple of 4 and of `heads`.
        depth: transformer blocks (12 in the paper, 6 for its ViT-B).
        heads: attention heads.

    Raises:
        ValueError: `width` not a multiple of 4 or of `heads`, or `depth` below 1.
    """

    positions: Tensor

    def __init__(self, in_dim: int, grid: Sequence[int], *, width: int = 384, depth: int = 12, heads: int = 12) -> None:
        # timm takes seconds to import and no other head needs it.
        from timm.models.vision_transformer import Block

        super().__init__()
        if width % heads:
            raise ValueError(f"width: got {width}, allowed are multiples of heads = {heads}")
        if depth < 1:
            raise ValueError(f"depth: got {depth}, allowed are whole numbers from 1")
        self.in_dim, self.out_dim = in_dim, in_dim
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", sincos_2d(width, grid), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.norm = norm(width)
        self.unembed = nn.Linear(width, in_dim)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        # As in BEiT (arXiv 2106.08254) the residual branches of the l-th block start 1 / sqrt(2 l) as strong.
        for index, block in enumerate(self.blocks, start=1):
            for name in ("attn.proj", "mlp.fc2"):
                block.get_parameter(f"{name}.weight").div_(math.sqrt(2 * index))

    def forward(self, context: Tensor, context_positions: Tensor, target_positions: Tensor) -> Tensor:
        """Predicts the features at the target positions.

        Args:
            context: context tokens [B, Nc, D].
            context_positions: their patch indices, int64 [B, Nc].
            target_positions: wanted patch indices, int64 [B, Nt], or [B, M, Nt] for M blocks an image.

        Returns:
            [B, Nt, D], or [B, M, Nt, D].
        """
        if target_positions.ndim == 2:
            return self.forward(context, context_positions, target_positions[:, None])[:, 0]
        # Legend: B images, M target blocks, C context tokens, T wanted tokens, W width.
        batch, targets, wanted = target_positions.shape
        x_BCW = self.embed(context) + self.positions[context_positions]
        x_BMCW = x_BCW[:, None].expand(-1, targets, -1, -1)
        query_BMTW = (self.mask_token + self.positions[target_positions]).to(x_BCW.dtype)
        x = torch.cat([x_BMCW, query_BMTW], dim=2).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        predictions: Tensor = self.unembed(self.norm(x[:, -wanted:]))
        return predictions.view(batch, targets, wanted, self.out_dim)


def sincos_2d(dim: int, grid: Sequence[int]) -> Tensor:
    """Fixed embedding of the positions of a grid: sines and cosines of column, then of row.

    With w_i = 10000^(-i / (dim / 4)), position (row, column) is the concatenation of sin(column w),
    cos(column w), sin(row w) and cos(row w), each dim / 4 long: the two-dimensional form of arXiv 1706.03762
    that MoCo v3, MAE and I-JEPA use.

    Args:
        dim: features, a multiple of 4.
        grid: patches along (height, width).

    Returns:
        float32 [H * W, dim], positions in row-major order.

    Raises:
        ValueError: `dim` is not a positive multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"dim: got {dim}, allowed are positive multiples of 4")
    height, width = grid
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [position.reshape(-1, 1) * frequencies for position in (columns, rows)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()
