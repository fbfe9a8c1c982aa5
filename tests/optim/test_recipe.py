from __future__ import annotations

import inspect
import io
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from selfdistill.optim import Lars, OptimizerRecipe
from selfdistill.schedules import Clock

CONF = Path(__file__).parents[2] / "conf" / "optimizer"


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.patch_embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.LayerNorm(4)


class Module(nn.Module):
    """A small network with the names of a real one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.ModuleDict({"backbone": Backbone(), "head": nn.Linear(4, 4)})
        self.predictor = nn.Linear(4, 4)
        self.last_layer = nn.Linear(4, 6)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        patch_embed = self.student["backbone"].get_submodule("patch_embed")
        return {
            "predictor": list(self.predictor.parameters()),
            "last_layer": list(self.last_layer.parameters()),
            "patch_embed": list(patch_embed.parameters()),
        }

    def fill_gradients(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=generator)


def build(recipe: OptimizerRecipe, module: Module, batch_size: int | None = None) -> Optimizer:
    return recipe.build(module.named_parameters(), module.roles(), batch_size=batch_size)


def group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    (group,) = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    return group


def by_name(optimizer: Optimizer, module: Module, key: str) -> dict[str, Any]:
    return {name: group_of(optimizer, p)[key] for name, p in module.named_parameters()}


def course(recipe: OptimizerRecipe, key: str, steps: int, per_epoch: int = 1) -> list[float]:
    """``key`` of a plain weight's group at every step."""
    module = Module()
    optimizer = build(recipe, module)
    values = []
    for k in range(steps):
        recipe.apply(optimizer, Clock(k, steps, per_epoch))
        values.append(group_of(optimizer, module.student["head"].weight)[key])
    return values


