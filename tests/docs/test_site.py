"""The site: built strictly without the network, whole, and readable on a phone and a screen in both themes."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import metaopt
from metaopt.experiment import Experiment
from metaopt.runs.index import bare
from scripts import pages
from tests.browser import Browser, browser_or_skip

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# What the page's own button keeps of a theme, by its place among the themes.
CHOOSE = """__md_set("__palette", {"index": INDEX, "color": {
  "media": "", "scheme": ["default", "slate"][INDEX], "primary": "custom", "accent": "custom"}})"""
DECISIONS = ("settings.md", "failures.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it, as `mkdocs build --strict` makes it."""
    for module in ("material", "mkdocstrings_handlers.python", "jupytext"):
        pytest.importorskip(module, reason="the extra `docs` is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    place = tmp_path_factory.mktemp("site") / "site"
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(place), strict=True)
    build(config)  # a warning, such as of a link to nowhere, ends it
    return place


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]*"', text)
        fetched += re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|preload)"[^>]+href="(?:https?:)?//[^"]*"', text)
        assert not fetched, (page, fetched[:3])


def test_every_public_name_has_its_place(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    missing = [name for name, room in metaopt._WHERE.items() if f'id="metaopt.{room}.{name}"' not in text]
    assert not missing


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(browser_or_skip(), tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def test_pages_fit_a_phone_and_a_screen_in_both_themes(site: Path, browser: Browser) -> None:
    opened = [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]  # which only a server shows
    browser.open(opened[0], width=1300)
    for index, page in enumerate(opened):
        width, dark = ((390, False), (1300, True), (390, True), (1300, False))[index % 4]
        browser.run(CHOOSE.replace("INDEX", str(int(dark))))
        browser.errors.clear()
        browser.open(page, width=width, phone=width == 390)
        assert browser.run("document.body.dataset.mdColorScheme") == ("slate" if dark else "default"), page
        assert browser.run("document.documentElement.scrollWidth") <= width, page
        errors = [error for error in browser.errors if not error.startswith("asked for data:")]
        assert not errors, (page, errors)


# ----- what needs no site ---------------------------------------------------------------------------------------------


def test_the_reference_is_that_of_the_code() -> None:
    from metaopt.cli.commands import COMMANDS
    from metaopt.registry import REGISTRIES

    commands, fields, entries = pages.commands_page(), pages.fields_page(), pages.entries_page()
    assert all(f"## {name}\n" in commands and f"usage: metaopt {name}" in commands for name in COMMANDS)
    assert all(f"### {name}\n" in entries for registry in REGISTRIES for name in registry)
    flags = [f"`--{field.name.replace('_', '-')}`" for field in dataclasses.fields(Experiment)]
    parts = ("`--meta-optimizer`", "`--curriculum`", "`--validation`", "`--evaluation`", "`--log`")
    assert all(flag in fields for flag in flags if flag not in parts)
    assert "`--memory`\n:   GiB on a device for what an unroll's reverse pass reads" in fields
    assert "`--meta-optimizer.clip-adaptive`\n:   By norm, at this multiple" in fields


def test_lines_end_where_words_do() -> None:
    def shown(html: str) -> str:
        return pages.on_page_content(html, None, None, None)

    assert shown("<code>train --from RUN</code>") == '<code>train <span class="flag">--from</span> RUN</code>'
    assert shown("<code>step_rule</code>") == "<code>step_rule</code>"
    block = "<pre><span></span><code>train --from RUN: loss=0.62 after 100 steps, and 0.5 after 200</code></pre>"
    assert shown(block) == block
    long = "lstm:alpha_bias=-2.0,features=all,noise=none"
    assert re.sub("<[^>]*>", "", shown(f"<code>{long}</code>")) == long
    row = f"<td><code>step_rule=direct</code></td><td>{'word ' * 20}</td>"
    assert shown(f"<table><th></th><th></th>{row}</table>").count("<wbr>") == 2
    assert shown(f"<table>{'<th></th>' * 4}{row}</table>").count('<td class="long">') == 1
    paragraph = "so many words that their line was ended by hand and not by the page on which they stand"
    listed = "Args:\n  one: this\n    and that.\n  two: other."
    assert f"{paragraph} {paragraph}\n\nArgs:\n  one: this and that.\n  two: other.\n" in pages.flowing(
        f"{paragraph}\n{paragraph}\n\n{listed}"
    )
    helped = pages.helped("usage: metaopt x\n\nTakes a_b.\n\noptions:\n  -h  help\n\nothers:\n  -v  version")
    assert helped.count("```") == 4 and "\n\nTakes a\\_b.\n\n" in helped


def test_every_file_of_a_run_is_described(finished: Path) -> None:
    text = (DOCS / "reference" / "run_folder.md").read_text(encoding="utf-8")
    for path in finished.iterdir():
        name = re.sub(r"best_\d+x", "best_1x", path.name)
        assert path.name.startswith(".") or f"`{name}`" in text or f"`{name}/`" in text, path.name


@pytest.mark.parametrize("name", DECISIONS)
def test_figures_of_decisions_stand_in_the_pages_they_link_to(name: str) -> None:
    """A row with a figure is a row of a linked page, or holds a link itself."""
    text = (DOCS / name).read_text(encoding="utf-8")
    linked = {pages.resolved(f"docs/{name}", found["link"]) for found in pages.LINK.finditer(text)}
    rows = {row for place in linked if place for row in (ROOT / place).read_text(encoding="utf-8").splitlines()}
    plain = [row for row in text.splitlines() if row.startswith("|") and "](" not in row]
    quoted = [row for row in plain if re.search(r"\d\.\d", re.sub(r"`[^`]*`", "", row))]
    assert len(quoted) > 5
    assert not [row for row in quoted if row not in rows]


def test_links_of_the_readme_and_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = pages.FENCE.sub("", page.read_text(encoding="utf-8"))
        for found in pages.LINK.finditer(text):
            target = pages.resolved(str(page.relative_to(ROOT)), found["link"])
            made = os.path.relpath(page.parent / found["link"], DOCS) in pages.GENERATED
            assert target is not None or made, (page.name, found["link"])


def blocks() -> list[Any]:
    """(page, all its blocks of Python, in order) but the example, which another test runs."""
    found = []
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        text = re.sub(r"<!-- example -->\n```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        found += [pytest.param("\n".join(code), id=page.name)] * bool(code)
    return found


@pytest.mark.parametrize("code", blocks())
def test_blocks_of_python_run(
    code: str, register: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = metaopt.meta_train
    monkeypatch.chdir(tmp_path)
    if "runs/" in code:
        shutil.copytree(finished, tmp_path / "runs" / "quadratic_rl" / "001")

    def briefly(experiment: Experiment) -> Any:
        return train(dataclasses.replace(experiment, num_meta_steps=2, num_tasks=2, horizon=4))

    monkeypatch.setattr(metaopt, "meta_train", briefly)
    exec(compile(code, "docs", "exec"), {})


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        kinds = re.findall(r"^```(\w*)\n.*?^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        assert set(kinds) <= {"sh", "python", "yaml"}, page.name


def test_a_sweep_of_wandbs_that_is_shown_names_fields() -> None:
    text = (DOCS / "wandb.md").read_text(encoding="utf-8")
    held = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert held["command"][:2] == ["metaopt", "train"] and "${args}" in held["command"]
    assert set(held["parameters"]) <= set(bare())


def test_the_citation_is_of_this_version() -> None:
    held = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert held["version"] == metaopt.__version__ and held["license"] == "Apache-2.0"
