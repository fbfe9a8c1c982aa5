"""The CPU engine: sample by sample in the loader's workers, with torchvision's kernels on uint8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfdistill.views.augment_batched import as_float, normalize, resample
from selfdistill.views.colour import blur_radius, gaussian_blur, hue
from selfdistill.views.parameters import FACTORS, Parameters, draw
from selfdistill.views.specs import CropSpec, ViewRecipe
from selfdistill.views.views import Views

if TYPE_CHECKING:
    from selfdistill.data.sampler import EpochIndices


class ViewBatches(Dataset[Views]):
    """Whole batches of views of a data set, as `ResumableLoader` asks for them.

    Args:
        dataset: map-style; gives (image, label) or image: PIL, or a tensor [C, H, W], uint8 or float in [0, 1].
        recipe: the views.
        seed: of the views.
        mean: by channel, values in [0, 1]; as many numbers as the views have channels, 1 or 3.
        std: likewise.
        labelled: pass labels on; None means wherever the data set gives them.
    """

    def __init__(
        self,
        dataset: Any,
        recipe: ViewRecipe,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        labelled: bool | None = None,
    ) -> None:
        recipe.check_channels(len(mean))
        self.dataset = dataset
        self.recipe = recipe
        self.seed = seed
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.labelled = labelled

    def __getitem__(self, indices: EpochIndices) -> Views:
        items = [self.dataset[index] for index in indices]
        pairs = isinstance(items[0], tuple | list)
        images = [as_tensor(item[0] if pairs else item, len(self.mean)) for item in items]
        index = torch.tensor(indices)
        height, width = (torch.tensor([image.shape[axis] for image in images]) for axis in (-2, -1))
        crops = []
        for crop, spec in enumerate(self.recipe.flat):
            drawn = draw(spec.augment, height, width, index, seed=self.seed, epoch=indices.epoch, crop=crop)
            views = torch.stack([_view(image, drawn, row, spec) for row, image in enumerate(images)])
            if spec.augment.noise:
                views += spec.augment.noise * drawn.noise(views.shape, views.device)
            crops.append(normalize(views, self.mean, self.std))
        labelled = pairs if self.labelled is None else self.labelled
        labels = torch.tensor([int(item[1]) for item in items]) if labelled else None
        masks = self.recipe.draw_masks(index, seed=self.seed, epoch=indices.epoch)
        return Views(crops, self.recipe.roles, masks=masks, labels=labels, index=index)


def as_tensor(image: Any, channels: int) -> Tensor:
    """[channels, H, W], uint8 or float in [0, 1], of a PIL image or a tensor.

    Raises:
        TypeError: neither of them.
        ValueError: a tensor of another shape.
    """
    if not isinstance(image, Tensor):
        from PIL import Image
        from torchvision.transforms.v2 import functional as F

        if not isinstance(image, Image.Image):
            raise TypeError(f"an image is a {type(image).__name__}; give PIL images or uint8 tensors [C, H, W]")
        return cast(Tensor, F.pil_to_tensor(image.convert("RGB" if channels == 3 else "L")))
    if image.ndim != 3 or image.shape[0] not in (1, channels):
        raise ValueError(f"an image has shape {list(image.shape)}; give [{channels}, H, W] or [1, H, W]")
    return image.expand(channels, -1, -1)


def centre(image: Tensor, size: int) -> Tensor:
    """[C, size, size] of a [C, H, W] image: resized to 8/7 of it, then the middle; untouched where it has the size."""
    from torchvision.transforms.v2 import functional as F

    if image.shape[-2:] == (size, size):
        return image
    resized = F.resize(image, [round(size * 8 / 7)], antialias=True)
    return cast(Tensor, F.center_crop(resized, [size, size]))


def _view(image: Tensor, drawn: Parameters, row: int, spec: CropSpec) -> Tensor:
    """View of one [C, H, W] image with the parameters in `row`, but for the noise: [C, size, size] float in [0, 1]."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    augment, size = spec.augment, [spec.size, spec.size]
    if augment.warps:
        image = resample(as_float(image)[None], drawn.only(row), augment, spec.size)[0]
    else:
        mode = InterpolationMode(augment.interpolation)
        image = F.resized_crop(image, *drawn.box[row].tolist(), size, interpolation=mode, antialias=True)
        if image.is_floating_point():
            image = image.clamp(0, 1)  # a bicubic filter overshoots; on uint8 it is cut already
        if drawn.flip[row]:
            image = F.horizontal_flip(image)
    if drawn.jitter[row]:
        factors = drawn.factors[row].tolist()
        for column in drawn.order[row].tolist():
            name = FACTORS[column]
            if not getattr(augment, name):
                continue
            if name == "hue":  # the batched engine's formula: torchvision's takes more than twice as long
                turned = hue(
                    F.to_dtype(image, torch.float32, scale=True)[None], drawn.factors[row, column : column + 1]
                )
                image = F.to_dtype(turned[0], image.dtype, scale=True)
            else:
                image = getattr(F, f"adjust_{name}")(image, factors[column])
    if drawn.grayscale[row]:
        image = F.rgb_to_grayscale(image, num_output_channels=image.shape[0])
    if drawn.blur[row]:
        radius = blur_radius(augment.blur_sigma[1], spec.size)
        # torchvision's kernel has two dimensions, and takes four times as long
        blurred = gaussian_blur(image[None].float(), drawn.sigma[row : row + 1], radius)[0]
        image = blurred if image.is_floating_point() else blurred.round_().to(image.dtype)
    if drawn.solarize[row]:
        image = F.solarize(image, 0.5 if image.is_floating_point() else 128)
    return as_float(image)
