"""Costs of a step against counts by hand, against torch's own counter, and against what a real step keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.costs import StepCost, meta_views, step_cost
from selfdistill.methods import BYOL, DINO, MoCoV3, SelfDistillModule
from selfdistill.networks import build_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.views import CropSpec, ViewRecipe, Views
from selfdistill.views.specs import Augment

Module = SelfDistillModule[Any, Any]
BATCH = 4


class Net(nn.Module):
    """48 -> 8, without a bias."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 8, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def recipe(size: int = 32, local: int = 0) -> ViewRecipe:
    crops = [CropSpec(size, Augment(), 2)]
    if local:
        crops.append(CropSpec(local, Augment(), 3, ("student",)))
    return ViewRecipe(crops)


def small(optimizer: OptimizerRecipe | None = None) -> BYOL:
    return BYOL(Net(), hidden_dim=16, out_dim=4, optimizer=optimizer or OptimizerRecipe("adamw", 1e-3))


def resnet() -> BYOL:
    return BYOL(build_backbone("resnet18", small_stem=True), hidden_dim=64, out_dim=32)


def vit() -> DINO:
    return DINO(build_backbone("small_vit"), hidden_dim=64, bottleneck_dim=16, prototypes=128)


def on_meta(build: Callable[[], Module]) -> Module:
    with torch.device("meta"):
        return build()


def real_views(views: ViewRecipe, batch: int = BATCH) -> Views:
    generator = torch.Generator().manual_seed(0)
    crops = [torch.randn(batch, 3, spec.size, spec.size, generator=generator) for spec in views.flat]
    return Views(crops, views.roles)


def forward(module: Module, views: Views) -> tuple[Tensor, Any]:
    with torch.no_grad():
        targets = module.targets(views)
    predictions = module.predictions(views)
    return sum(module.terms(predictions, targets).values(), torch.zeros(())), (targets, predictions)


def predicted(build: Callable[[], Module], views: ViewRecipe, half: torch.dtype | None = None) -> StepCost:
    return step_cost(on_meta(build), meta_views(views, 3, BATCH), half=half)


def test_a_small_network_by_hand() -> None:
    cost = predicted(small, recipe(4))
    # projector: Linear(8, 16), batch norm, Linear(16, 4, bias=False); the predictor's first layer takes 4
    projector, predictor = 8 * 16 + 16 + 2 * 16 + 16 * 4, 4 * 16 + 16 + 2 * 16 + 16 * 4
    tower = 48 * 8 + projector
    running = 4 * 2 * 16 + 8  # mean and variance, and an int64 that counts batches
    assert cost.student.parameters == cost.teacher.parameters == tower
    assert cost.student.bytes == cost.teacher.bytes == 4 * tower + running
    assert (cost.beside.parameters, cost.beside.bytes) == (predictor, 4 * predictor)
    assert (cost.state, cost.state_of) == (running, ("predictor",))
    trained = tower + predictor
    assert cost.gradients == 4 * trained
    assert cost.optimizer == 2 * 4 * trained + 4 * len(list(on_meta(small).trained_parameters()))
    assert cost.model_total == cost.networks + cost.optimizer
    assert cost.views == 2 * 4 * BATCH * 3 * 4 * 4
    assert cost.gathered == 3 * 4 * tower  # the student's again backward
    # a product of [n, a] and [a, b] is 2nab; two crops pass; the images need no gradient
    rows = 2 * BATCH
    forward_tower = 2 * rows * (48 * 8 + 8 * 16 + 16 * 4)
    forward_predictor = 2 * rows * (4 * 16 + 16 * 4)
    assert cost.teacher_flops == forward_tower
    assert cost.student_flops == forward_tower + forward_predictor
    assert cost.backward_flops == 2 * cost.student_flops - 2 * rows * 48 * 8
    assert cost.flops == cost.teacher_flops + cost.student_flops + cost.backward_flops
    assert cost.formula_flops == 2 * cost.student_flops + cost.backward_flops


