"""What an objective is, and what it may ask of the method that it is added to.

Shapes: V student crops, G teacher crops, B images, P projections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from selfdistill.distributed import all_reduce_sum, world_size

if TYPE_CHECKING:
    from selfdistill.methods import Outputs, SelfDistillModule
    from selfdistill.views import Views

Need = Literal["projections", "teacher", "tokens", "masks", "labels"]
Coupling = Literal[
    "in-batch negatives",
    "Sinkhorn",
    "KoLeo",
    "mean entropy",
    "variances over the batch",
    "numbers of masked patches",
    "numbers of labelled images",
]
"""What makes a term other than a mean over images."""


class Objective(nn.Module, ABC):
    """A loss in addition to a method's own; a part of the module, so that its parameters are trained and saved."""

    name: ClassVar[str]
    """The objective's name in ``objective=``, for error messages."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    """What there must be: a projection of each view, a teacher, patch tokens (in both networks), masks or labels in the
    views."""

    couples: ClassVar[Coupling | None] = None
    """What couples the images of a batch in its terms; None for means over images."""

    over_ranks: ClassVar[bool] = False
    """Whether its terms take account of other ranks' images, so that ranks with other shares weigh the same."""

    def attach(self, module: SelfDistillModule[Any, Any]) -> None:
        """Take sizes from ``module`` and make the parameters; called once, when its towers are built."""

    @abstractmethod
    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Any, targets: Any
    ) -> dict[str, Tensor]:
        """Named scalar losses, in float32; reads buffers and the module's clock, writes nothing."""

    def observe(self, module: SelfDistillModule[Any, Any], views: Views, predictions: Any, targets: Any) -> None:
        """Stage this micro-batch for state; called after backward, without gradient."""

    def projections(self, outputs: Outputs | None, crops: int, images: int) -> Tensor:
        """The projections of ``outputs``, ``[crops, images, P]``.

        Raises:
            ValueError: the method made others.
        """
        given = getattr(outputs, "projections", None)
        if not isinstance(given, Tensor) or given.ndim != 3 or given.shape[:2] != (crops, images):
            what = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(
                f"objective.{self.name}: projections {what} given, allowed are [{crops} crops, {images} images, "
                "dimensions]; choose a method that projects each view of an image"
            )
        return given

    def cross_pairs(self, views: Views) -> tuple[tuple[int, int], ...]:
        """(student slot, teacher slot) of every two different crops.

        Raises:
            ValueError: there are none.
        """
        if not views.pairs:
            raise ValueError(
                f"objective.{self.name}: no two crops of an image, one for each network, given; "
                "choose views with two or more (views=byol)"
            )
        return views.pairs


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of ``values`` where ``chosen``, over all ranks: 0 where nothing is, and without waiting for the device.

    Ranks may have chosen different numbers: what they return averages to the mean, and so do the gradients.

    Args:
        values: ``[N]``.
        chosen: ``[N]`` bool.
    """
    weight = chosen.to(values.dtype)
    return (weight * values).sum() * world_size() / all_reduce_sum(weight.sum()).clamp_min(1)
