"""Paper recipes, over conf/experiment/*.yaml: each composes and builds at full size (on the meta device: no memory),
and those in the table have the numbers that follow from the paper. A new file needs no edit here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from trainers import bare_trainer

from selfdistill.assembly import build_data, build_method
from selfdistill.config import CONF, Checked, UserError, check
from selfdistill.failures import clear_errors
from selfdistill.schedules import Clock
from selfdistill.views import Views

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))

IMAGENET = 1_281_167


def linear(inputs: int, outputs: int, *, bias: bool = True, norm: bool = False) -> int:
    """Parameters of a linear layer, with the scale and shift of a batch norm behind it."""
    return inputs * outputs + outputs * bias + 2 * outputs * norm


def vit(dim: int, depth: int, patch: int, tokens: int, *, token: bool = True, scale: bool = False) -> int:
    """Parameters of a ViT: blocks of 12 D² + 13 D (and two layer scales), patches, positions, token, last norm."""
    blocks = depth * (12 * dim**2 + 13 * dim + 2 * dim * scale)
    return blocks + linear(3 * patch**2, dim) + (tokens + token) * dim + token * dim + 2 * dim


def dino_head(dim: int, bottleneck: int, prototypes: int) -> int:
    """Three layers of 2048, prototypes, the length of each."""
    return linear(dim, 2048) + linear(2048, 2048) + linear(2048, bottleneck) + prototypes * (bottleneck + 1)


def ema_head(dim: int, outputs: int) -> int:
    return linear(dim, 2048, norm=True) + linear(2048, outputs, bias=False, norm=True)


RESNET50 = 25_557_032 - linear(2048, 1000)  # torchvision's figure for the classifier
VIT_S = vit(384, 12, 16, 196)

STILL, COSINE, QUICK = (0.999,) * 3, (0.996, 0.998, 1.0), (0.99, 0.995, 1.0)
DECAY = (0.04, 0.22, 0.4)  # half a cosine
WARM = (0.04, 0.055, 0.07)


@dataclass(frozen=True)
class Paper:
    """What follows from a paper; curves at 0, ½ and 1 of the run.

    ``rates``: learning rate at step 0, at the end of the warm-up (``warmup`` epochs) and at the end of the run.
    ``temperature``: the teacher's after 0, 15 and 30 epochs. ``beside``: parameters that the teacher does not mirror.
    """

    batch: int
    epochs: int
    warmup: int
    rates: tuple[float, float, float]
    decay: tuple[float, ...]
    momentum: tuple[float, ...] | None
    backbone: int
    head: int
    crops: dict[int, int]  # how many of which size
    tokens: dict[int, int] | None = None  # patches of a crop by its size
    beside: int = 0
    temperature: tuple[float, ...] | None = None
    epoch: int | None = None  # steps; None is one pass over ImageNet
    queue: tuple[int, int] | None = None
    prototypes: tuple[int, int] | None = None


MOCO_HEAD = linear(2048, 2048) + linear(2048, 128)
MOCO_V2 = Paper(256, 200, 0, (0.03, 0.03, 0.0), (1e-4,) * 3, STILL, RESNET50, MOCO_HEAD, {224: 2}, queue=(65_536, 128))
PAPERS = {
    "byol_imagenet_r50": Paper(
        4096, 1000, 10, (0.0, 3.2, 0.0), (1.5e-6,) * 3, COSINE, RESNET50,
        linear(2048, 4096, norm=True) + linear(4096, 256, bias=False), {224: 2},
        beside=linear(256, 4096, norm=True) + linear(4096, 256, bias=False),
    ),
    "mocov2_imagenet_r50": MOCO_V2,
    "co2_imagenet_r50": MOCO_V2,
    "mocov3_imagenet_r50": Paper(
        4096, 100, 10, (0.0, 9.6, 0.0), (1e-6,) * 3, QUICK, RESNET50,
        linear(2048, 4096, bias=False, norm=True) + linear(4096, 256, bias=False), {224: 2},
        beside=linear(256, 4096, bias=False, norm=True) + linear(4096, 256, bias=False),
    ),
    "mocov3_imagenet_vits16": Paper(
        4096, 300, 40, (0.0, 2.4e-3, 0.0), (0.1,) * 3, QUICK, VIT_S,
        linear(384, 4096, bias=False, norm=True) + linear(4096, 4096, bias=False, norm=True)
        + linear(4096, 256, bias=False), {224: 2}, {224: 196},
        beside=linear(256, 4096, bias=False, norm=True) + linear(4096, 256, bias=False),
    ),
    "simsiam_imagenet_r50": Paper(
        256, 100, 0, (0.05, 0.05, 0.0), (1e-4,) * 3, None, RESNET50,
        2 * linear(2048, 2048, bias=False, norm=True) + linear(2048, 2048, bias=False), {224: 2},
        beside=linear(2048, 512, bias=False, norm=True) + linear(512, 2048),
    ),
    "ressl_imagenet_r50": Paper(
        256, 200, 5, (0.0, 0.05, 0.0), (1e-4,) * 3, STILL, RESNET50,
        linear(2048, 4096) + linear(4096, 512), {224: 2}, queue=(131_072, 512),
    ),
    "swav_imagenet_r50": Paper(
        4096, 800, 10, (0.3, 4.8, 4.8e-3), (1e-6,) * 3, None, RESNET50,
        linear(2048, 2048, norm=True) + linear(2048, 128), {224: 2, 96: 6},
        beside=3000 * 128, prototypes=(3000, 128),
    ),
    "dino_imagenet_vits16": Paper(
        1024, 300, 10, (0.0, 2e-3, 1e-6), DECAY, COSINE, VIT_S, dino_head(384, 256, 65_536),
        {224: 2, 96: 8}, {224: 196, 96: 36}, temperature=WARM, prototypes=(65_536, 256),
    ),
    "ibot_imagenet_vits16": Paper(
        1024, 800, 10, (0.0, 2e-3, 1e-6), DECAY, COSINE, VIT_S, dino_head(384, 256, 8192),
        {224: 2, 96: 10}, {224: 196, 96: 36}, beside=384, temperature=WARM, prototypes=(8192, 256),
    ),
    "dinov2_imagenet_vitl16": Paper(
        2048, 100, 10, (0.0, 4e-3 * sqrt(2), 1e-6), DECAY, (0.992, 0.996, 1.0), vit(1024, 24, 16, 196, scale=True),
        dino_head(1024, 256, 65_536), {224: 2, 96: 8}, {224: 196, 96: 36}, beside=1024, temperature=WARM, epoch=1250,
        prototypes=(65_536, 256),
    ),
    "dinov2_imagenet22k_vitl14": Paper(
        3072, 500, 80, (0.0, 2e-4 * sqrt(3), 1e-6), (0.04, 0.12, 0.2), (0.994, 0.997, 1.0),
        vit(1024, 24, 14, 256, scale=True), 2 * dino_head(1024, 384, 131_072), {224: 2, 98: 8}, {224: 256, 98: 49},
        beside=1024, temperature=WARM, epoch=1250, prototypes=(131_072, 384),
    ),
    "msn_imagenet_vits16": Paper(
        1024, 800, 15, (2e-4, 1e-3, 1e-6), DECAY, (0.996, 0.9976, 0.9992), VIT_S,
        linear(384, 2048, norm=True) + linear(2048, 2048, norm=True) + linear(2048, 256),
        {224: 2, 96: 10}, {224: 196, 96: 36}, beside=1024 * 256, prototypes=(1024, 256),
    ),
    "data2vec_imagenet_vitb16": Paper(
        2048, 800, 10, (0.0, 2e-3, 0.0), (0.05,) * 3, (0.999, 0.9994, 0.9998), vit(768, 12, 16, 196), 0,
        {224: 1}, {224: 196}, beside=linear(768, 768) + 768,
    ),
    "ijepa_imagenet_vith14": Paper(
        2048, 300, 40, (2e-4, 1e-3, 1e-6), DECAY, COSINE, vit(1280, 32, 14, 256, token=False), 0, {224: 1}, {224: 256},
        # its blocks and norm, the way in and out, the mask token
        beside=12 * (12 * 384**2 + 13 * 384) + 2 * 384 + linear(1280, 384) + linear(384, 1280) + 384,
    ),
    "multi_head_imagenet_r50": Paper(
        256, 100, 5, (0.0, 1e-3, 0.0), (0.05,) * 3, (0.0, 0.999, 0.999), RESNET50,
        sum(ema_head(dim, 256) for dim in (256, 512, 1024, 2048)), {224: 2},
    ),
    "mean_teacher_cifar10": Paper(
        512, 180, 0, (0.2, 0.2, 0.0), (2e-4,) * 3, (0.0, 0.97, 0.97),
        11_689_512 - linear(512, 1000) - (7**2 - 3**2) * 3 * 64, ema_head(512, 10), {32: 2}, beside=linear(512, 10),
    ),
}  # fmt: skip


@cache
def checked(name: str) -> Checked:
    """What the command composes, with some folder in the place of that of the images."""
    return check("train", [f"experiment={name}", f"data.root={CONF}"])


def recipe(name: str) -> DictConfig:
    return checked(name).config


@cache
def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return build_method(recipe(name))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def clock(paper: Paper, epochs: float) -> Clock:
    epoch = paper.epoch or IMAGENET // paper.batch
    return Clock(round(epochs * epoch), paper.epochs * epoch, epoch)


def curve(schedule: Any, paper: Paper) -> list[float]:
    return [schedule(clock(paper, share * paper.epochs)) for share in (0, 0.5, 1)]


def test_every_method_has_a_recipe() -> None:
    known = {OmegaConf.load(CONF / "method" / f"{name}.yaml").method._target_ for name in METHODS}
    assert {recipe(name).method._target_ for name in EXPERIMENTS} == known


@pytest.mark.parametrize("name", EXPERIMENTS)
class TestEveryRecipe:
    def test_passes_the_check_without_a_warning(self, name: str) -> None:
        assert checked(name).warnings == []

    def test_builds_at_full_size(self, name: str) -> None:
        module = on_meta(name)
        tensors = [*module.parameters(), *module.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        optimizer = module.optimizer_recipe.build(
            module.trained_parameters(), module.parameter_roles(), batch_size=module.optimizer_recipe.reference_batch
        )
        held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        assert held == sum(p.numel() for p in module.parameters() if p.requires_grad)

    def test_its_gpus_make_up_the_papers_batch(self, name: str) -> None:
        config = recipe(name)
        run = config.trainer
        gpus = run.devices * run.num_nodes
        assert config.data.batch_size * gpus * run.accumulate_grad_batches == config.method.paper.batch_size
        assert gpus == 1 or run.strategy == "ddp"

    def test_batch_statistics_are_those_of_all_gpus(self, name: str) -> None:
        run = recipe(name).trainer
        normed = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in on_meta(name).modules())
        assert run.get("sync_batchnorm", False) == (normed and run.devices > 1)

    def test_its_trainer_can_be_made(self, name: str) -> None:
        ours = {key: value for key, value in recipe(name).trainer.items() if key != "activation_checkpointing"}
        settings = {"precision": "32-true", "logger": False, "callbacks": []}  # 16-mixed is a GPU's
        trainer = instantiate(ours, **settings)
        assert isinstance(trainer, L.Trainer)
        assert trainer.max_epochs != -1 or trainer.max_steps > 0

    def test_without_its_images_it_is_refused_in_one_line(self, name: str, tmp_path: Path) -> None:
        for root in (None, str(tmp_path)):
            config = recipe(name).copy()
            config.data.root = root
            OmegaConf.resolve(config)
            with pytest.raises(UserError, match=r"data.root[:=]") as refusal, clear_errors():
                build_data(config)
            assert "\n" not in str(refusal.value)

    def test_the_command_line_wins(self, name: str) -> None:
        other = "byol_like" if "dino" in name else "dino_like"
        overrides = [f"method={other}", "data=digits", "backbone=resnet18", "data.batch_size=3", "trainer.devices=1"]
        config = check("train", [f"experiment={name}", *overrides]).config
        assert config.method._target_.rpartition(".")[2] == {"byol_like": "BYOL", "dino_like": "DINO"}[other]
        assert config.data.source._target_ == "selfdistill.data.Digits"
        assert config.backbone.name == "resnet18"
        assert (config.data.batch_size, config.trainer.devices) == (3, 1)
        with torch.device("meta"):
            build_method(config)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", METHODS)
    def test_its_method_can_be_another(self, name: str, method: str) -> None:
        """What the recipe sets of its own method stays behind; the rest is the recipe's."""
        config = check("train", [f"experiment={name}", f"method={method}", f"data.root={CONF}"]).config
        assert config.method._target_ == OmegaConf.load(CONF / "method" / f"{method}.yaml").method._target_
        assert config.trainer == recipe(name).trainer
        with torch.device("meta"):
            build_method(config)