@pytest.mark.parametrize(
    ("optimizer", "states", "counts"),
    [
        (OptimizerRecipe("adamw", 1e-3), 2, True),
        (OptimizerRecipe("sgd", 0.1, momentum=0.9), 1, False),
        (OptimizerRecipe("sgd", 0.1, momentum=0.0), 0, False),
        (OptimizerRecipe("lars", 0.1), 1, False),
    ],
    ids=["adamw", "sgd", "plain sgd", "lars"],
)
def test_state_of_optimizers(optimizer: OptimizerRecipe, states: int, counts: bool) -> None:
    cost = predicted(lambda: small(optimizer), recipe(4))
    module = small(optimizer)
    forward(module, real_views(recipe(4)))[0].backward()
    real = optimizer.build(module.trained_parameters(), module.parameter_roles(), batch_size=BATCH)
    real.step()
    kept = [v for state in real.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert cost.optimizer == sum(v.nbytes for v in kept)
    number = len(module.trained_parameters())
    assert cost.optimizer == states * cost.gradients + counts * 4 * number


@pytest.mark.parametrize(("build", "views"), [(resnet, recipe()), (vit, recipe(32, 16))], ids=["BYOL", "DINO"])
def test_activations_are_those_of_a_real_step(build: Callable[[], Module], views: ViewRecipe) -> None:
    module, batch = build().train(), real_views(views)
    there = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers(), *batch.crops]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, outputs = forward(module, batch)
    for tensor in [t for t in tree_leaves([vars(o) for o in outputs]) if isinstance(t, Tensor)]:
        pack(tensor)
    assert loss.isfinite()
    real = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in there)
    assert predicted(build, views).activations == pytest.approx(real, rel=0.01)


