"""What the page shows of images: made from the right images and features, and drawn where it belongs."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from selfdistill.assembly import build_data, build_method
from selfdistill.networks.timm_backbones import as_backbone, build_backbone
from selfdistill.report import write_report
from selfdistill.report.attention import attention_maps, coloured
from selfdistill.report.embedding import embedding_map
from selfdistill.report.neighbours import nearest
from selfdistill.report.pictures import make_pictures, make_views
from selfdistill.report.scatter import scatter
from selfdistill.report.sheet import GAP, as_tiles, save_sheet, tile_side
from selfdistill.report.view_tiles import first_views


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last_block_attention(vit: Any, images: Tensor) -> Tensor:
    """[B, heads, N, N], from the weights alone."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block in vit.blocks[:-1]:
        x = block(x)
    x = vit.blocks[-1].norm1(x)
    layer = vit.blocks[-1].attn
    query, key, _ = layer.qkv(x).chunk(3, -1)
    heads = layer.num_heads
    q, k = (layer.get_submodule(n)(t.unflatten(2, (heads, -1))) for n, t in (("q_norm", query), ("k_norm", key)))
    return (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)


def test_attention_is_that_of_the_last_block_and_leaves_no_trace() -> None:
    backbone = build_backbone("small_vit", channels=1, image_size=8, patch_size=2).eval()
    images = randn(3, 1, 8, 8)
    before = backbone(images).pooled
    fused = backbone.model.blocks[-1].attn.fused_attn
    found = attention_maps(backbone, images)
    assert found is not None
    maps, who = found
    expected = last_block_attention(backbone.model, images)[:, :, 0, 1:].unflatten(2, (4, 4))
    torch.testing.assert_close(maps, expected)
    assert who == "class token"
    assert torch.equal(backbone(images).pooled, before)
    layer = backbone.model.blocks[-1].attn
    assert layer.fused_attn is fused
    assert not layer.attn_drop._forward_pre_hooks


def test_attention_without_a_class_token_is_the_mean_over_patches() -> None:
    import timm

    model: Any = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, class_token=False, global_pool="avg", depth=2
    )
    backbone = as_backbone(model).eval()
    images = randn(2, 3, 32, 32)
    found = attention_maps(backbone, images)
    assert found is not None
    maps, who = found
    torch.testing.assert_close(maps, last_block_attention(model, images).mean(2).unflatten(2, (2, 2)))
    assert who == "mean over patches"


def test_a_backbone_without_attention_has_no_maps() -> None:
    assert attention_maps(build_backbone("small_cnn", channels=1), torch.zeros(1, 1, 8, 8)) is None


def test_colours_go_from_a_maps_least_to_its_largest() -> None:
    shown = coloured(torch.tensor([[[0.0, 0.5], [0.5, 1.0]], [[10.0, 20.0], [30.0, 50.0]]]))
    assert torch.equal(shown[0, :, 0, 0], shown[1, :, 0, 0])
    assert torch.equal(shown[0, :, 1, 1], shown[1, :, 1, 1])
    assert shown[0, :, 1, 1].sum() > shown[0, :, 0, 1].sum() > shown[0, :, 0, 0].sum()
    assert not coloured(torch.ones(1, 2, 2)).isnan().any()


@pytest.mark.parametrize("shape", [(60, 8), (20, 32)])
def test_the_map_is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    features, labels = randn(*shape), torch.arange(shape[0]) % 3
    found = embedding_map(features, labels)
    reference = PCA(2).fit(torch.nn.functional.normalize(features).double().numpy())
    expected = reference.transform(torch.nn.functional.normalize(features).double().numpy())
    points = np.array(found["pca"])
    for axis in (0, 1):
        sign = np.sign(points[:, axis] @ expected[:, axis])
        np.testing.assert_allclose(points[:, axis], sign * expected[:, axis], atol=2e-3)
        assert points[np.abs(points[:, axis]).argmax(), axis] > 0
    np.testing.assert_allclose(found["explained"], reference.explained_variance_ratio_, atol=1e-3)
    assert found["classes"] == labels.tolist()
    assert len(found["tsne"]) == shape[0]
    assert found == embedding_map(features, labels)


