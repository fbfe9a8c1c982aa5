"""What classes say of themselves reads the same from their source as from the classes; refusals need no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class

from selfdistill.compatibility import Accepts
from selfdistill.config import CONF, UserError, check
from selfdistill.config.backbones import OWN, has_tokens, near_backbones
from selfdistill.config.facts import fact, term_names
from selfdistill.config.pairs import check_fits
from selfdistill.config.signatures import signature
from selfdistill.data import Digits
from selfdistill.networks import build_backbone


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def plain(*overrides: str) -> dict[str, Any]:
    found = check("train", list(overrides)).plain
    check_fits(found)
    return found


@pytest.mark.parametrize("method", choices("method"))
def test_facts_of_methods_and_their_masks(method: str) -> None:
    config = plain(f"method={method}")
    target = config["method"]["_target_"]
    # None: the base has the default, which is then taken
    assert fact(target, "accepts", {"Accepts": Accepts}) == get_class(target).accepts
    if config["views"]["masks"]:
        target = config["views"]["masks"]["_target_"]
        made = get_class(target)((8, 8), **({"ratio": 0.5} if target.endswith("RandomMask") else {}))
        assert fact(target, "makes") == tuple(made(2, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("objective", [name for name in choices("objective") if name != "none"])
def test_facts_of_objectives(objective: str) -> None:
    target = f"selfdistill.objectives.{''.join(map(str.title, objective.split('_')))}"
    target = target.replace("Koleo", "KoLeo")
    assert fact(target, "needs") == get_class(target).needs
    assert fact(target, "name") == get_class(target).name == objective


def test_facts_of_divergences() -> None:
    for name in choices("divergence"):
        if name != "auto":
            target = plain("method=ema_teacher", f"divergence={name}")["divergence"]["_target_"]
            assert fact(target, "domain") == get_class(target).domain


def test_facts_of_backbones() -> None:
    for name in (*OWN, "resnet18", "convnext_tiny", "vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        with torch.device("meta"):
            real = build_backbone(name, image_size=224 if "224" in name else None).has_tokens
        assert has_tokens(name) in (real, None)
    assert has_tokens("small_cnn") is False
    assert has_tokens("resnet18") is False
    assert has_tokens("vit_tiny_patch16_224") is None


def test_names_of_backbones() -> None:
    for name in ("small_vit", "resnet18", "resnet18.a1_in1k", "vit_base_patch16_224_in21k"):
        assert near_backbones(name) == []
    assert "resnet18" in near_backbones("resnt18")
    assert near_backbones("no such thing at all") == []


def test_the_digits_are_as_many_as_they_say() -> None:
    assert len(Digits().split("train")) == Digits.num_train


def test_names_of_losses() -> None:
    assert term_names("selfdistill.methods.DINOv2") == {"cls", "patch", "koleo"}
    assert term_names("selfdistill.methods.BYOL") == {"distill"}
    assert term_names("selfdistill.methods.MultiHead") is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("+weights.foo=2", "weights: 'foo' given, allowed is distill"),
        ("+weights.foo=2 objective=koleo", "weights: 'foo' given, allowed is distill, koleo"),
        ("data.batch_size=5000", "data.batch_size: 5000 given, the training set has 1204 images"),
        ("data.batch_size=64 data.limit=32", "data.batch_size: 64 given, the training set has 32 images"),
        ("data=shapes data.batch_size=5001", "data.batch_size: 5001 given, the training set has 5000 images"),
        ("data=folder", "data.root: null given, allowed is the folder"),
        ("method=swav_like divergence=l2", "divergence: L2 given to SwAV, but its loss is fixed; choose"),
        ("backbone=timm backbone.name=resnt18", "backbone.name: 'resnt18' given, .*did you mean resnet18"),
        ("method=multi_head method.heads=0", "method.heads: 0 given, allowed is a whole number of at least 1"),
    ],
)
def test_refuses_by_what_is_known_of_data_and_networks(overrides: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        plain(*overrides.split())


def test_lets_through_what_is_known_to_fit() -> None:
    plain("+weights.distill=2")
    plain("objective=koleo", "+weights.koleo=0.5")
    plain("data.batch_size=1204")
    plain("method=multi_head", "+weights.head_1=0.5")


OWN_MODULE = """
from selfdistill.compatibility import Accepts
from selfdistill.data import Digits as Base
from selfdistill.methods import BYOL, MSN, SelfDistillModule, SimSiam
from selfdistill.views.masks import BlockMask


class SimSiam(SimSiam):
    pass


class Extra:
    note = "no constructor here"


class Mixed(Extra, BYOL):
    pass


class Narrow(SelfDistillModule):
    accepts = Accepts(teachers=("student",))


class Wide(SelfDistillModule):
    def terms(self, predictions, targets):
        return self.all_terms()


class Both(Wide, Narrow):
    pass


class Computed(BYOL):
    accepts = Accepts(**dict(tokens=True))
    terms = MSN.terms


class Kept(BlockMask):
    def __call__(self, batch, generator=None):
        return {**super().__call__(batch, generator), "keep": None}


class MoreDigits(Base):
    def __init__(self, root=None, train=True):
        pass


def network(name):
    return name
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_what_the_source_of_others_says_and_what_it_leaves_open() -> None:
    def accepts(name: str) -> Any:
        return fact(f"own_parts.{name}", "accepts", {"Accepts": Accepts})

    assert accepts("Mixed") == Accepts()
    assert accepts("Narrow") == Accepts(teachers=("student",))
    # Python looks into the base of both last
    assert accepts("Both") == Accepts(teachers=("student",))
    assert accepts("Computed") is None
    assert accepts("SimSiam") is None
    assert term_names("own_parts.Mixed") == {"distill"}
    for unsaid in ("Narrow", "Wide", "Both", "Computed", "SimSiam"):
        assert term_names(f"own_parts.{unsaid}") is None
    found = signature("own_parts.Mixed")
    assert found is not None
    assert "divergence" in found.parameters


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "overrides",
    [
        "method._target_=own_parts.Mixed divergence=l2_normalized",
        "method=msn_like backbone=small_vit views=ibot views.masks._target_=own_parts.Kept",
        "data.source._target_=own_parts.MoreDigits data.batch_size=5000 +data.source.root=null +data.source.train=true",
        "method._target_=own_parts.Mixed backbone.name=registered_by_own_parts",
    ],
)
def test_parts_of_the_users_own_are_left_to_their_constructors(overrides: str) -> None:
    plain(*overrides.split())


@pytest.mark.usefixtures("own")
def test_a_backbone_of_the_users_own_may_have_any_name() -> None:
    config = plain()
    check_fits({**config, "backbone": {"_target_": "own_parts.network", "name": "resnt18"}})


def test_a_cost_is_told_without_data() -> None:
    plain("cost_only=true", "data=imagenet", "data.batch_size=4096")
    plain("cost_only=true", "data.batch_size=4096")
    plain("cost_only=true", "data=folder", "data.root=/no/such/folder")


def test_refuses_without_torch() -> None:
    code = (
        "import sys\n"
        "from selfdistill.config import UserError, check\n"
        "from selfdistill.config.pairs import check_fits\n"
        "for given in ('method=msn_like backbone=small_cnn', 'data.batch_size=5000', 'backbone.name=resnt18'):\n"
        "    try: check_fits(check('train', given.split()).plain)\n"
        "    except UserError: print('refused', 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused False"] * 3
