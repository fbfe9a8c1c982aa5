"""The student says what the pixels of masked patches are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from selfdistill.objectives.base import Coupling, Need, Objective, mean_where
from selfdistill.objectives.masking import encode_masked, is_masked, masked_crops, new_mask_token

if TYPE_CHECKING:
    from selfdistill.methods import SelfDistillModule
    from selfdistill.views import Views


class MaskedPixels(Objective):
    """``L = mean over masked patches of ‖r(h_m) − x̂_m‖₁ / (C·p²)``, 0 where none is masked.

    h are the student's tokens of the masked image, x̂ the patch's pixels at mean 0 and variance 1 (MAE,
    arXiv 2111.06377, §4.1). L1 and a linear decoder r are SimMIM's (arXiv 2111.09886). Mask token and r are learned
    here. A method's outputs hold no tokens, so this costs one forward and backward pass more of the student (see
    `encode_masked`). The mean is over all ranks; micro-batches with different numbers of masked patches weigh the same.

    Args:
        patch: p, side of a patch in pixels: the backbone's.
        channels: C of the images.
    """

    name: ClassVar[str] = "masked_pixels"
    needs: ClassVar[frozenset[Need]] = frozenset({"tokens", "masks"})
    couples: ClassVar[Coupling | None] = "numbers of masked patches"
    over_ranks: ClassVar[bool] = True

    def __init__(self, patch: int = 16, channels: int = 3) -> None:
        super().__init__()
        if patch < 1 or channels < 1 or patch * patch * channels < 2:
            raise ValueError(
                f"objective.masked_pixels.patch, channels: {patch}, {channels} given, allowed are whole numbers "
                "above 0 with at least two values in a patch"
            )
        self.patch, self.channels = patch, channels

    def attach(self, module: SelfDistillModule[Any, Any]) -> None:
        super().attach(module)
        dim = module.student.backbone.dim
        self.mask_token = new_mask_token(dim)
        self.decoder = nn.Linear(dim, self.channels * self.patch**2)

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Any, targets: Any
    ) -> dict[str, Tensor]:
        wanted = self._targets(views, masked_crops(views, self.name))
        decoded = self.decoder(encode_masked(module, views, self.mask_token, self.name))
        return {"masked_pixels": mean_where((decoded - wanted).abs().mean(-1), is_masked(views))}

    def _targets(self, views: Views, crops: Tensor) -> Tensor:
        patches = normalised_patches(crops, self.patch)
        counted = views.mask("mask").shape[-1]
        if patches.shape[1:] != (counted, self.channels * self.patch**2):
            raise ValueError(
                f"objective.masked_pixels.patch: {self.patch} given, with which crops {list(crops.shape[1:])} do not "
                f"have the {counted} patches of {self.channels} channels of the masks; give the backbone's patch"
            )
        return patches.flatten(0, 1).index_select(0, views.mask("masked"))


def normalised_patches(images: Tensor, side: int, eps: float = 1e-6) -> Tensor:
    """Patches in row-major order, each at mean 0 and variance 1: ``[B, C, H, W] -> [B, N, C·p²]``.

    The variance divides by C·p² − 1, and has ``eps`` added, as in MAE's code.

    Args:
        images: of any size; what a last patch would lack in full is left out.
        side: p, in pixels.
        eps: keeps flat patches at 0.
    """
    patches = images.unfold(2, side, side).unfold(3, side, side)
    rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    variance, mean = rows.var(-1, keepdim=True), rows.mean(-1, keepdim=True)
    return (rows - mean) / (variance + eps).sqrt()