def test_experiments_may_build_on_ours(tmp_path: Path) -> None:
    """What a recipe says of its own method comes along, and two experiments go together."""
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [dino_imagenet_vits16, _self_]\nseed: 7\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "experiment" / "tweak.yaml").write_text("# @package _global_\nseed: 8\n", encoding="utf-8")
    where = {"search_path": [f"file://{tmp_path}"]}
    for experiment, seed in (("mine", 7), ("[dino_imagenet_vits16,tweak]", 8)):
        config = check("train", [f"experiment={experiment}", f"data.root={CONF}"], **where).config
        assert (config.method.norm_last_layer, config.seed, config.trainer.devices) == (False, seed, 8)


@pytest.mark.parametrize("name", PAPERS)
class TestPapersNumbers:
    def test_learning_rate(self, name: str) -> None:
        paper, settings = PAPERS[name], instantiate(recipe(name).optimizer)
        weight = nn.Parameter(torch.zeros(2, 2))
        roles = {"prototypes": [], "predictor": [], "last_layer": [], "patch_embed": []}
        named = [("student.backbone.blocks.0.weight", weight), ("head.weight", nn.Parameter(torch.zeros(2, 2)))]
        optimizer = settings.build(named, roles, batch_size=paper.batch)
        group = next(group for group in optimizer.param_groups if group["lr_factor"] == 1.0)
        rates, decays = [], []
        for epochs in (0, paper.warmup, paper.epochs / 2, paper.epochs):
            settings.apply(optimizer, clock(paper, epochs))
            rates.append(group["lr"])
            decays.append(group["weight_decay"])
        assert (rates[0], rates[1], rates[3]) == pytest.approx(paper.rates, rel=1e-9, abs=1e-12)
        assert (decays[0], decays[2], decays[3]) == pytest.approx(paper.decay, rel=1e-9)

    def test_length(self, name: str) -> None:
        paper, run = PAPERS[name], recipe(name).trainer
        if paper.epoch is None:
            assert (run.max_epochs, run.max_steps) == (paper.epochs, -1)
        else:
            assert (run.max_epochs, run.max_steps) == (-1, paper.epochs * paper.epoch)

    def test_momentum(self, name: str) -> None:
        paper, policy = PAPERS[name], instantiate(recipe(name).teacher)
        if paper.momentum is None:
            assert policy.source == "none"
            return
        assert curve(policy.schedule, paper) == pytest.approx(paper.momentum, rel=1e-9)

    def test_teacher_temperature(self, name: str) -> None:
        paper, module = PAPERS[name], on_meta(name)
        if paper.temperature is None:
            constant = getattr(module, "teacher_temperature", None)
            assert constant is None or constant(clock(paper, 0)) == constant(clock(paper, paper.epochs))
            return
        for schedule in (module.teacher_temperature, getattr(module, "patch_temperature", module.teacher_temperature)):
            values = [schedule(clock(paper, epochs)) for epochs in (0, 15, 30)]
            assert values == pytest.approx(paper.temperature, rel=1e-9)
            assert schedule(clock(paper, paper.epochs)) == paper.temperature[-1]

    def test_sizes(self, name: str) -> None:
        paper, module = PAPERS[name], on_meta(name)
        assert size(module.student.backbone) == paper.backbone
        assert size(module.student.head) == paper.head
        mirrored = 1 if module.teacher is None else 2
        assert size(module) == mirrored * (paper.backbone + paper.head) + paper.beside
        queue = getattr(module, "queue", None)
        assert (None if queue is None else tuple(queue.items.shape)) == paper.queue
        shapes = {tuple(parameter.shape) for parameter in module.parameters()}
        assert paper.prototypes is None or paper.prototypes in shapes

    def test_crops_and_their_tokens(self, name: str) -> None:
        paper, backbone = PAPERS[name], on_meta(name).student.backbone
        views = instantiate(recipe(name).views)
        sizes = [crop.size for crop in views.flat]
        assert {pixels: sizes.count(pixels) for pixels in sizes} == paper.crops
        assert backbone.has_tokens == (paper.tokens is not None)
        for pixels, count in (paper.tokens or {}).items():
            features = backbone(torch.empty(2, 3, pixels, pixels, device="meta"))
            assert features.tokens.shape == (2, count, backbone.dim)


