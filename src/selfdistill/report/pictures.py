"""What a run shows of images: made where the networks are, stored in ``pictures/``, put on the page by ``panels``.

``pictures/panels.json`` says what lies where on the sheets beside it, and why a panel is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from selfdistill.data import DataModule
from selfdistill.evaluation.features import evaluating, extract_features
from selfdistill.files import write_text
from selfdistill.methods import SelfDistillModule
from selfdistill.report.attention import attention_maps, coloured
from selfdistill.report.embedding import embedding_map
from selfdistill.report.neighbours import nearest
from selfdistill.report.sheet import as_tiles, save_sheet, tile_side
from selfdistill.report.view_tiles import first_views

# Images at most: rows of views; of attention; searched for neighbours; searched with, and on the map.
_VIEWED, _ATTENDED, _BANK, _TESTS = 4, 6, 5000, 1000
_TYPICAL, _MISTAKES, _NEIGHBOURS, _HEADS = 5, 3, 5, 6


def make_views(datamodule: DataModule, folder: Path) -> None:
    """Store the views of the first images in the run's ``folder``."""
    titles, columns = first_views(datamodule, min(_VIEWED, datamodule.num_train))
    side = tile_side(max(column.shape[-1] for column in columns), 96)
    tiles = torch.stack([as_tiles(column, side) for column in columns], 1)
    _add(folder, {"views": save_sheet(_pictures(folder), "views", tiles) | {"titles": titles}})


def make_pictures(module: SelfDistillModule[Any, Any], datamodule: DataModule, folder: Path) -> None:
    """Store views, neighbours, embedding map and attention of a trained module in the run's ``folder``.

    Args:
        module: not sharded, on the device where it computes.
        datamodule: its data.
        folder: of the run.
    """
    left_out: dict[str, str] = {}
    with evaluating(module):
        if datamodule.labelled:
            compared = _Compared(module, datamodule)
            images = compared.tests(_even(compared.of_tests, _ATTENDED))
        else:
            left_out |= dict.fromkeys(("neighbours", "embedding"), "the data has no labels")
            compared = None
            images = datamodule.whole_images(_even(datamodule.num_train, _ATTENDED))
        mean, std = (torch.tensor(v)[:, None, None] for v in (datamodule.source.mean, datamodule.source.std))
        attended = attention_maps(module.evaluated_tower.backbone, ((images - mean) / std).to(module.device))
    if attended is None:
        left_out["attention"] = "the backbone has no attention that can be read"
    make_views(datamodule, folder)
    found: dict[str, Any] = {"left_out": left_out}
    if compared is not None:
        found |= compared.panels(folder)
    if attended is not None:
        found["attention"] = _attention(images, *attended, folder)
    _add(folder, found)


class _Compared:
    """Features of training and test images, and these images."""

    def __init__(self, module: SelfDistillModule[Any, Any], datamodule: DataModule) -> None:
        self.source, self.size = datamodule.source, datamodule.image_size
        self._loaders = datamodule.evaluation_loader("train"), datamodule.evaluation_loader("test")
        sizes = [len(loader.dataset) for loader in self._loaders]  # type: ignore[arg-type]
        self._rows = [_even(size, most) for size, most in zip(sizes, (_BANK, _TESTS), strict=True)]
        (self.bank, self.bank_labels), (self.features, self.labels) = (
            extract_features(module.embed, _some(loader, rows), module.device)
            for loader, rows in zip(self._loaders, self._rows, strict=True)
        )

    @property
    def of_tests(self) -> int:
        return len(self.features)

    def trained(self, rows: Tensor) -> Tensor:
        """``[len(rows), C, size, size]`` in [0, 1]: images of the bank."""
        return self._images(0, rows)

    def tests(self, rows: Tensor) -> Tensor:
        """``[len(rows), C, size, size]`` in [0, 1]: test images."""
        return self._images(1, rows)

    def panels(self, folder: Path) -> dict[str, Any]:
        shown = nearest(
            *(self.bank, self.bank_labels, self.features, self.labels),
            typical=_TYPICAL,
            mistakes=_MISTAKES,
            k=_NEIGHBOURS,
        )
        side = tile_side(self.size, 64)
        queries = as_tiles(self.tests(shown.queries), side)
        found = as_tiles(self.trained(shown.found.flatten()), side).unflatten(0, shown.found.shape)
        neighbours = save_sheet(_pictures(folder), "neighbours", torch.cat([queries[:, None], found], 1)) | {
            "typical": shown.typical,
            "mistaken": round(shown.mistaken, 4),
            "labels": torch.cat([self.labels[shown.queries][:, None], self.bank_labels[shown.found]], 1).tolist(),
            "similarity": [[round(value, 3) for value in row] for row in shown.similarity.tolist()],
            "bank": len(self.bank),
            "tests": len(self.features),
        }
        return {"neighbours": neighbours, "embedding": embedding_map(self.features, self.labels)}

    def _images(self, split: int, rows: Tensor) -> Tensor:
        wanted, place = self._rows[split][rows].unique(return_inverse=True)
        images = torch.cat([batch for batch, _ in _some(self._loaders[split], wanted)])[place]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.source.mean, self.source.std))
        return images * std + mean


def _attention(images: Tensor, maps: Tensor, who: str, folder: Path) -> dict[str, Any]:
    heads = min(_HEADS, maps.shape[1])
    shown = torch.cat([maps.mean(1, keepdim=True), maps[:, :heads]], 1)
    side = tile_side(images.shape[-1], 96)
    grid = F.interpolate(coloured(shown).flatten(0, 1), size=(side, side), mode="nearest-exact")
    tiles = torch.cat([as_tiles(images, side)[:, None], grid.unflatten(0, shown.shape[:2])], 1)
    titles = ["image", f"mean of {maps.shape[1]}", *(f"head {place + 1}" for place in range(heads))]
    return save_sheet(_pictures(folder), "attention", tiles) | {"titles": titles, "who": who}


def _pictures(folder: Path) -> Path:
    return folder / "pictures"


def _even(size: int, most: int) -> Tensor:
    """``most`` of ``range(size)`` at even distances, all where there are no more."""
    return torch.arange(min(size, most)) * size // min(size, most)


def _some(loader: DataLoader[tuple[Tensor, Tensor]], rows: Tensor) -> DataLoader[tuple[Tensor, Tensor]]:
    """A loader of some rows of ``loader``'s data."""
    return DataLoader(
        Subset(loader.dataset, rows.tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )


def _add(folder: Path, panels: Mapping[str, Any]) -> None:
    """Panels of these names are replaced, the others stay."""
    file = _pictures(folder) / "panels.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_text(file, json.dumps(known | dict(panels)) + "\n")