class TestGroups:
    @pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
    @pytest.mark.parametrize("layer_decay", [1.0, 0.75])
    def test_hold_every_parameter_once(self, name: Any, layer_decay: float) -> None:
        module = Module()
        recipe = OptimizerRecipe(
            name,
            0.1,
            layer_decay=layer_decay,
            constant_lr=["predictor"],
            lr_multipliers={"patch_embed": 0.2},
            decay_exclude=["bias", "role:last_layer"],
        )
        held = [id(p) for group in build(recipe, module).param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in module.parameters())

    def test_tied_parameters_are_held_once(self) -> None:
        module = Module()
        module.predictor.weight = module.student["head"].weight
        named = list(module.named_parameters(remove_duplicate=False))
        optimizer = OptimizerRecipe("sgd", 0.1).build(named, module.roles())
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held)) == len(named) - 1

    def test_there_are_as_few_as_the_rules_need(self) -> None:
        assert len(build(OptimizerRecipe("adamw", 0.1, decay_exclude=[]), Module()).param_groups) == 1
        assert len(build(OptimizerRecipe("adamw", 0.1), Module()).param_groups) == 2

    def test_decay_by_kind_is_the_rule_of_dino(self) -> None:
        """DINO decays all but biases and what has one dimension; tokens are decayed."""
        module = Module()
        optimizer = build(OptimizerRecipe("adamw", 0.1, weight_decay=0.04), module)
        expected = {
            name: 0.0 if name.endswith(".bias") or p.ndim == 1 else 0.04 for name, p in module.named_parameters()
        }
        assert by_name(optimizer, module, "weight_decay") == expected
        assert expected["student.backbone.cls_token"] == 0.04

    @pytest.mark.parametrize(
        ("exclude", "plain"),
        [
            ([], set()),
            (["norm"], {"student.backbone.norm.weight"}),
            (["token"], {"student.backbone.cls_token"}),
            (["role:predictor"], {"predictor.weight", "predictor.bias"}),
        ],
    )
    def test_decay_exclude(self, exclude: list[str], plain: set[str]) -> None:
        module = Module()
        optimizer = build(OptimizerRecipe("sgd", 0.1, weight_decay=0.5, decay_exclude=exclude), module)
        decays = by_name(optimizer, module, "weight_decay")
        assert {name for name, decay in decays.items() if decay == 0.0} == plain

    def test_layers_and_roles_multiply_the_rate(self) -> None:
        """The first layers of DINOv2: layer-wise decay, and .2 for the patch embedding."""
        module = Module()
        recipe = OptimizerRecipe("adamw", 1.0, layer_decay=0.5, lr_multipliers={"patch_embed": 0.2})
        optimizer = build(recipe, module)
        recipe.apply(optimizer, Clock(0, 10, 1))
        rates = by_name(optimizer, module, "lr")
        assert rates["student.backbone.cls_token"] == 0.125
        assert rates["student.backbone.patch_embed.weight"] == pytest.approx(0.025)
        assert rates["student.backbone.blocks.0.weight"] == 0.25
        assert rates["student.backbone.blocks.1.bias"] == 0.5
        assert {rates[n] for n in ("student.backbone.norm.weight", "student.head.weight", "predictor.bias")} == {1.0}

    def test_lars_neither_decays_nor_adapts_what_is_excluded(self) -> None:
        module = Module()
        for weight_decay in (0.0, 1.5e-6):
            optimizer = build(OptimizerRecipe("lars", 0.2, weight_decay=weight_decay), module)
            assert isinstance(optimizer, Lars)
            assert by_name(optimizer, module, "adapt") == {n: p.ndim > 1 for n, p in module.named_parameters()}
        assert all(by_name(build(OptimizerRecipe("lars", 0.2, decay_exclude=[]), module), module, "adapt").values())

    def test_knobs_reach_the_optimizer(self) -> None:
        adamw = build(OptimizerRecipe("adamw", 0.1, betas=[0.5, 0.95]), Module())
        assert isinstance(adamw, torch.optim.AdamW)
        assert {g["betas"] for g in adamw.param_groups} == {(0.5, 0.95)}
        sgd = build(OptimizerRecipe("sgd", 0.1, momentum=0.7), Module())
        assert isinstance(sgd, torch.optim.SGD)
        assert {g["momentum"] for g in sgd.param_groups} == {0.7}
        assert {g["momentum"] for g in build(OptimizerRecipe("lars", 0.1, momentum=0.8), Module()).param_groups} == {
            0.8
        }

    def test_building_twice_gives_equals_and_leaves_the_recipe(self) -> None:
        recipe = OptimizerRecipe("adamw", 0.1, scaling="linear", freeze={"last_layer": 3}, weight_decay=0.1)
        before = repr(recipe)
        module = Module()
        first, second = build(recipe, module, 512), build(recipe, module, 512)
        assert first.state_dict() == second.state_dict()
        assert repr(recipe) == before == repr(pickle.loads(pickle.dumps(recipe)))

    def test_later_changes_to_its_arguments_do_not_reach_the_recipe(self) -> None:
        freeze: dict[str, Any] = {"last_layer": 3}
        exclude = ["bias"]
        recipe = OptimizerRecipe("sgd", 0.1, freeze=freeze, decay_exclude=exclude)
        freeze["predictor"] = 5
        exclude.append("norm")
        assert recipe.freeze == {"last_layer": 3}
        assert recipe.decay_exclude == ("bias",)


