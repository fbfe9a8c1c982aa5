"""Every key is known, of the right type and read; the schema is the constructors' own source."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object

from selfdistill.config import CONF, UserError, check, flatten, unread
from selfdistill.config.kinds import Kinds, allows, described, kinds_of
from selfdistill.config.signatures import signature
from selfdistill.config.unread import BESIDE

GROUPS = ("data", "backbone", "views", "divergence", "teacher", "objective", "optimizer", "callbacks", "protocol")
# Arguments that code alone can give: a function, a module, another object of the run.
BY_CODE = {"bank", "embed", "step", "network", "recipe", "seed", "micro_batches"}


def choice(group: str, name: str) -> tuple[str, list[str]]:
    """The command that composes it, and the overrides."""
    if group == "protocol":
        return "evaluate", ["checkpoint=none", f"protocol={name}"]
    extra = ["backbone.name=resnet10t"] if name == "timm" else []
    if group == "data" and name not in ("digits", "shapes"):
        extra = ["data.root=tests"]
    return "train", [f"{group}={name}", *extra]


def constructed(prefix: str, node: Any) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(node, list):
        return [found for i, item in enumerate(node) for found in constructed(f"{prefix}.{i}", item)]
    if not isinstance(node, dict):
        return []
    own = [(prefix, node)] if "_target_" in node else []
    return own + [found for key, item in node.items() for found in constructed(f"{prefix}.{key}", item)]


FILES = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_files_state_every_knob_and_the_schema_reads_the_constructor(group: str, name: str) -> None:
    """Names and annotations found without importing are those that Python finds, and none is left out."""
    config_name, overrides = choice(group, name)
    plain = check(config_name, overrides).plain
    for path, node in constructed(group, plain[group]):
        read = signature(node["_target_"])
        assert read is not None, path
        real = inspect.signature(get_object(node["_target_"])).parameters
        takes = {n: p for n, p in real.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        made = get_object(node["_target_"])
        # Lightning's callbacks, and those that only change what one of them does, have more knobs than a file states
        if not (inspect.isclass(made) and getattr(made.__init__, "__module__", "").startswith("lightning.")):
            assert read.parameters.keys() == takes.keys(), path
            assert takes.keys() - BY_CODE <= node.keys(), path
        for argument, parameter in takes.items():
            assert read.parameters[argument].required == (parameter.default is inspect.Parameter.empty), path


def test_defaults_are_of_their_kinds() -> None:
    """A type that the schema would refuse is not a default."""
    for group, name in FILES:
        for path, node in constructed(group, check(*choice(group, name)).plain[group]):
            read = signature(node["_target_"])
            assert read is not None
            for argument, parameter in inspect.signature(get_object(node["_target_"])).parameters.items():
                if isinstance(parameter.default, bool | int | float | str | None) and argument in read.parameters:
                    kinds = kinds_of(read.parameters[argument])
                    assert allows(kinds, parameter.default), f"{path}.{argument}: {described(kinds)}"


@pytest.mark.parametrize(
    ("source", "good", "bad", "words"),
    [
        ("int", [1, -3], [1.0, True, "1", None], "a whole number"),
        ("float | None", [1, 0.5, None], [True, "x", [1]], "a number or null"),
        ("Literal['a', 'b']", ["a"], ["c", None, 1], "a or b"),
        ("Sequence[int]", [[], [1, 2]], [[1.5], 1, "ab"], "a list of whole numbers"),
        ("tuple[float, float]", [[1, 2.5]], [[1], [1, 2, 3], ["a", 1]], "a list of 2: a number, a number"),
        ("Mapping[str, bool]", [{"a": True}, {}], [{"a": 1}, [True]], "a mapping of names, each to true or false"),
        ("Optional[Union[int, str]]", [1, "x", None], [1.5, []], "a whole number or text or null"),
        ("Any", [1, None, []], [], "anything"),
        ("'int | str'", [1, "x"], [None, 2.5], "a whole number or text"),
    ],
)
def test_annotations(source: str, good: list[Any], bad: list[Any], words: str, tmp_path: Path) -> None:
    module = tmp_path / "kinds_under_test.py"
    module.write_text(f"def made(value: {source}): ...\n", encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        signature.cache_clear()
        from selfdistill.config import signatures

        signatures._source.cache_clear()
        read = signature("kinds_under_test.made")
    finally:
        sys.path.remove(str(tmp_path))
    assert read is not None
    kinds: Kinds = kinds_of(read.parameters["value"])
    assert all(allows(kinds, value) for value in good)
    assert not any(allows(kinds, value) for value in bad)
    assert described(kinds) == words


def line(*overrides: str, name: str = "train", search_path: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        check(name, list(overrides), search_path=search_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        # names, however they are given and however deep
        ("+foo=1", "foo: no such key"),
        ("lr=0.1", "lr: no such key; did you mean optimizer.lr?"),
        ("batch_size=8", "did you mean data.batch_size?"),
        ("epochs=5", "did you mean trainer.max_epochs?"),
        ("++teacher.momentm=0.9", "teacher.momentm: no such key; did you mean teacher.momentum?"),
        ("+trainer.max_epoch=5", "did you mean trainer.max_epochs?"),
        ("+views.crops.0.augment.flipp=1", "views.crops.0.augment.flipp: no such key"),
        ("+callbacks.collapse_monitor.thresholds.stal=1", "did you mean callbacks.collapse_monitor.thresholds.stale?"),
        ("+scale.momentm=0.9", "did you mean scale.momentum?"),
        ("+method.paper.momentm=0.9", "did you mean method.paper.momentum?"),
        ("logger=wandb +logger.wandb.prject=a", "did you mean logger.wandb.project?"),
        ("+callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor +callbacks.lr.loging_interval=step",
         "did you mean callbacks.lr.logging_interval?"),
        ("method=multi_head method.heads=[{_target_:selfdistill.methods.multi_head.Head,out_dimm:3}]",
         "did you mean method.heads.0.out_dim?"),
        ("method._target_=selfdistill.methods.BYOLL", "no such name in this package"),
        # types
        ("data.drop_last=5", "data.drop_last: 5 given, allowed is true or false"),
        ("method.hidden_dim=null method.hidden_dim=many", "method.hidden_dim: 'many' given"),
        ("schedule.shape=linaer", "schedule.shape: 'linaer' given, allowed is cosine, linear or constant"),
        ("evaluation.shots=3", "evaluation.shots: 3 given, allowed is a list, as [1, 5]"),
        ("evaluation.shots=[1,x]", "evaluation.shots: 'x' given, allowed is a whole number"),
        ("evaluation.linear=2", "evaluation.linear: 2 given, allowed is true or false"),
        ("optimizer.warmup=[1]", "optimizer.warmup: [1] given, allowed is an int of steps ≥ 0"),
        ("optimizer.betas=0.9", "optimizer.betas: 0.9 given, allowed is a list of numbers"),
        ("deterministic=5", "deterministic: 5 given, allowed is true or false"),
        ("data.image=5", "data.image: 5 given, allowed is a mapping of classes, channels"),
        ("weights=5", "weights: 5 given, allowed is a mapping of terms"),
        ("+weights.distill=five", "weights.distill: 'five' given"),
        ("+callbacks.mine=3", "callbacks.mine: 3 given, allowed is an object"),
        ("data=5", "data: 5 given, allowed is cifar10"),
        ("data=[digits,shapes]", "several are a sweep with -m"),
        # null, where there is something by default; what is no number
        ("evaluation.shots=null", "evaluation.shots: null given, allowed is a list"),
        ("optimizer.lr=inf", "optimizer.lr: inf given, allowed is a number"),
        # paths
        ("ckpt_path=5", "ckpt_path: 5 given, allowed is a path"),
        ("ckpt_path=true", "ckpt_path: true given, allowed is a path"),
        ("teacher=frozen teacher.checkpoint=5", "teacher.checkpoint: 5 given, allowed is a path"),
        ("data=folder data.root=5", "data.root: 5 given, allowed is text"),
        # a weight that is neither a number nor made
        ("+weights.distill={a:1}", "weights.distill: {'a': 1} given, allowed is"),
        ("+weights.distill._target_=selfdistill.schedules.ConstantSchedule +weights.distill.valu=1",
         "did you mean weights.distill.value?"),
        # what comes from elsewhere, or cannot be left out
        ("+method.teacher=none", "method.teacher: 'none' given, but it comes from teacher"),
        ("+trainer.overfit_batches=1", "it comes from data.limit"),
        ("logger=null", "logger: null given, allowed is csv, tensorboard, wandb"),
        ("~callbacks", "callbacks: taken away or null, but it is read"),
        ("~views._target_", "views._target_: null given or taken away, but it says what is made"),
        ("~callbacks.best._target_", "callbacks.best._target_: null given or taken away"),
        ("trainer._target_=null", "trainer._target_: null given or taken away"),
        ("~seed", "seed: taken away or null, but it is read"),
        ("~teacher.momentum", "teacher.momentum: not given, and ema has no default for it"),
        # what nothing reads
        ("schedule=linear teacher=frozen", "schedule: 'linear' given, but this teacher's momentum does not change"),
        ("schedule.shape=linear teacher=snapshot", "nothing reads it here (teacher=snapshot)"),
        ("teacher.momentum_end=0.5 schedule=constant", "teacher.shape=constant does not read it"),
        ("optimizer=adamw optimizer.momentum=0.5", "optimizer.name=adamw does not read it"),
        ("optimizer=sgd optimizer.betas=[0.9,0.9]", "optimizer.name=sgd does not read it"),
        ("data.image.local_size=4", "data.image.local_size: 4 given, but nothing reads it here"),
        ("+data.download=true", "data.download: true given, but nothing reads it here"),
        ("method.paper.momentum=0.5", "method.paper.momentum: 0.5 given, but nothing reads it here"),
    ],
)  # fmt: skip
def test_mistakes_are_named(overrides: str, says: str) -> None:
    assert says in line(*overrides.split(" "))


@pytest.mark.parametrize(
    "overrides",
    [
        "logger=wandb +logger.wandb.tags=[a,b]",  # what it hands on
        "callbacks.best=null",
        "+callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor",
        "scale.momentum=0.9",
        "+optimizer.freeze.head=5",
        "views.crops.0.size=6",
        "teacher.momentum=0.99 teacher.momentum_end=0.99 schedule=constant",
        "method=ema_teacher +weights.distill._target_=selfdistill.schedules.ConstantSchedule +weights.distill.value=1",
    ],
)
def test_what_is_right_passes(overrides: str) -> None:
    check("train", overrides.split(" "))


def test_a_schedule_that_changes_nothing_is_told() -> None:
    (warning,) = check("train", ["method=moco_like", "schedule=cosine"]).warnings
    assert "teacher.momentum_end is null" in warning


OWN = """# @package _global_
defaults:
  - override /method: dino_like