def masks(config: DictConfig, images: int = 64) -> dict[str, torch.Tensor]:
    drawn: dict[str, torch.Tensor] = instantiate(config.views).draw_masks(torch.arange(images), seed=0, epoch=0)
    return drawn


def test_data2vec_masks_120_of_196_patches() -> None:
    mask = masks(recipe("data2vec_imagenet_vitb16"))["mask"]
    assert mask.shape == (1, 64, 196)
    assert (mask.sum(-1) == 120).all()


@pytest.mark.parametrize(
    ("name", "patches"),
    [("ibot_imagenet_vits16", 196), ("dinov2_imagenet_vitl16", 196), ("dinov2_imagenet22k_vitl14", 256)],
)
def test_half_of_the_large_crops_lose_a_tenth_to_a_half(name: str, patches: int) -> None:
    mask = masks(recipe(name))["mask"]
    assert mask.shape == (2, 64, patches)
    counts = mask.sum(-1).flatten()
    masked = counts[counts > 0]
    # DINOv2 masks exactly half, iBOT each image by chance: 128 of them, ± 4 standard deviations
    assert len(masked) == 64 if "dinov2" in name else 41 <= len(masked) <= 87
    assert masked.min() >= round(0.1 * patches) - 1
    assert masked.max() <= round(0.5 * patches) + 1


