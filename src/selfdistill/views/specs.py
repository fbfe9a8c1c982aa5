"""What a recipe of views is made of, as plain data that both engines execute.

`Augment` is one distribution over transformations, `CropSpec` a number of views drawn from it and who sees them,
`ViewRecipe` the list of them, with the maker of their patch masks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selfdistill.views.masks import MaskMaker, draw_masks
from selfdistill.views.views import ROLES

ENGINES = ("auto", "batched", "cpu")
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Augment:
    """A distribution over image transformations, drawn anew for every sample and view, in the order of the attributes.

    Every default leaves the image as it is. Probabilities lie in [0, 1]; colour operations work on values in [0, 1].

    Attributes:
        crop_scale: area of the random resized crop as a share of the image (low, high); null keeps the whole image.
        crop_ratio: width / height of that crop (low, high), drawn log-uniformly.
        interpolation: "bilinear" or "bicubic", of every resampling (antialiased where it shrinks).
        flip: probability of a horizontal flip.
        rotate: greatest rotation, degrees, either way.
        shift: greatest translation along each axis as a share of the side, either way.
        zoom: magnification (low, high).
        shear: greatest horizontal shear, degrees, either way.
        jitter: probability of the four colour operations below, in random order.
        brightness, contrast, saturation: greatest relative change; the factor is uniform in [1 - x, 1 + x].
        hue: greatest hue change as a share of the colour circle, either way, at most 0.5.
        grayscale: probability of dropping the colours.
        blur: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels of the view (low, high).
        solarize: probability of inverting all values from one half up.
        noise: standard deviation of the Gaussian noise added to values in [0, 1].
    """

    crop_scale: Sequence[float] | None = None
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    zoom: Sequence[float] = (1.0, 1.0)
    shear: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: Sequence[float] = (0.1, 2.0)
    solarize: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            _require(name, getattr(self, name), 0.0, 1.0)
        for name in ("brightness", "contrast", "saturation", "shift"):
            _require(name, getattr(self, name), 0.0, 1.0)
        _require("hue", self.hue, 0.0, 0.5)
        _require("rotate", self.rotate, 0.0, 180.0)
        _require("shear", self.shear, 0.0, 89.0)
        _require("noise", self.noise, 0.0, float("inf"))
        for name, high in (("crop_scale", 1.0), ("crop_ratio", None), ("zoom", None), ("blur_sigma", None)):
            limits = getattr(self, name)
            if limits is not None:
                object.__setattr__(self, name, _limits(name, limits, high))
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: {self.interpolation!r} given, allowed is {' or '.join(INTERPOLATIONS)}")

    @property
    def warps(self) -> bool:
        """Whether it moves pixels in another way than crop and flip."""
        return bool(self.rotate or self.shift or self.shear) or tuple(self.zoom) != (1.0, 1.0)

    @property
    def needs_colour(self) -> bool:
        """Whether an operation has no meaning on a single channel."""
        return self.saturation > 0 or self.hue > 0 or self.grayscale > 0


@dataclass(frozen=True)
class CropSpec:
    """`count` views of `size`² pixels drawn from one `augment`, each seen by the networks in `roles`."""

    size: int
    augment: Augment
    count: int = 1
    roles: Collection[str] = ROLES

    def __post_init__(self) -> None:
        _require("size", self.size, 1, float("inf"))
        _require("count", self.count, 1, float("inf"))
        unknown = [role for role in self.roles if role not in ROLES]
        if unknown or not self.roles:
            raise ValueError(f"roles: {list(self.roles)} given, allowed is at least one of {', '.join(ROLES)}")
        object.__setattr__(self, "roles", frozenset(self.roles))


class ViewRecipe:
    """The views of one sample, in order.

    Not a dataclass: Hydra would hand it on as a config of itself.

    Args:
        crops: what to make.
        engine: "batched" (all samples of a batch at once on the training device: in-memory images of one size), "cpu"
            (sample by sample in the loader's workers: any image file) or "auto" (batched wherever it can).
        masks: makes patch masks for the student's crops of the size of its first; none by default.
    """

    def __init__(self, crops: Sequence[CropSpec], engine: str = "auto", masks: MaskMaker | None = None) -> None:
        if not crops:
            raise ValueError("views: crops is empty; give at least one view")
        if engine not in ENGINES:
            raise ValueError(f"views: engine={engine!r} is not known; allowed: {', '.join(ENGINES)}")
        if not any("student" in spec.roles for spec in crops):
            raise ValueError("views: no view has the role student; give it to one at least")
        self.crops = tuple(crops)
        self.engine = engine
        self.masks = masks

    @property
    def flat(self) -> tuple[CropSpec, ...]:
        """One spec a view, the counts spelt out."""
        return tuple(spec for spec in self.crops for _ in range(spec.count))

    @property
    def roles(self) -> tuple[frozenset[str], ...]:
        """The roles of each view, as `Views.roles`."""
        return tuple(frozenset(spec.roles) for spec in self.flat)

    def draw_masks(self, index: Tensor, *, seed: int, epoch: int) -> dict[str, Tensor]:
        """`Views.masks` of the batch of samples `index` [B]; to be called where the batch is loaded."""
        if self.masks is None:
            return {}
        sizes = [spec.size for spec in self.flat if "student" in spec.roles]
        return draw_masks(self.masks, index, sizes.count(sizes[0]), seed=seed, epoch=epoch)

    def check_channels(self, channels: int) -> None:
        """Refuse colour operations on images without colours."""
        if channels == 1 and any(spec.augment.needs_colour for spec in self.crops):
            raise ValueError(
                "views change colours (saturation, hue or grayscale), but the images have 1 channel; "
                "set those to 0, or choose views without them"
            )


def _require(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value <= high:
        allowed = f"{low} to {high}" if high != float("inf") else f"{low} or more"
        raise ValueError(f"{name}: {value} given, allowed is {allowed}")


def _limits(name: str, limits: Sequence[float], high: float | None) -> tuple[float, float]:
    if len(limits) != 2 or not 0 < limits[0] <= limits[1] or (high is not None and limits[1] > high):
        bound = "" if high is None else f" <= {high}"
        raise ValueError(f"{name}: {list(limits)} given, allowed is [low, high] with 0 < low <= high{bound}")
    return float(limits[0]), float(limits[1])