my_width: 64
method:
  hidden_dim: ${{my_width}}
{more}
"""


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", None),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch: no such key; did you mean trainer.max_epochs?"),
        ("teachr: {momentum: 0.5}", "teachr: no such key; did you mean teacher?"),
        ("method_: 1", "method_: no such key; did you mean method?"),
        ("student: {noize: 0.1}", "student.noize: no such key; did you mean student.noise?"),
        ("data: {batch_size: many}", "data.batch_size: 'many' given"),
        ("seed: one", "seed: 'one' given, allowed is a whole number"),
        (
            "views: {crops: [{_target_: selfdistill.views.CropSpec, size: 8, sise: 8}]}",
            "did you mean views.crops.0.size?",
        ),
        ("trainer: null", "trainer: taken away or null"),
        (
            "student: {noise: '${seed'}",
            "student.noise: no viable alternative at input '${seed'; a reference",
        ),
    ],
)
def test_a_file_of_the_users_own_is_checked_too(more: str, says: str | None, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(OWN.format(more=more), encoding="utf-8")
    where = (f"file://{tmp_path}",)
    if says is None:
        assert check("train", ["experiment=mine"], search_path=where).plain["method"]["hidden_dim"] == 64
    else:
        assert says in line("experiment=mine", search_path=where)


def test_a_file_that_overrides_groups_in_the_wrong_place(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "defaults:\n  - override /views: dino\nseed: 1\n", encoding="utf-8"
    )
    assert "begins with the line: # @package _global_" in line("experiment=mine", search_path=(f"file://{tmp_path}",))


def test_a_folder_of_any_name_is_searched(tmp_path: Path) -> None:
    folder = tmp_path / "ü, x=(1) it's"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 11\n", encoding="utf-8")
    assert check("train", ["experiment=mine"], search_path=[f"file://{folder}"]).plain["seed"] == 11


def test_other_commands_are_checked_too() -> None:
    assert "images: 'x' given, allowed is a whole number" in line("images=x", name="preview")
    assert "sed: no such key; did you mean seed?" in line("+sed=3", name="preview")
    assert "checkpoint: not given" in line(name="evaluate")
    assert "solver=lbfgs does not read it" in line(
        "checkpoint=x", "protocol=linear", "protocol.linear.epochs=3", name="evaluate"
    )


def test_no_torch_is_imported_for_a_refusal() -> None:
    code = (
        "import sys\nfrom selfdistill.config import check\n"
        "check('train', ['teacher.momentum=0.99', '+weights.distill=1'])\n"
        "print('torch' in sys.modules, 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_what_stands_beside_arguments_is_none_of_them() -> None:
    for group, names in BESIDE.items():
        for file in (CONF / group).glob("*.yaml"):
            plain = check(*choice(group, file.stem)).plain[group]
            found = signature(plain["_target_"])
            assert found is not None
            assert not names & found.parameters.keys()


def test_what_is_read_only_sometimes_is_there() -> None:
    """A key that was renamed would pass unseen."""
    given = [[f"method={name}"] for name in ("byol_like", "dino_like", "dinov2_like", "swav_like")]
    leaves = {key for own in [*given, ["teacher=frozen"]] for key, _ in flatten(check("train", own).plain)}
    leaves |= {key for key, _ in flatten(check("evaluate", ["checkpoint=none"]).plain)}
    assert {key for row in unread._UNREAD for key in row[:2]} <= leaves
