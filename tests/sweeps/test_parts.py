"""The parts of a sweep: its plan, how a run is found again, what its page says."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from selfdistill.config import CONF, UserError, check
from selfdistill.config.quoting import quoted
from selfdistill.report import write_report
from selfdistill.report.comparison import comparison
from selfdistill.report.effects import levels, main_effects
from selfdistill.report.sweep import Job, Sweep, over_seeds, read_sweep, write_job
from selfdistill.run_folder import claim
from selfdistill.sweeps.matching import Found, find, identity, new_name, stored_identity
from selfdistill.sweeps.plan import Plan, plan

FOUR = ["teacher.momentum", "optimizer.lr", "objective.contrastive.temperature", "objective.weight"]


def planned(*arguments: str) -> Plan:
    return plan(get_args_parser().parse_args(["-m", *arguments]), "train")


def job(number: int, knn: float | None, status: Any = "finished", **settings: str) -> Job:
    summary = {} if knn is None else {"validation_knn": knn, "seconds": {"train": 1.0}}
    series = {"train/loss": [(0.0, 3.0), (10.0, 1.0)]} if knn is not None else {}
    return Job(number, settings, status, "" if knn else "it is <too> wide", f"{number:03d}", summary, series)


def sweep_of(*jobs: Job) -> Sweep:
    return Sweep("a <sweep>", "python -m src.train -m …", list(jobs[0].settings), list(jobs), len(jobs))


def test_the_folder_follows_from_the_command() -> None:
    one = planned("seed=0,1", "method=byol_like,dino_like")
    assert one.folder.parent.parts[-2:] == ("outputs", "sweeps")
    assert one.folder.name.startswith("seed-method-")
    assert one.swept == ["seed", "method"]
    assert one.jobs == [[f"seed={s}", f"method={m}"] for s in (0, 1) for m in ("byol_like", "dino_like")]
    assert planned("method=byol_like,dino_like", "hydra/launcher=joblib", "seed=0,1").folder.name != one.folder.name
    assert planned("seed=0,1", "method=byol_like,dino_like", "hydra/launcher=joblib").folder == one.folder
    assert planned("seed=0,2", "method=byol_like,dino_like").folder != one.folder
    assert planned("seed=0,1", "hydra.sweep.dir=here").folder == Path("here").resolve()


def test_a_search_leaves_its_jobs_to_the_sweeper() -> None:
    found = planned("hparams_search=optuna", "method=dino_like,byol_like")
    assert found.jobs is None
    assert found.swept == [*FOUR, "method"]
    assert planned("hparams_search=optuna", "teacher.momentum=0.9").swept == FOUR[1:]


@pytest.mark.parametrize("name", ["optuna", "mission"])
@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ("method=dino_like", set()),
        ("objective=none", {"objective.contrastive.temperature"}),
        ("teacher=none", {"teacher.momentum"}),
        ("method=simsiam_like", {"teacher.momentum"}),
        ("teacher=ema,none", set()),
    ],
)
def test_ranges_of_what_is_not_there_are_left_out(name: str, given: str, left_out: set[str]) -> None:
    swept = planned(f"hparams_search={name}", given).swept
    assert [key for key in swept if key in FOUR] == [key for key in FOUR if key not in left_out]


def test_ranges_of_a_file_of_the_users_are_kept_groups_and_mistakes_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    ranges = ["method: byol_like,multi_head", "data.batch_siez: 64,128", "method.heads.0.hidden_dim: 8,16"]
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n" + "".join(f"      {line}\n" for line in ranges)
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    found = planned("--config-dir", str(tmp_path), "experiment=mine")
    assert found.swept == [line.partition(":")[0] for line in ranges]


@pytest.mark.parametrize(
    ("given", "jobs"),
    [
        (("experiment=byol_imagenet_r50,dino_imagenet_vits16", "data.root=."), 2),
        (("debug=fast,limit",), 2),
        (("debug=glob(*)", "seed=0,1"), 8),
    ],
)
def test_what_may_choose_a_sweeper_may_be_swept(given: tuple[str, ...], jobs: int) -> None:
    found = planned(*given).jobs
    assert found is not None
    assert len(found) == jobs


def test_a_search_has_a_config_dir_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "ü, x"
    (folder / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /hydra/sweeper: optuna\n"
    (folder / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    assert planned("--config-dir", str(folder), "experiment=mine", "seed=0,1").jobs is None


def test_the_folder_tells_which_run_is_repeated(tmp_path: Path) -> None:
    names = set()
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        names.add(planned("--config-path", str(tmp_path / run), "seed=0,1").folder.name)
    assert len({planned("seed=0,1").folder.name, *names}) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ckpt_path=a,b", "ckpt_path: several given to a sweep, allowed is one"),
        ("cost_only=true", "cost_only: given to a sweep"),
        ("cost_only=true,false", "cost_only: given to a sweep"),
    ],
)
def test_keys_that_no_sweep_has(given: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        planned("seed=0,1", given)
    assert planned("seed=0,1", "ckpt_path=a", "cost_only=false").swept == ["seed"]


def test_the_search_ranges_are_the_typical_ones() -> None:
    text = OmegaConf.to_container(OmegaConf.load(CONF / "hparams_search" / "optuna.yaml"))
    assert isinstance(text, dict)
    params = text["hydra"]["sweeper"]["params"]
    assert params == {
        "teacher.momentum": "interval(0.99, 0.9999)",
        "optimizer.lr": "tag(log, interval(1.0e-4, 1.0e-3))",
        "objective.contrastive.temperature": "tag(log, interval(0.1, 1.0))",
        "objective.weight": "tag(log, interval(0.5, 2.0))",
    }
    callbacks = check("train", ["hparams_search=optuna", "run_dir=sweep/003"]).plain["callbacks"]
    assert callbacks["collapse_monitor"]["action"] == "stop"
    assert callbacks["median_stop"]["sweep"] == "sweep/003/.."


def test_a_job_waits_for_no_torch() -> None:
    code = "import sys, selfdistill.sweeps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", ["plain", "with space", "it's", "a=b,c", "ü", "back\\slash", "end\\", "\\'"])
def test_any_path_passes_hydras_grammar(path: str) -> None:
    assert check("train", [quoted("run_dir", path)]).plain["run_dir"] == path


def test_identity_is_the_whole_configuration_but_its_place(tmp_path: Path) -> None:
    config = check("train", ["seed=1"]).config
    wanted = identity(config)
    for name, change in (("same", {}), ("other", {"optimizer": {"weight_decay": 0.123}}), ("half", {})):
        folder = tmp_path / name
        folder.mkdir()
        there = OmegaConf.merge(config, {"run_dir": str(folder), "ckpt_path": "somewhere/last.ckpt"}, change)
        text = OmegaConf.to_yaml(there, resolve=True)
        (folder / "config.yaml").write_text(text[: len(text) // 2] if name == "half" else text)
    assert stored_identity(tmp_path / "same") == wanted
    assert stored_identity(tmp_path / "other") != wanted
    assert stored_identity(tmp_path / "half") != wanted
    assert stored_identity(tmp_path / "none") is None
    assert find(tmp_path, wanted) == Found("same", False)
    # and as a run writes it
    config.run_dir = str(tmp_path / "run")
    claim(tmp_path / "run", config)
    assert stored_identity(tmp_path / "run") == wanted
    # two of it, as after a sweep whose jobs ran twice: the one that came to its end
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.yaml").write_text((tmp_path / "same" / "config.yaml").read_text())
    (tmp_path / "whole" / "summary.json").write_text("{}")
    assert find(tmp_path, wanted) == Found("whole", True)
    assert find(tmp_path, "another") is None
    assert [new_name(tmp_path, 0), new_name(tmp_path, 0)] == ["000", "001"]


def test_main_effects_are_those_of_the_textbook() -> None:
    # a 2×2 design: the means of a lie 0.3 from the middle, those of b 0.1
    values = {("x", "0"): 0.1, ("x", "1"): 0.3, ("y", "0"): 0.7, ("y", "1"): 0.9}
    effects = main_effects(sweep_of(*(job(n, v, a=a, b=b) for n, ((a, b), v) in enumerate(values.items()))))
    total = statistics.pvariance(values.values())
    expected = {"a": 0.3**2 / total, "b": 0.1**2 / total}
    assert [effect.key for effect in effects] == ["a", "b"]
    for effect in effects:
        assert effect.share == pytest.approx(expected[effect.key])
        assert effect.chance == pytest.approx(1 / 3)
    # orthogonal and without interaction: together they explain everything
    assert sum(effect.share for effect in effects) == pytest.approx(1)
    assert effects[0].groups == [("y", pytest.approx(0.8), 2), ("x", pytest.approx(0.2), 2)]
    assert main_effects(sweep_of(job(0, 0.5, a="x"), job(1, 0.5, a="y")))[0].share == 0


def test_many_numbers_are_ranges_and_few_are_themselves() -> None:
    assert levels(["1", "2", "1"]) == ["1", "2", "1"]
    assert levels(["a", "b", "1", "2", "3", "4", "5", "6"]) == ["a", "b", "1", "2", "3", "4", "5", "6"]
    named = levels([str(value / 100) for value in range(8)])
    assert len(set(levels([str(0.99 + value / 1e5) for value in range(8)]))) == 4
    assert list(dict.fromkeys(named)) == ["0 to 0.01", "0.02 to 0.03", "0.04 to 0.05", "0.06 to 0.07"]


def test_seeds_are_averaged_where_the_rest_is_the_same() -> None:
    jobs = [job(n, v, m=m, seed=s) for n, (m, s, v) in enumerate([("x", "0", 0.5), ("x", "1", 0.7), ("y", "0", 0.9)])]
    best, other = over_seeds(sweep_of(*jobs, job(3, None, "failed", m="y", seed="1")))
    assert (best.settings, best.mean, best.std) == ({"m": "y"}, 0.9, None)
    assert other.mean == pytest.approx(0.6)
    assert other.std == pytest.approx(statistics.stdev([0.5, 0.7]))


class Balance(HTMLParser):
    """Whether every end tag ends the element that was opened last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_says_what_did_not_run() -> None:
    cells = [(m, lr, s) for m in ("byol_like", "<b>") for lr in ("0.1", "0.001") for s in ("0", "1")]
    jobs = [job(n, 0.5 + n / 100, method=m, lr=lr, seed=s) for n, (m, lr, s) in enumerate(cells)]
    refused = job(8, None, "refused", method="swav_like", lr="0.1", seed="0")
    text = comparison(sweep_of(*jobs, refused))
    page = Balance(text)
    assert page.open == []
    assert not {"b", "script", "link", "img", "iframe"} & page.tags
    assert not re.search(r"http|url\(|@import| src=", text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Over seeds",
        "Runs",
        "What mattered",
        "Settings and figure",
        "Curves",
        "Not finished",
    ]
    assert "Best run: method=&lt;b&gt; lr=0.001 seed=1 (007), validation k-NN 0.5700" in text
    assert "Best over seeds: method=&lt;b&gt; lr=0.001, 0.5650 ± 0.0071" in text
    assert "it is &lt;too&gt; wide" in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    curves = text[text.index("<h2>Curves") :]
    assert len(re.findall("<polyline", curves)) == 8
    # the best run is drawn last, over the others
    assert re.findall(r'<g class="([^"]*)"', curves)[-1] == "best"


