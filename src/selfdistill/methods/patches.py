"""What the methods with masked patches have in common. Shapes: G masked crops, B images, M masked patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from selfdistill.methods.outputs import Outputs
from selfdistill.views import Views
from selfdistill.views.micro_batches import Layout


@dataclass
class PatchOutputs(Outputs):
    """Outputs for class tokens and masked patches.

    Attributes:
        patches: ``[M, K]``, of the masked patches.
        weight: ``[M]``, 1 / the number of masked patches in the image.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {"patches": "masked", "weight": "masked"}

    patches: Tensor = field(kw_only=True)
    weight: Tensor = field(kw_only=True)


def check_same_view(views: Views, masks: int) -> None:
    """Refuse views in which the teacher does not see exactly the student's masked crops.

    Args:
        views: of the batch.
        masks: G, number of the student's crops that are masked.

    Raises:
        ValueError: the teacher sees others, or in another order.
    """
    if views.same != tuple((slot, slot) for slot in range(masks)) or len(views.teacher) != masks:
        raise ValueError(
            f"views: the teacher sees {len(views.teacher)} crops, and {masks} of the student's are masked; give the "
            "crops of the first size, and no others, to both (views=ibot)"
        )
