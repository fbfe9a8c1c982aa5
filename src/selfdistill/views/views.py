"""`Views`: the batch that every method receives, and `RawBatch`: what it may be made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROLES = ("teacher", "student")


@dataclass
class Views:
    """Crops of one batch of images, with who sees which. Not frozen: Lightning could not move it between devices.

    A *slot* is a position in the list `student` or `teacher`, which is what networks' outputs are aligned with; a crop
    with both roles has a slot in each.

    Attributes:
        crops: [B, C, h, w] float32, normalised, in recipe order; sizes may differ from crop to crop.
        roles: for each crop, the networks that see it: a non-empty subset of {"teacher", "student"}.
        masks: patch masks by name, where the recipe makes them, for the G student crops of the size of its first (the
            global ones), each image of each crop with a mask of its own. With N patches in a crop:

            - "mask" [G, B, N] bool, True where masked;
            - "masked" [M] int64, where "mask" is True, as positions in its flattened form, which is what `Tower` takes
              as `select`; never empty: without a masked patch it is one position of weight 0;
            - "masked_weight" [M] float32, 1 / the number of masked patches in the image;
            - "keep" [G·B, K] int64, the patches that are not masked, from makers that mask equally many everywhere;
            - "context" [G·B, Nc] and "targets" [G·B, T, Nt] int64, I-JEPA's blocks of patches.
        labels: [B] int64, -1 for none; for evaluation and explicitly supervised objectives only.
        index: [B] int64, the samples' indices in the data set.
    """

    crops: list[Tensor]
    roles: tuple[frozenset[str], ...]
    masks: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    index: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.crops or len(self.crops) != len(self.roles):
            raise ValueError(
                f"views: {len(self.crops)} crops with {len(self.roles)} sets of roles; give at least one crop, "
                "and one set of roles for each"
            )

    @property
    def teacher(self) -> list[Tensor]:
        """The crops that the teacher sees, in recipe order."""
        return [self.crops[crop] for crop in self._seen_by("teacher")]

    @property
    def student(self) -> list[Tensor]:
        """The crops that the student sees, in recipe order."""
        return [self.crops[crop] for crop in self._seen_by("student")]

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(student slot, teacher slot) of every two different crops: the cross-view pairs of BYOL and DINO."""
        return self._pairs(same=False)

    @property
    def same(self) -> tuple[tuple[int, int], ...]:
        """(student slot, teacher slot) of every crop that both see: the same-view pairs of iBOT and Mean Teacher."""
        return self._pairs(same=True)

    def mask(self, name: str) -> Tensor:
        """The masks of that name.

        Raises:
            ValueError: the recipe does not make them.
        """
        if name not in self.masks:
            made = ", ".join(self.masks) or "none"
            raise ValueError(
                f"views: this method needs the masks {name!r}, the recipe makes {made}; choose views with them "
                "(views=ibot, data2vec, msn or ijepa)"
            )
        return self.masks[name]

    @property
    def student_masks(self) -> list[Tensor | None]:
        """For each crop in `student` its "mask" [B, N], or None where it is not masked: `mask` of a `Tower`.

        Raises:
            ValueError: as `mask`.
        """
        masks, size = iter(self.mask("mask")), self.student[0].shape[-2:]
        return [next(masks) if crop.shape[-2:] == size else None for crop in self.student]

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.crops[0].shape[0]

    def pin_memory(self) -> Views:
        """A copy in page-locked memory; torch's loaders call this by name."""
        return Views(
            crops=[crop.pin_memory() for crop in self.crops],
            roles=self.roles,
            masks={name: mask.pin_memory() for name, mask in self.masks.items()},
            labels=None if self.labels is None else self.labels.pin_memory(),
            index=None if self.index is None else self.index.pin_memory(),
        )

    def _seen_by(self, role: str) -> list[int]:
        return [crop for crop, roles in enumerate(self.roles) if role in roles]

    def _pairs(self, *, same: bool) -> tuple[tuple[int, int], ...]:
        return tuple(
            (student_slot, teacher_slot)
            for student_slot, student_crop in enumerate(self._seen_by("student"))
            for teacher_slot, teacher_crop in enumerate(self._seen_by("teacher"))
            if (student_crop == teacher_crop) is same
        )


@dataclass
class RawBatch:
    """Images as they are stored, for the batched engine to turn into `Views`.

    Attributes:
        images: [B, C, H, W], uint8 in [0, 255] or float32 in [0, 1].
        index: [B] int64, the samples' indices in the data set; stays on the CPU, where random parameters are drawn.
        epoch: in which the samples are drawn; it travels with them, since a worker is ahead of the trainer.
        labels: [B] int64, -1 for none.
        masks: as in `Views`: they are drawn where the batch is loaded.
    """

    images: Tensor
    index: Tensor
    epoch: int
    labels: Tensor | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)

    def pin_memory(self) -> RawBatch:
        """A copy in page-locked memory; torch's loaders call this by name."""
        return self._copied(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> RawBatch:
        """Images, labels and masks on `device`, without waiting for the copy."""
        return self._copied(lambda tensor: tensor.to(device, non_blocking=True))

    def _copied(self, copy: Callable[[Tensor], Tensor]) -> RawBatch:
        labels = None if self.labels is None else copy(self.labels)
        masks = {name: copy(mask) for name, mask in self.masks.items()}
        return RawBatch(copy(self.images), self.index, self.epoch, labels, masks)