def test_t_sne_keeps_groups_apart() -> None:
    labels = torch.arange(60) % 3
    features = torch.eye(8)[labels] + 0.05 * randn(60, 8)
    points = np.array(embedding_map(features, labels)["tsne"])
    distance, place = NearestNeighbors(n_neighbors=6).fit(points).kneighbors()
    assert distance.min() > 0
    assert (labels.numpy()[place] == labels.numpy()[:, None]).all()


@pytest.mark.parametrize("features", [torch.ones(40, 4), torch.zeros(40, 4), torch.full((40, 4), torch.nan)])
def test_a_collapse_is_a_point(features: Tensor) -> None:
    found = embedding_map(features, torch.arange(40) % 2)
    assert found["tsne"] is None
    assert found["explained"] == []
    assert np.abs(found["pca"]).max() < 1e-3
    assert "nan" not in scatter("t", ("a", "b"), found["pca"], found["classes"])


def test_neighbours_are_the_nearest_and_mistakes_the_surest() -> None:
    bank, tests = randn(50, 6), randn(30, 6, seed=1)
    bank_labels, labels = torch.arange(50) % 4, torch.arange(30) % 4
    found = nearest(bank, bank_labels, tests, labels, typical=3, mistakes=2, k=4)
    distance, place = NearestNeighbors(n_neighbors=4, metric="cosine").fit(bank.numpy()).kneighbors(tests.numpy())
    assert torch.equal(found.found, torch.from_numpy(place)[found.queries])
    np.testing.assert_allclose(found.similarity, 1 - distance[found.queries], atol=1e-5)
    assert labels[found.queries[:3]].tolist() == [0, 2, 3]
    wrong = bank_labels[place[:, 0]] != labels
    assert found.mistaken == pytest.approx(wrong.double().mean().item())
    best = sorted(wrong.nonzero()[:, 0].tolist(), key=lambda row: distance[row, 0])[:2]
    assert found.queries[3:].tolist() == best
    none = nearest(bank, bank_labels, bank, bank_labels, typical=9, mistakes=2, k=99)
    assert none.found.shape == (4, 50)
    assert none.mistaken == 0


