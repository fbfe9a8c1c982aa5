"""`callbacks=probe`: the probe beside the default callbacks, in lines, files and summary; off by default."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from selfdistill.config import UserError, check
from selfdistill.runner import fit

QUICK = ("debug=fast", "evaluation.draws=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")


def train(folder: Path, *overrides: str) -> Path:
    config = check("train", [*QUICK, *overrides]).config
    config.run_dir = str(folder)
    fit(config)
    return folder


def test_it_is_shown_and_kept_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train(tmp_path / "plain")
    assert "probe" not in capsys.readouterr().out
    probed = train(tmp_path / "probed", "callbacks=probe")
    shown = capsys.readouterr().out
    summary = json.loads((probed / "summary.json").read_text(encoding="utf-8"))
    assert 0 < summary["validation_probe"] < 1
    assert f"probe {summary['validation_probe']:.4g}" in shown
    with open(probed / "metrics.csv", encoding="utf-8") as file:
        assert {"train/probe", "val/probe"} <= set(next(csv.reader(file)))
    # k-NN, monitor and best checkpoint are there as by default, and the network is the same to the bit
    assert (probed / "checkpoints" / "best.ckpt").is_file()
    before = json.loads((plain / "summary.json").read_text(encoding="utf-8"))
    assert before["validation_probe"] is None
    assert summary["figures"] == before["figures"]
    mine, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (plain, probed)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("callbacks.online_probe.lr=0", "callbacks.online_probe.lr: 0 given, allowed is above 0"),
        (
            "callbacks.online_probe.classes=null",
            "callbacks.online_probe.classes: null given, allowed is a whole",
        ),
        ("callbacks.online_probe.classes=5", "OnlineProbe.classes: 5 given, a label is 9; set classes"),
    ],
)
def test_a_mistake_is_one_line(setting: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{says}"):
        train(tmp_path / "run", "callbacks=probe", setting)