def test_activations_are_a_straight_line_over_the_batch() -> None:
    sizes = [step_cost(on_meta(vit), meta_views(recipe(32, 16), 3, batch)).activations for batch in (2, 4, 6)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


def test_flops_of_a_resnet_are_those_of_torch() -> None:
    module, batch = resnet().train(), real_views(recipe())
    with FlopCounterMode(display=False) as counter:
        loss, _ = forward(module, batch)
    ahead = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    cost = predicted(resnet, recipe())
    assert cost.teacher_flops + cost.student_flops + cost.loss_flops == ahead
    assert cost.backward_flops == counter.get_total_flops()


def test_attention_by_hand() -> None:
    """Fused attention: two products of N×N×D forward, five backward, and no N×N kept."""
    batch, tokens, width, depth = BATCH, 65, 128, 4
    cost = predicted(vit, recipe(32))
    rows = 2 * batch
    block = 2 * tokens * width * (3 * width + width + 8 * width) + 2 * 2 * tokens * tokens * width
    patches = 2 * 64 * (3 * 16) * width
    head = 2 * (128 * 64 + 64 * 64 + 64 * 16 + 16 * 128)
    assert cost.student_flops == cost.teacher_flops == rows * (depth * block + patches + head)
    scores = rows * depth * 2 * 2 * tokens * tokens * width
    # gradients of what is brought to unit length: a product along each bottleneck and each prototype
    units = 2 * 16 * (rows + 128)
    # every other product twice, but that the images need no gradient
    assert cost.backward_flops == 2 * (cost.student_flops - scores) + 5 * scores // 2 - rows * patches + units
    doubled = predicted(lambda: DINO(build_backbone("small_vit", patch_size=2), hidden_dim=64, bottleneck_dim=16,
                                     prototypes=128), recipe(32))  # fmt: skip
    # four times the tokens: were [B, H, N, N] kept, it would be well above four times the memory
    assert doubled.activations < 4.1 * cost.activations


def test_checkpointing_recomputes_and_keeps_less() -> None:
    def build() -> Module:
        module = vit()
        module.student.backbone.checkpoint_activations()
        return module

    plain, other = predicted(vit, recipe(32)), predicted(build, recipe(32))
    assert other.activations < 0.5 * plain.activations
    blocks = 2 * BATCH * 4 * (2 * 65 * 128 * 12 * 128 + 4 * 65 * 65 * 128)
    # recomputation stops where the last tensor that is needed exists: a block's last product is not run again
    last = 2 * BATCH * 4 * 2 * 65 * 128 * 4 * 128
    assert other.backward_flops - plain.backward_flops == blocks - last
    assert other.peak < plain.peak


def in_threes(build: Callable[[], Module]) -> Callable[[], Module]:
    def built() -> Module:
        module = build()
        module.micro_batch_size = 3
        return module

    return built


@pytest.mark.parametrize(("build", "views"), [(resnet, recipe()), (vit, recipe(32, 16))], ids=["BYOL", "DINO"])
def test_exact_accumulation_holds_one_micro_batch_and_all_outputs(
    build: Callable[[], Module], views: ViewRecipe
) -> None:
    whole, exact = (step_cost(on_meta(b), meta_views(views, 3, 12)) for b in (build, in_threes(build)))
    one = step_cost(on_meta(build), meta_views(views, 3, 3))
    assert (whole.micro_batch, exact.micro_batch, exact.batch) == (12, 3, 12)
    # what is there beside the activations is the same
    for name in ("student", "teacher", "gradients", "optimizer", "views", "teacher_flops", "student_flops"):
        assert getattr(exact, name) == getattr(whole, name)
    assert one.activations < exact.activations < 0.5 * whole.activations
    assert exact.peak < whole.peak - 0.5 * (whole.activations - exact.activations)
    # of the tensors of a real step
    real = step_cost(in_threes(build)(), real_views(views, 12))
    assert exact.peak == pytest.approx(real.peak, rel=1e-4)
    assert exact.activations == pytest.approx(real.activations, rel=1e-4)
    # forward a second time, but for what nothing asks for
    assert whole.student_flops * 0.9 < exact.backward_flops - whole.backward_flops <= whole.student_flops


def test_outputs_of_all_images_by_hand() -> None:
    small_step, large = (step_cost(on_meta(in_threes(small)), meta_views(recipe(4), 3, b)) for b in (6, 12))
    # projections, predictions and features of two crops, the last of both networks, and what the loss makes of them
    outputs = 4 * 2 * 6 * (4 + 4 + 2 * 8)
    assert outputs <= large.activations - small_step.activations < 3 * outputs


class Convolutions(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


def test_half_precision_keeps_what_autocast_keeps() -> None:
    def build() -> BYOL:
        return BYOL(Convolutions(), hidden_dim=64, out_dim=32)

    module, batch = build().train(), real_views(recipe())
    there = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers(), *batch.crops]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    # of what runs here, the CPU's lists and CUDA's differ in nothing
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            targets = module.targets(batch)
        with torch.autocast("cpu", torch.bfloat16):
            predictions = module.predictions(batch)
        module.terms(predictions, targets)
    for output in (targets, predictions):
        for tensor in vars(output).values():
            if isinstance(tensor, Tensor):
                pack(tensor)
    real = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in there)
    half = predicted(build, recipe(), torch.bfloat16).activations
    assert half == pytest.approx(real, rel=0.01)
    assert half < 0.7 * predicted(build, recipe()).activations


def test_nothing_is_allocated_and_no_number_drawn() -> None:
    state = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        module = on_meta(vit)
        step_cost(module, meta_views(recipe(), 3, BATCH))
    assert all(p.is_meta and (p.grad is None or p.grad.is_meta) for p in module.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.autocast.__name__ == "autocast"
    assert isinstance(torch.autocast, type)


def test_in_a_group_of_processes_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> Module:
        return MoCoV3(Net(), hidden_dim=16, out_dim=4)

    alone = predicted(build, recipe(4))
    # there is no group: a collective would fail
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    assert predicted(build, recipe(4)) == alone


def test_peak_holds_gradients_beside_activations() -> None:
    cost = predicted(resnet, recipe())
    assert cost.total * 0.98 < cost.peak < cost.total * 1.1
    assert math.isclose(cost.total, cost.networks + cost.optimizer + cost.gradients + cost.views + cost.activations)
