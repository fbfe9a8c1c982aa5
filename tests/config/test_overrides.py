"""What a command line may say, whatever it configures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill.config import UserError, check
from selfdistill.config.overrides import without_nulls


def line(*overrides: str, name: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        check(name, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("objective=[koleo,koleo]", "objective: koleo given 2 times, allowed is each choice once"),
        ("debug=[fast,limit,fast]", "debug: fast given 2 times"),
        ("objective=[kole]", "objective: 'kole' given, allowed is clustering, contrastive, koleo"),
        ("objective=[kole]", "did you mean koleo?"),
        ("objective=[koleo,contrastiv]", "did you mean contrastive?"),
        ("experiment=[null]", "experiment: null given in a list, allowed is byol_imagenet_r50"),
        ("hydra.verbose=banana", "hydra.verbose: 'banana' given, allowed is true, false or what logs"),
        ("hydra.verbose=[selfdistill,7]", "hydra.verbose: 7 given"),
        # what other choices of the group have
        ("data.root=x", "data.root: no such key; data=cifar10, data=cifar100, data=folder"),
        ("teacher.checkpoint=x", "teacher.checkpoint: no such key; teacher=frozen has it"),
        ("method.prototypes=5", "method=dino_like, "),
    ],
)
def test_is_refused_in_one_line(override: str, says: str) -> None:
    assert says in line(override)


@pytest.mark.parametrize("verbose", ["true", "selfdistill", "[selfdistill.data,lightning]"])
def test_what_logs_may_be_told(verbose: str) -> None:
    check("train", [f"hydra.verbose={verbose}"])


def test_several_debug_choices_add_up_and_the_last_wins() -> None:
    trainer = check("train", ["debug=[fast,limit]"]).plain["trainer"]
    assert (trainer["max_epochs"], trainer["limit_train_batches"], trainer["limit_val_batches"]) == (3, 0.25, 1)


@pytest.mark.parametrize("group", ["experiment", "debug", "hparams_search"])
def test_null_is_the_choice_of_none(group: str) -> None:
    assert check("train", [f"{group}=null"]).plain == check("train", []).plain


def test_null_is_left_out_only_where_it_is_the_default() -> None:
    assert without_nulls("train", ["debug=null", "data=null", "seed=null"]) == ["data=null", "seed=null"]
    assert without_nulls("evaluate", ["data=null", "debug=null"]) == ["debug=null"]
    assert "data: null given, allowed is cifar10" in line("data=null")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("experiment=null", "debug=null", "hparams_search=null", "--cfg", "job"), 0, "seed: 0"),
        (("--experimental-rerun", "x"), 2, "error: --experimental-rerun: not taken"),
    ],
)
def test_as_a_command(arguments: tuple[str, ...], code: int, says: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "src.train", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == code
    assert says in (done.stdout if code == 0 else done.stderr)
    assert code == 0 or len(done.stderr.splitlines()) == 1
