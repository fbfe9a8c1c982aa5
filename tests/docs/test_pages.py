"""The pages: one a method, whole, with figures from RESULTS.md, naming nothing that is not there."""

from __future__ import annotations

import ast
import datetime
import importlib
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import hook
import pytest
import yaml
from generate import MARK, expand, links, picture, results, settings
from generate.docstrings import arguments, plain
from generate.overview import front_matter
from read_pages import ROOT, pages

from selfdistill import __version__
from selfdistill.callbacks import Thresholds
from selfdistill.config import CONF, check, flatten
from selfdistill.estimate import Planned

DOCS = ROOT / "docs"
METHODS = settings.names()
ROOMS = [
    "divergences",
    "divergences.functional",
    "targets",
    "teacher",
    "callbacks",
    "evaluation",
    "optim",
    "objectives",
]
ROOMS += ["regularizers", "views", "networks", "heads", "data", "export"]


@cache
def raw(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def whole(path: Path) -> str:
    """The page as the site has it."""
    text = raw(path)
    meta = front_matter(path) if text.startswith("---\n") else {}
    return expand(text, path.stem, meta)


def named(pattern: str) -> set[str]:
    """What the pages have of it, anywhere."""
    return {found for path in pages() for found in re.findall(pattern, raw(path))}


# a page a method ------------------------------------------------------------------------------------------------------


def test_every_method_has_its_page() -> None:
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == {*METHODS, "index"}


def test_pages_that_the_navigation_does_not_name_come_after_the_others() -> None:
    config = {"nav": yaml.safe_load(raw(ROOT / "mkdocs.yml"))["nav"], "docs_dir": str(DOCS), "mdx_configs": {}}
    config["nav"][2]["Methods"].remove({"DINO": "methods/dino_like.md"})
    assert hook.on_config(config)["nav"][2]["Methods"][-1] == "methods/dino_like.md"


def test_the_navigation_names_no_page_twice() -> None:
    pages = re.findall(r"\S+\.md$", raw(ROOT / "mkdocs.yml").partition("\nnav:")[2], re.MULTILINE)
    assert len(pages) == len(set(pages)) > 30


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_page_is_whole(method: str) -> None:
    path = DOCS / "methods" / f"{method}.md"
    text = raw(path)
    assert [what for what, _ in MARK.findall(text)] == ["picture", "collapses", "figures", "settings"]
    assert "```math" in text
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    wanted = ["Loss", "Run it", "When to use it", "What collapses it", "Measured", "Settings", "Paper"]
    assert headings == wanted
    assert re.search(r"\]\(https://arxiv\.org/abs/\d+\.\d+\)", text)
    assert f"python -m src.train method={method}" in text
    assert re.search(r"experiment=\w+ data\.root=<", text)
    assert "<!-- insert" not in whole(path)


@pytest.mark.parametrize("page", [p for p in pages() if p.is_relative_to(DOCS)], ids=lambda p: str(p.relative_to(DOCS)))
def test_a_page_with_marks_says_where_a_reader_of_the_file_finds_what_they_stand_for(page: Path) -> None:
    said = re.findall(r"^> In the repository: (.+)$", raw(page), re.MULTILINE)
    generated = MARK.search(raw(page)) is not None or page.parent.name == "reference"
    assert len(said) == generated
    assert all((page.parent / path).exists() for line in said for path in re.findall(r"\]\((.+?)\)", line))
    assert "> In the repository" not in whole(page)


@pytest.mark.parametrize("method", METHODS)
def test_the_picture_is_drawn_within_its_edges(method: str) -> None:
    spec = front_matter(DOCS / "methods" / f"{method}.md")["picture"]
    drawing = ElementTree.fromstring(picture.svg(spec, method)).find("{*}svg")
    assert drawing is not None
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    texts = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {*spec["student"], *spec["teacher"], *spec["loss"]} <= set(texts)
    for box in drawing.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_are_those_of_the_command_and_the_paper(method: str) -> None:
    meta = front_matter(DOCS / "methods" / f"{method}.md")
    table = settings.table(method, meta)
    rows = {row[0].strip("`"): row[1:] for line in table.splitlines() if (row := re.split(r" ?\| ?", line)[1:-1])}
    digits = dict(flatten(settings.composed(method, None)))
    written = yaml.safe_load(raw(CONF / "method" / f"{method}.yaml"))
    for key, value in written["method"].items():
        if key not in ("_target_", "_convert_", "paper") and isinstance(value, int | float):
            here, there, meaning = rows[f"method.{key}"]
            assert here == settings._show(digits[f"method.{key}"])
            assert there.startswith(settings._show(value))
            assert ("not checked" in there) is (f"method.{key}" in meta.get("unchecked", []))
            assert meaning
    paper = written["method"]["paper"]
    assert float(rows["optimizer.lr"][1]) == paper["optimizer"]["lr"]
    assert float(rows["optimizer.lr"][0]) == digits["optimizer.lr"]
    assert int(rows["data.batch_size"][1]) == paper["batch_size"]
    if "momentum" in paper:
        assert float(rows["teacher.momentum"][1]) == paper["momentum"]


@pytest.mark.parametrize("method", METHODS)
def test_figures_are_those_of_the_results(method: str) -> None:
    line = next(x for x in raw(results.RESULTS).splitlines() if x.startswith(f"| `{method}` | small_"))
    shown = next(x for x in results.figures(method).splitlines() if method in x)
    cells = [cell.strip() for cell in shown.replace("\u00a0", " ").split("|")[2:-1]]
    assert cells == [cell.strip() for cell in line.split("|")[3:7]]
    broken = [x for x in raw(results.RESULTS).splitlines() if re.match(rf"\| `{method}` \| .* → .* \| 0\.", x)]
    assert results.collapses(method).count("→") >= len(broken) > 0


def test_what_was_not_reached_is_told() -> None:
    missed = raw(results.RESULTS).count("| no |")
    kinds = sum(row.get("reached") == "no" for name in results.sections() for t in results.tables(name) for row in t)
    assert 0 < kinds <= missed
    assert results.missed().count("\n") == kinds + 1


def test_a_wrong_mark_and_a_wrong_section_are_refused() -> None:
    with pytest.raises(ValueError, match="insert pictures given, allowed is picture"):
        expand("<!-- insert pictures -->", "page", {})
    with pytest.raises(ValueError, match="section 'nothing' given"):
        results.body("nothing")
    with pytest.raises(ValueError, match="remarks 'nothing' given"):
        results.remarks("nothing")


def test_docstrings_are_read_as_markdown() -> None:
    assert plain("a :class:`~a.B` and ``c``") == "a `a.B` and `c`"
    assert arguments("methods/byol.py", "BYOL")["out_dim"] == "P, width of the projections."


# what the pages name --------------------------------------------------------------------------------------------------


def defined(path: Path) -> set[str]:
    """Functions of a test file, as pytest names them."""
    names = set()
    for node in ast.parse(raw(path)).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
            names |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
    return names


def resolve(name: str) -> Any:
    """The object of a dotted name."""
    for cut in range(len(name.split(".")), 0, -1):
        module, rest = name.split(".")[:cut], name.split(".")[cut:]
        try:
            found: Any = importlib.import_module(".".join(module))
        except ModuleNotFoundError:
            continue
        for part in rest:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_every_formula_of_a_concept_names_its_function_and_its_test() -> None:
    formulas = 0
    for path in (DOCS / "concepts").glob("*.md"):
        for below in re.split(r"^```math$.*?^```$", raw(path), flags=re.MULTILINE | re.DOTALL)[1:]:
            formulas += 1
            beside = re.split(r"^#+ ", re.sub(r"^```.*?^```$", "", below, flags=re.M | re.S), flags=re.M)[0]
            assert re.search(r"`selfdistill(?:\.\w+)+`", beside), path
            assert re.search(r"`tests/[\w/]+\.py::[\w:]+`", beside), path
    assert formulas > 5
    # no other way to write one
    assert not [path for path in (DOCS / "concepts").glob("*.md") if "$$" in raw(path)]


def test_extras_that_are_named_are_there_and_each_is_named() -> None:
    extras = tomllib.loads(raw(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    code = [path for folder in ("src", "conf", "examples") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [raw(path) for path in [*pages(), *code, ROOT / "Makefile"] if path.suffix in (".md", ".py", ".yaml", "")]
    found = {name for text in texts for name in re.findall(r"(?:selfdistill|\.)\[([\w,-]+)\]'", text)}
    assert found <= set(extras)
    assert {"onnx", "lightning-cli", "shards", "sweeps"} <= found


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load(raw(ROOT / "CITATION.cff"))
    assert cited["version"] == __version__ == tomllib.loads(raw(ROOT / "pyproject.toml"))["project"]["version"]
    assert isinstance(cited["date-released"], datetime.date)


def test_what_is_named_is_there() -> None:
    for test in named(r"`(tests/[\w/]+\.py::[\w:]+)`"):
        path, _, name = test.partition("::")
        assert name in defined(ROOT / path), test
    for path in named(
        r"[`(](?:python )?((?:tests|benchmarks|examples|docs|conf|notebooks)/[\w/]+\.(?:py|md|yaml|ipynb))\b"
    ):
        assert (ROOT / path).is_file(), path
    for name in named(r"`(selfdistill(?:\.\w+)+)`"):
        resolve(name)


def test_the_tables_of_costs_are_what_the_default_run_prints() -> None:
    planned = Planned(check("train", ["run_dir=x"]).config)
    lines = planned.table(planned.cost()).splitlines()
    assert "\n".join(lines) in raw(DOCS / "concepts" / "costs.md")
    shown = raw(ROOT / "README.md").partition(lines[0])[2].partition("\n\n")[0].splitlines()
    assert {*shown} <= {*lines, "", "…"}
    assert len(shown) > 4


def test_the_limits_of_alarms_are_the_monitors() -> None:
    limits, text = Thresholds(), raw(DOCS / "how_to" / "reading_a_run.md").replace("\n", " ")
    assert f"below {limits.dimensional:.0%} of the rank at the start".replace("%", " %") in text
    assert f"below {limits.dimensional_both:.0%} where the projections' spread is under".replace("%", " %") in text
    assert f"spread is under {limits.dimensional_projection:g} as well" in text
    assert f"agreement is below {limits.stale_agreement:g}," in text
    assert f"above {limits.stale:.0%} of the steps so far, after the first fifth".replace("%", " %") in text
    assert limits.stale_from == 0.2
    assert f"a mean age below {limits.copying:g} step." in text


def test_every_claim_names_a_test_or_a_table() -> None:
    text = raw(DOCS / "verification.md")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| claim")]
    assert len(rows) > 30
    for row in rows:
        assert "`tests/" in row or "](results.md#" in row, row


def test_every_measured_table_is_listed() -> None:
    titles = re.findall(r"^### (.+)$", raw(results.RESULTS), re.MULTILINE)
    assert re.findall(r"^- \[(.+?)\]\(", whole(DOCS / "verification.md"), re.MULTILINE)[-len(titles) :] == titles


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(map(whole, (DOCS / "reference").glob("*.md")))
    objects = [resolve(name) for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    for module in map(importlib.import_module, ["selfdistill", *(f"selfdistill.{room}" for room in ROOMS)]):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert value in objects, f"{module.__name__}.{name}"


@cache
def keys() -> frozenset[str]:
    """Every setting that some command has."""
    found: set[str] = set()
    for method in METHODS:
        found |= {key for key, _ in flatten(settings.composed(method, None))}
    others = [
        ("train", "logger=wandb", "teacher=snapshot", "callbacks=probe", "objective=[koleo,contrastive]"),
        ("train", "method=ema_teacher", "divergence=kl", "data=folder", "data.root=."),
        ("train", "hparams_search=optuna", "run_dir=x"),
        ("evaluate", "checkpoint=x"),
        ("export", "checkpoint=x"),
        ("preview",),
        ("pack", "source=x", "output=y"),
    ]
    for command, *given in others:
        found |= {key for key, _ in flatten(check(command, given).plain)}
    return frozenset(found | {key.rsplit(".", i)[0] for key in found for i in range(1, key.count(".") + 1)})


# arguments of Python, the end of a setting named before, any argument of another's logger, and mistakes that are shown
NOT_SETTINGS = {"embed", "evaluates", "weights_only", "action", "logger.wandb.name", "lr", "teacher.momentm"}


def test_settings_in_the_text_exist() -> None:
    for text in named(r"`(?:\+?)([a-z_]+(?:\.[\w.]+)?=[^`\s]*)`"):
        key, _, value = text.partition("=")
        if (CONF / key).is_dir():
            choices = {path.stem for path in (CONF / key).glob("*.yaml")}
            given = set(re.findall(r"\w+", value)) if "…" not in value and "<" not in value else set()
            assert given <= choices, text
        elif key not in NOT_SETTINGS and not key.startswith(("weights.", "hydra.")):
            key = re.split(r"\.\d+\.", key)[0]  # of a list, the list
            assert key in keys(), text


def test_links_of_the_repository_lead_to_pages() -> None:
    source, page = "docs/how_to/x.md", "how_to/x.md"
    assert links.moved("[r](../../benchmarks/RESULTS.md#a)", source, page) == "[r](../results.md#a)"
    assert links.moved("[f](../../examples/own_method.py), [s](wandb.md)", source, page) == "f, [s](wandb.md)"
    assert links.moved("[g](docs/compatibility.md)", "README.md", "index.md") == "[g](compatibility.md)"
    assert links.moved("heads[0](x), [w](https://x.y)", source, page) == "heads[0](x), [w](https://x.y)"