def test_ijepa_predicts_four_blocks_from_the_rest() -> None:
    drawn = masks(recipe("ijepa_imagenet_vith14"))
    images, blocks, wanted = drawn["targets"].shape
    assert (images, blocks) == (64, 4)
    # .15 to .2 of 256 patches, the sides rounded: at 7 × 7 by half a patch each
    assert 0.15 * 256 - 7 <= wanted <= 0.2 * 256 + 7
    assert drawn["context"].shape[1] >= 10
    for context, targets in zip(drawn["context"], drawn["targets"], strict=True):
        assert not set(context.tolist()) & set(targets.flatten().tolist())


def test_msn_drops_15_percent_of_the_random_view() -> None:
    keep = masks(recipe("msn_imagenet_vits16"))["keep"]
    assert keep.shape[0] == 64
    assert abs(keep.shape[1] - 0.85 * 196) < 1


def test_mocov3s_vit_decays_everything_and_keeps_its_random_patches() -> None:
    module = on_meta("mocov3_imagenet_vits16")
    settings, roles = module.optimizer_recipe, module.parameter_roles()
    optimizer = settings.build(module.trained_parameters(), roles, batch_size=4096)
    assert all(group["decays"] for group in optimizer.param_groups)
    for parameter in roles["patch_embed"]:
        parameter.grad = torch.empty_like(parameter)
    settings.freeze_gradients(roles, Clock(999, 1000, 10))
    assert [parameter.grad for parameter in roles["patch_embed"]] == [None, None]


def test_mean_teacher_takes_a_step(tmp_path: Path) -> None:
    """On a CPU, with labels for half of the images: both losses, and a teacher that is the student's first mean."""
    module = build_method(recipe("mean_teacher_cifar10"))
    torch.manual_seed(0)
    both = frozenset({"teacher", "student"})
    batch = Views([torch.rand(4, 3, 32, 32) for _ in range(2)], (both, both), labels=torch.tensor([3, -1, 0, -1]))
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    module.optimizer_recipe = type(module.optimizer_recipe)("sgd", 0.1)  # this loader does not say its batch
    trainer = bare_trainer(tmp_path, max_steps=1)
    trainer.fit(module, loader)
    assert {"train/supervised", "train/distill"} <= trainer.callback_metrics.keys()
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    for student, teacher in zip(module.student.parameters(), module.teacher.parameters(), strict=True):
        torch.testing.assert_close(student, teacher, check_stride=False)
