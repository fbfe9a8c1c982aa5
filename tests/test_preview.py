"""The picture of the views: what is where in it, and what masks look like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.data import DataModule, Digits
from selfdistill.preview import drawn
from selfdistill.report.view_tiles import mask_covers
from selfdistill.views import Augment, CropSpec, ViewRecipe, Views
from selfdistill.views.masks import MultiBlockMask, RandomMask

ROOT = Path(__file__).parents[1]


def test_views_that_change_nothing_are_the_stored_image() -> None:
    plain = Augment(crop_scale=None, flip=0.0)
    data = DataModule(Digits(), ViewRecipe([CropSpec(8, plain, count=2)]), batch_size=3)
    picture = np.asarray(drawn(data))
    side = 14 * 8
    assert picture.shape == (32 + 3 * (side + 6), 6 + 3 * (side + 6), 3)
    stored, first, second = (picture[32:, 6 + n * (side + 6) :][:, :side] for n in range(3))
    assert np.array_equal(stored, first)
    assert np.array_equal(stored, second)
    (views,) = [data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)]
    expected = data.whole_images(views.index)[0, 0].mul(255).round().byte()
    assert np.array_equal(stored[7:side:14, 7::14, 0][:8], expected.numpy())


def test_hidden_patches_are_covered() -> None:
    maker = RandomMask((2, 2), 0.5)
    mask = torch.tensor([[[True, False, False, True]], [[False, True, True, False]]])
    crops = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)]
    views = Views(crops, (frozenset({"teacher", "student"}),) * 2 + (frozenset({"student"}),), masks={"mask": mask})
    covers = mask_covers(views, ViewRecipe([CropSpec(4, Augment())], masks=maker))
    assert set(covers) == {0, 1}
    for place, hidden in ((0, mask[0, 0]), (1, mask[1, 0])):
        assert torch.equal(covers[place][0, 3, ::2, ::2] > 0.5, hidden.view(2, 2))
        assert torch.equal(covers[place][0, :, ::2, ::2], covers[place][0, :, 1::2, 1::2])


def test_blocks_to_predict_are_coloured_and_the_context_is_as_it_is() -> None:
    masks = {"context": torch.tensor([[0]]), "targets": torch.tensor([[[1], [2]]])}
    views = Views([torch.zeros(1, 1, 4, 4)], (frozenset({"teacher", "student"}),), masks=masks)
    maker = MultiBlockMask((2, 2), 2, (0.25, 0.25), (1.0, 1.0), (1.0, 1.0), 1)
    cover = mask_covers(views, ViewRecipe([CropSpec(4, Augment())], masks=maker))[0][0, :, ::2, ::2]
    assert cover[3, 0, 0] == 0
    colours = [tuple(cover[:3, row, column].tolist()) for row, column in ((0, 1), (1, 0), (1, 1))]
    assert len(set(colours)) == 3
    assert cover[3, 1, 1] > 0.5  # neither context nor asked for


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("output=x.jpg", "output: 'x.jpg' given, allowed is a name that ends in .png"),
        ("views=nope", "did you mean dino"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(given: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "src.preview", given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_writes_the_picture(tmp_path: Path) -> None:
    output = tmp_path / "ü a" / "views.png"
    command = [sys.executable, "-m", "src.preview", "views=ibot", "images=2", f"output='{output}'"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("batched engine, 4 views an image    written: ")
    with Image.open(output) as picture:
        assert picture.size[0] > picture.size[1] > 200
    assert [path.name for path in output.parent.iterdir()] == ["views.png"]