def test_a_sheet_keeps_small_pixels_and_stores_photographs_small(tmp_path: Path) -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    side = tile_side(8, 96)
    assert (side, tile_side(32, 96), tile_side(64, 96), tile_side(224, 96)) == (48, 64, 64, 96)
    entry = save_sheet(tmp_path, "small", as_tiles(images, side).unflatten(0, (2, 3)))
    assert entry == {"sheet": "small.png", "tile": 48, "rows": 2, "columns": 3}
    stored = np.asarray(Image.open(tmp_path / "small.png"))
    assert stored.shape == (2 * (48 + GAP), 3 * (48 + GAP), 3)
    last = stored[48 + GAP :, 2 * (48 + GAP) :][3:48:6, 3:48:6, 0]
    assert np.array_equal(last, images[5, 0].mul(255).round().byte().numpy())
    noise = torch.rand(44, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    large = save_sheet(tmp_path, "large", as_tiles(noise, 96).unflatten(0, (4, 11)))
    assert large["sheet"] == "large.jpg"
    assert (tmp_path / "large.jpg").stat().st_size < 600_000
    assert as_tiles(torch.rand(1, 5, 4, 4), 48).shape == (1, 3, 48, 48)


def test_the_views_are_those_of_the_first_step(compose: Any) -> None:
    data = build_data(compose("method=ibot_like"))
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    loader = data.train_dataloader()
    titles, columns = first_views(data, 3)
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert data._train_loader is loader
    assert data.batch_size > 3
    views = data.on_after_batch_transfer(next(iter(loader)), 0)
    assert torch.equal(columns[0], data.whole_images(views.index[:3]))
    assert titles[1:] == ["global 8x8\nstudent + teacher"] * 2 + ["local 6x6\nstudent"] * 2
    mean, std = data.source.mean[0], data.source.std[0]
    torch.testing.assert_close(columns[3], (views.crops[2][:3] * std + mean).clamp(0, 1))
    # a masked patch has the colour of a mask, another one is as it was
    masks = data.recipe.draw_masks(views.index[:3], seed=data.seed, epoch=0)["mask"]
    masked = masks[1].view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert masked.any()
    plain = (views.crops[1][:3] * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)
    changed = (columns[2] != plain).any(1, keepdim=True)
    assert torch.equal(changed, masked)


@pytest.mark.parametrize("method", ["byol_like", "ibot_like"])
def test_the_page_has_every_panel_that_the_run_can_fill(method: str, compose: Any, tmp_path: Path) -> None:
    config = compose(f"method={method}")
    module, data = build_method(config), build_data(config)
    modes = [part.training for part in module.modules()]
    state = torch.get_rng_state()
    make_pictures(module, data, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path)}))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(text) < 300_000
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles[:3] == ["Views and masks", "Nearest neighbours", "Embedding map"]
    assert ("Attention" in titles) is (method == "ibot_like")
    assert ("attention (the backbone has no attention that can be read)" in text) is (method == "byol_like")
    for name in set(re.findall(r'href="#(sheet-\w+)"', text)):
        (size,) = re.findall(rf'<image id="{name}" width="(\d+)" height="(\d+)" href="data:image/png;base64,', text)
        boxes = re.findall(rf'viewBox="(\d+) (\d+) (\d+) (\d+)"[^>]*><use href="#{name}"/>', text)
        assert len(boxes) >= 12
        assert len(set(boxes)) == len(boxes)
        for left, top, width, height in (map(int, box) for box in boxes):
            assert left + width <= int(size[0])
            assert top + height <= int(size[1])
    panels = json.loads((tmp_path / "pictures" / "panels.json").read_text())
    assert len(panels["embedding"]["pca"]) == len(panels["embedding"]["tsne"]) == panels["neighbours"]["tests"]
    assert panels["neighbours"]["bank"] == data.num_train
    # the tile at a query's place is that test image
    sheet = np.asarray(Image.open(tmp_path / "pictures" / "neighbours.png"))
    test_images, test_labels = next(iter(data.evaluation_loader("test")))
    first = int((test_labels == panels["neighbours"]["labels"][0][0]).nonzero()[0, 0])
    pixels = (test_images[first, 0] * data.source.std[0] + data.source.mean[0]).mul(255).round().byte()
    assert np.array_equal(sheet[3:48:6, 3:48:6, 0], pixels.numpy())


def test_data_without_labels_has_views_and_attention(compose: Any, tmp_path: Path) -> None:
    config = compose("method=ibot_like")
    data = build_data(config)
    data._split("train").labels.fill_(-1)
    make_pictures(build_method(config), data, tmp_path)
    panels = json.loads((tmp_path / "pictures" / "panels.json").read_text())
    assert panels.keys() == {"views", "attention", "left_out"}
    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path)}))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Left out: nearest neighbours, embedding map (the data has no labels)." in text


def test_views_alone_are_shown_while_a_run_goes_on(compose: Any, tmp_path: Path) -> None:
    make_views(build_data(compose()), tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path)}))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h2>Views and masks</h2>" in text
    assert "Left out: nearest neighbours, embedding map, attention (the run stored no pictures for it" in text
    (tmp_path / "pictures" / "views.png").unlink()
    assert "<h2>Views and masks</h2>" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_further_classes_are_grey() -> None:
    classes = [label for label in range(13) for _ in range(13 - label)]
    text = scatter("t", ("a", "b"), [[float(p), float(p % 7)] for p in range(len(classes))], classes)
    assert len(re.findall(r"stroke:var\(--k\d\)", text)) == 10
    (grey,) = re.findall(r'stroke:var\(--rule\)" d="([^"]*)"', text)
    assert grey.count("M") == 3 + 2 + 1
    assert re.findall(r">(\d+)</text>", text) == [str(label) for label in range(10)]