def test_ties_are_said_and_the_legend_names_what_is_drawn() -> None:
    jobs = [job(0, 0.5, m="x"), job(1, 0.5, m="y"), job(2, 0.4, m="z"), job(3, None, "refused", m="never")]
    text = comparison(sweep_of(*jobs))
    assert "Best run: m=x (000), validation k-NN 0.5000, as 1 other." in text
    assert re.findall(r"</i>(.*?)</li>", text) == 2 * ["x", "y", "z"]
    assert "others" not in comparison(sweep_of(*jobs[1:]))
    assert ", as 2 others." in comparison(sweep_of(*jobs, job(4, 0.5, m="x")))


def test_too_few_figures_to_tell_what_mattered_are_said() -> None:
    jobs = [job(0, 0.5, m="x"), job(1, 0.4, m="y"), job(2, None, "failed", m="z")]
    said = "<h2>What mattered</h2><p class=facts>Not told: it takes 3 runs with a figure or more, here are {}.</p>"
    assert said.format(2) in comparison(sweep_of(*jobs))
    assert said.format(0) in comparison(sweep_of(jobs[2]))
    assert "Not told" not in comparison(sweep_of(*jobs, job(3, 0.3, m="z")))


@pytest.mark.parametrize("jobs", [[job(0, None, "failed")], [job(0, 0.5)], [job(0, 0.5, a="x"), job(1, 0.5, a="x")]])
def test_a_page_of_little(jobs: list[Job]) -> None:
    assert Balance(comparison(sweep_of(*jobs))).open == []


def test_the_report_of_a_sweeps_folder_is_its_comparison(tmp_path: Path) -> None:
    about = {"command": "c", "swept": ["a"], "jobs": [{}]}
    (tmp_path / "sweep.json").write_text(json.dumps(about))
    write_job(tmp_path, Job(0, {"a": "x"}, "refused", "a line"))
    assert write_report(tmp_path) == tmp_path / "comparison.html"
    assert read_sweep(tmp_path).jobs == [Job(0, {"a": "x"}, "refused", "a line")]
    (tmp_path / "jobs" / "000.json").write_text("{")
    with pytest.raises(UserError, match="the sweep's files cannot be read"):
        write_report(tmp_path)