class TestRates:
    def test_of_dino(self) -> None:
        """Slow restatement: warm-up from 0, cosine to 1e-6 over the rest; decay .04 → .4 over all of it."""
        steps, warmup, peak, end = 50, 10, 5e-4, 1e-6
        recipe = OptimizerRecipe("adamw", peak, lr_end=end, warmup="2 epochs", weight_decay=0.04, weight_decay_end=0.4)
        rates = [
            peak * k / warmup
            if k < warmup
            else end + 0.5 * (peak - end) * (1 + math.cos(math.pi * (k - warmup) / (steps - warmup)))
            for k in range(steps)
        ]
        assert course(recipe, "lr", steps, per_epoch=5) == pytest.approx(rates, rel=1e-12)
        decays = [0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * k / steps)) for k in range(steps)]
        assert course(recipe, "weight_decay", steps) == pytest.approx(decays, rel=1e-12)

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("linear", [0.0, 0.5, 1.0, 0.8, 0.6, 0.4]),
            ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ],
    )
    def test_shapes(self, schedule: Any, expected: list[float]) -> None:
        recipe = OptimizerRecipe("sgd", 1.0, warmup=2, schedule=schedule, lr_end=0.2)
        assert course(recipe, "lr", 6) == pytest.approx(expected)

    def test_excluded_parameters_stay_undecayed_while_decay_rises(self) -> None:
        module = Module()
        recipe = OptimizerRecipe("adamw", 0.1, weight_decay=0.0, weight_decay_end=0.4)
        optimizer = build(recipe, module)
        recipe.apply(optimizer, Clock(10, 10, 1))
        decays = by_name(optimizer, module, "weight_decay")
        assert decays["predictor.weight"] == 0.4
        assert decays["predictor.bias"] == 0.0

    def test_predictor_of_simsiam_stays_at_the_peak(self) -> None:
        module = Module()
        recipe = OptimizerRecipe("sgd", 0.05, constant_lr=["predictor"], warmup=4, scaling="linear")
        optimizer = build(recipe, module, 512)
        predictor = group_of(optimizer, module.predictor.weight)
        others = group_of(optimizer, module.student["head"].weight)
        for k in range(20):
            recipe.apply(optimizer, Clock(k, 20, 1))
            assert predictor["lr"] == pytest.approx(0.1 * min(k / 4, 1.0))
            if k > 4:
                assert others["lr"] < 0.1
        recipe.apply(optimizer, Clock(20, 20, 1))
        assert others["lr"] == 0.0

    @pytest.mark.parametrize(
        ("scaling", "batch_size", "rate"),
        [
            ("none", None, 0.3),
            ("none", 4096, 0.3),
            ("linear", 4096, 4.8),
            ("sqrt", 1024, 0.6),
            ("linear", 64, 0.075),
        ],
    )
    def test_scaling(self, scaling: Any, batch_size: int | None, rate: float) -> None:
        recipe = OptimizerRecipe("sgd", 0.3, scaling=scaling, lr_end=1e-6, lr_start=1e-5, warmup=3)
        assert recipe.scaled_lr(batch_size) == pytest.approx(rate)
        module = Module()
        optimizer = build(recipe, module, batch_size)
        for step, expected in ((0, 1e-5), (3, rate), (100, 1e-6)):
            recipe.apply(optimizer, Clock(step, 100, 1))
            assert group_of(optimizer, module.predictor.weight)["lr"] == pytest.approx(expected)

    def test_scaling_of_dinov2(self) -> None:
        recipe = OptimizerRecipe("adamw", 4e-3, scaling="sqrt", reference_batch=1024)
        assert recipe.scaled_lr(2048) == pytest.approx(4e-3 * math.sqrt(2))

    @settings(derandomize=True, deadline=None, max_examples=60)
    @given(
        step=st.integers(0, 300),
        total=st.integers(0, 200),
        warmup=st.one_of(st.integers(0, 300), st.floats(0, 1), st.integers(0, 9).map(lambda n: f"{n} epochs")),
        schedule=st.sampled_from(["cosine", "linear", "constant"]),
    )
    def test_rates_stay_between_their_ends(self, step: int, total: int, warmup: Any, schedule: Any) -> None:
        recipe = OptimizerRecipe("sgd", 0.5, warmup=warmup, schedule=schedule, weight_decay=0.1, weight_decay_end=0.2)
        module = Module()
        optimizer = build(recipe, module)
        recipe.apply(optimizer, Clock(step, total, 7))
        assert all(0.0 <= rate <= 0.5 for rate in by_name(optimizer, module, "lr").values())
        assert 0.1 <= group_of(optimizer, module.predictor.weight)["weight_decay"] <= 0.2

    def test_a_resumed_run_goes_on_as_if_never_stopped(self) -> None:
        """Through a file that is read with weights_only, and an optimizer of another batch size."""
        recipe = OptimizerRecipe(
            "adamw",
            0.01,
            scaling="linear",
            warmup=3,
            weight_decay=0.1,
            weight_decay_end=0.5,
            layer_decay=0.5,
            constant_lr=["predictor"],
        )

        def steps(module: Module, optimizer: Optimizer, first: int, last: int) -> None:
            for k in range(first, last):
                module.fill_gradients(k)
                recipe.apply(optimizer, Clock(k, 10, 5))
                optimizer.step()

        whole = Module()
        steps(whole, build(recipe, whole, 512), 0, 10)

        part = Module()
        optimizer = build(recipe, part, 512)
        steps(part, optimizer, 0, 6)
        file = io.BytesIO()
        torch.save({"module": part.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = Module()
        resumed.load_state_dict(saved["module"])
        optimizer = build(recipe, resumed, 256)
        optimizer.load_state_dict(saved["optimizer"])
        steps(resumed, optimizer, 6, 10)
        torch.testing.assert_close(dict(resumed.named_parameters()), dict(whole.named_parameters()), rtol=0, atol=0)


class TestAnyOptimizer:
    def test_its_own_rates_are_the_peaks(self) -> None:
        module = Module()
        recipe = OptimizerRecipe(
            partial(torch.optim.RMSprop, lr=0.3, weight_decay=0.2),
            warmup=2,
            schedule="linear",
            scaling="linear",
            lr_multipliers={"predictor": 0.5},
        )
        optimizer = build(recipe, module, 512)
        assert isinstance(optimizer, torch.optim.RMSprop)
        for step, rate in ((0, 0.0), (1, 0.3), (2, 0.6), (6, 0.3), (10, 0.0)):
            recipe.apply(optimizer, Clock(step, 10, 1))
            rates = by_name(optimizer, module, "lr")
            assert rates["student.head.weight"] == pytest.approx(rate)
            assert rates["predictor.weight"] == pytest.approx(0.5 * rate)
        assert by_name(optimizer, module, "weight_decay")["predictor.weight"] == 0.2
        assert by_name(optimizer, module, "weight_decay")["predictor.bias"] == 0.0

    def test_groups_of_different_rates_and_no_weight_decay(self) -> None:
        def make(groups: list[dict[str, Any]]) -> Optimizer:
            for i, group in enumerate(groups):
                group["lr"] = 1.0 + i
            return torch.optim.Rprop(groups)

        recipe = OptimizerRecipe(make, schedule="constant")
        optimizer = build(recipe, Module())
        recipe.apply(optimizer, Clock(3, 10, 1))
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]
        assert all("weight_decay" not in group for group in optimizer.param_groups)

    def test_has_no_rate_of_the_recipe(self) -> None:
        with pytest.raises(ValueError, match=r"^lr, weight_decay: 0\.1, 0\.0 given beside a function"):
            OptimizerRecipe(torch.optim.SGD, 0.1)
        with pytest.raises(ValueError, match=r"^lr: the optimizer was given as a function"):
            OptimizerRecipe(torch.optim.SGD).scaled_lr(256)


class TestFreeze:
    @pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
    @pytest.mark.parametrize(("duration", "steps"), [(3, 3), ("1 epoch", 4), (0.5, 5), (0, 0)])
    def test_stands_still_for_exactly_that_long(self, name: Any, duration: Any, steps: int) -> None:
        """Weight decay and momentum included; the first step that moves it has the index ``steps``."""
        module = Module()
        recipe = OptimizerRecipe(name, 0.1, weight_decay=0.5, decay_exclude=[], freeze={"last_layer": duration})
        optimizer = build(recipe, module)
        moved = []
        for k in range(10):
            clock = Clock(k, 10, 4)
            before = {n: p.detach().clone() for n, p in module.named_parameters()}
            module.fill_gradients(k)
            recipe.apply(optimizer, clock)
            recipe.freeze_gradients(module.roles(), clock)
            optimizer.step()
            changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
            assert changed >= {n for n in before if not n.startswith("last_layer.")}
            moved.append({"last_layer.weight", "last_layer.bias"} <= changed)
        assert moved == [k >= steps for k in range(10)]

    def test_frozen_parameters_count_in_the_norm_that_clips(self) -> None:
        module = Module()
        module.fill_gradients()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in module.parameters() if p.grad is not None))
        before = module.predictor.weight.grad.clone()  # type: ignore[union-attr]
        recipe = OptimizerRecipe("sgd", 0.1, clip=0.5, freeze={"last_layer": 1})
        recipe.clip_gradients(module.named_parameters())
        recipe.freeze_gradients(module.roles(), Clock())
        torch.testing.assert_close(module.predictor.weight.grad, before * 0.5 / norm)
        assert module.last_layer.weight.grad is None

    def test_clip_of_dino_is_per_parameter(self) -> None:
        module = Module()
        module.fill_gradients()
        norms = [float(p.grad.norm()) for p in module.parameters() if p.grad is not None]
        OptimizerRecipe("sgd", 0.1, clip=2.0, clip_mode="parameter").clip_gradients(module.named_parameters())
        clipped = [float(p.grad.norm()) for p in module.parameters() if p.grad is not None]
        assert clipped == pytest.approx([n * min(1.0, 2.0 / (n + 1e-6)) for n in norms], rel=1e-5)

    def test_without_clip_gradients_stay(self) -> None:
        module = Module()
        module.fill_gradients()
        before = module.predictor.weight.grad.clone()  # type: ignore[union-attr]
        OptimizerRecipe("sgd", 0.1).clip_gradients(module.named_parameters())
        assert torch.equal(before, module.predictor.weight.grad)  # type: ignore[arg-type]


class TestBadInput:
    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("lr", -0.1),
            ("lr", math.nan),
            ("lr", None),
            ("weight_decay", -1e-3),
            ("weight_decay_end", math.inf),
            ("betas", (0.9,)),
            ("betas", (0.9, 1.0)),
            ("momentum", 1.0),
            ("schedule", "step"),
            ("warmup", "ten epochs"),
            ("warmup", -3),
            ("lr_start", -1.0),
            ("lr_end", math.nan),
            ("scaling", "cubic"),
            ("reference_batch", 0),
            ("layer_decay", 0.0),
            ("layer_decay", 1.1),
            ("decay_exclude", ("biases",)),
            ("decay_exclude", "bias"),
            ("constant_lr", "predictor"),
            ("freeze", {"last_layer": "1 year"}),
            ("lr_multipliers", {"patch_embed": -1.0}),
            ("clip", 0.0),
            ("clip", math.nan),
            ("clip_mode", "value"),
        ],
    )
    def test_is_refused_in_one_line_that_names_it(self, argument: str, value: Any) -> None:
        with pytest.raises(ValueError, match=rf"^{argument}[:.]") as error:
            OptimizerRecipe(**{"name": "adamw", "lr": 0.1, argument: value})
        assert "\n" not in str(error.value)

    def test_unknown_optimizers_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^name: 'adam' given, allowed is adamw, sgd, lars or a function"):
            OptimizerRecipe("adam", 0.1)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("constant_lr", ["pedictor"]),
            ("freeze", {"pedictor": 1}),
            ("lr_multipliers", {"pedictor": 1.0}),
            ("decay_exclude", ["role:pedictor"]),
        ],
    )
    def test_roles_must_exist(self, argument: str, value: Any) -> None:
        recipe = OptimizerRecipe("sgd", 0.1, **{argument: value})
        with pytest.raises(ValueError, match=rf"^{argument}: role 'pedictor' given, this module has predictor, "):
            build(recipe, Module())
        with pytest.raises(ValueError, match=r"this module has no roles$"):
            recipe.build(Module().named_parameters())

    @pytest.mark.parametrize("batch_size", [None, 0])
    def test_scaling_needs_a_batch_size(self, batch_size: int | None) -> None:
        with pytest.raises(ValueError, match=rf"^batch_size: {batch_size} given with scaling=sqrt"):
            build(OptimizerRecipe("sgd", 0.1, scaling="sqrt"), Module(), batch_size)

    def test_nothing_to_train(self) -> None:
        with pytest.raises(ValueError, match=r"^named_parameters: none given"):
            OptimizerRecipe("sgd", 0.1).build([])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_config_states_every_knob_at_its_default(name: str) -> None:
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert own.pop("defaults") == ["base/recipe@_here_"]
    config = {**yaml.safe_load((CONF / "base" / "recipe.yaml").read_text()), **own}
    assert config.pop("_target_") == "selfdistill.optim.OptimizerRecipe"
    defaults = inspect.signature(OptimizerRecipe).parameters
    assert list(config) == list(defaults)
    recipe, plain = OptimizerRecipe(**config), OptimizerRecipe(config["name"], config["lr"])
    assert recipe.name == name
    assert repr(recipe) == repr(plain)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_fused_steps_are_the_same_steps(name: Any) -> None:
    recipe, found = OptimizerRecipe(name, 1e-2, weight_decay=0.1), []
    for fused in (False, True):
        module = Module()
        optimizer = recipe.build(list(module.named_parameters()), fused=fused)
        assert all(bool(group.get("fused")) is (fused and name != "lars") for group in optimizer.param_groups)
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in module.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        found.append(list(module.parameters()))
    for plain, quick in zip(*found, strict=True):
        torch.testing.assert_close(quick, plain)
