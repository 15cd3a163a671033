"""What the site holds beside docs/*.md, made while mkdocs builds it; `hooks` of mkdocs.yml.

References come from the code, notebooks become pages, and what a page links to elsewhere in the repository (an
experiment's page with its figures and results, an example) is taken along, so that no link leaves the site.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import posixpath
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ALWAYS = ("CHANGELOG.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("experiments/**/README.md")))
LINK = re.compile(r"(?<=\]\()(?P<link>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
FIGURE = re.compile(r'(?<=src=")(?P<a>[^":]+)(?=")|(?<=srcset=")(?P<b>[^":]+)(?=")')
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
CELL = re.compile(r"(<t[dh]\b[^>]*>)(.*?)(?=</t[dh]>)", re.DOTALL)
CODE = re.compile(r"<pre\b.*?</pre>|<code>([^<]*)</code>", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])(--?[a-z][\w.-]*)")
FENCE = re.compile(r"^(```+).*?^\1$", re.DOTALL | re.MULTILINE)


# ----- mkdocs ---------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Adds what is generated, then what anything links to."""
    from mkdocs.structure.files import File

    def add(place: str, content: str | bytes) -> None:
        files.append(File.generated(config, place, content=content))

    for place, make in GENERATED.items():
        add(place, make())
    for notebook in sorted(DOCS.glob("tutorials/*.ipynb")):
        add(f"tutorials/{notebook.stem}.md", notebook_page(notebook))
    pages = {page.src_uri: page for page in files.documentation_pages()}
    todo = [(f"docs/{place}", page.content_string) for place, page in pages.items()]
    todo += [("README.md", f"[]({place})") for place in ALWAYS]
    seen = set()
    while todo:
        origin, text = todo.pop()
        for target in targets(origin, text):
            if target in seen or site_place(target) in pages:  # README is the first page
                continue
            seen.add(target)
            path = ROOT / target
            if site_place(target).endswith(".md"):
                content = as_page(path)
                add(site_place(target), content)
                todo.append((target, content))
            else:
                add(target, path.read_bytes())
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points links at where their targets lie on the site, and puts docs' own drawings into the page."""
    origin = page.file.src_uri
    source = f"docs/{origin}" if (DOCS / origin).exists() or origin.startswith(OWN) else origin

    def moved(found: re.Match[str]) -> str:
        target = resolved(source, found["link"])
        if target is None:
            return found[0]
        place = posixpath.relpath(site_place(target), posixpath.dirname(origin) or ".")
        return place + (found["anchor"] or "")

    text = outside_code(markdown, lambda part: LINK.sub(moved, part))
    return re.sub(r"^!\[([^\]]*)\]\((\S+\.svg)\)$", lambda found: drawing(source, found), text, flags=re.MULTILINE)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Lines do not end within a flag, but after signs of long code and of code in cells; long cells are told apart."""

    def code(found: re.Match[str], cell: bool = False) -> str:
        if found[1] is None:  # a block, which ends its lines itself
            return found[0]
        words = FLAG.split(found[1])  # every second one is a flag
        if cell or len(found[1]) > 30:
            words[::2] = [re.sub(r"(?<=[_=:,./])(?=\w)", "<wbr>", word) for word in words[::2]]
        words[1::2] = [f'<span class="flag">{word}</span>' for word in words[1::2]]
        return f"<code>{''.join(words)}</code>"

    def cell(found: re.Match[str], columns: int) -> str:
        long = columns > 3 and found[1] == "<td>" and len(re.sub("<[^>]*>", "", found[2])) > 60
        return ('<td class="long">' if long else found[1]) + CODE.sub(lambda one: code(one, cell=True), found[2])

    def table(found: re.Match[str]) -> str:
        columns = found[0].count("<th>")
        return CELL.sub(lambda one: cell(one, columns), found[0])

    return CODE.sub(code, TABLE.sub(table, html))


# ----- links ----------------------------------------------------------------------------------------------------------


def resolved(origin: str, link: str) -> str | None:
    """The path in the repository that a link of a page there means, if that is a file; tutorials by their notebooks."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    if target.startswith("..") or not (ROOT / target).is_file():
        return None
    return target


def targets(origin: str, text: str) -> Iterator[str]:
    """All such paths in a page."""
    text = FENCE.sub("", text)
    for found in [*LINK.finditer(text), *FIGURE.finditer(text)]:
        target = resolved(origin, found[0].partition("#")[0])
        if target is not None:
            yield target


def site_place(target: str) -> str:
    """Where a file of the repository lies on the site: docs/ at the top, code and notebooks as pages."""
    if target == "README.md":
        return "index.md"
    if target.startswith("docs/tutorials/") and target.endswith((".ipynb", ".py")):
        return f"{target.removeprefix('docs/').rpartition('.')[0]}.md"
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return target if Path(target).suffix in (".md", ".png", ".gif", ".svg", ".json", ".cff") else f"{target}.md"


def as_page(path: Path) -> str:
    """A page as it is, and code as one."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# {path.relative_to(ROOT)}\n\n````python\n{text.rstrip()}\n````\n"


def outside_code(text: str, change: Any) -> str:
    """The text, changed wherever it is not a block of code."""
    parts, end = [], 0
    for block in FENCE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def drawing(source: str, found: re.Match[str]) -> str:
    """A drawing of docs/ within the page, where it takes the page's colours."""
    target = resolved(source, found[2])
    if target is None:
        return found[0]
    svg = (ROOT / target).read_text(encoding="utf-8")
    return f'<div class="drawing">{re.sub(chr(10) + "+", " ", svg[svg.index("<svg") :]).strip()}</div>'


# ----- notebooks ------------------------------------------------------------------------------------------------------


def notebook_page(path: Path) -> str:
    """A notebook's cells and their outputs."""
    parts = []
    for index, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for number, output in enumerate(_joined(cell.get("outputs", ()))):
            parts.append(_output(output, f"{path.stem}-{index}-{number}"))
    title, rest = parts[0].split("\n", 1) if "\n" in parts[0] else (parts[0], "")
    note = f"*A [notebook]({path.name}): every number and picture was made by the code above it.*"
    return "\n\n".join([title, note, rest.strip(), *parts[1:]]) + "\n"


def _joined(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs, what was printed in several pieces as one."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        if found and "text" in output and "text" in found[-1]:
            found[-1] = {**output, "text": [*found[-1]["text"], *output["text"]]}
        else:
            found.append(output)
    return found


def _output(output: dict[str, Any], name: str) -> str:
    from metaopt.report.svg import for_page

    data = output.get("data", {})
    if "image/svg+xml" in data:
        svg = for_page("".join(data["image/svg+xml"]), prefix=name, description="figure")
        svg = svg.replace("#ffffff", "var(--paper,#ffffff)")
        return f'<div class="figure">{svg}</div>'
    if "image/png" in data:
        return f'<div class="figure"><img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}"></div>'
    text = "".join(output.get("text") or data.get("text/plain", ""))
    return f"``` {{.text .output}}\n{text.rstrip()}\n```"


# ----- references -----------------------------------------------------------------------------------------------------


def said(show: Any, *arguments: Any) -> str:
    """What a function prints, at 88 columns."""
    out = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "88"}), contextlib.redirect_stdout(out):
        show(*arguments)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).rstrip()


def flowing(text: str) -> str:
    """A block whose lines the page may end where it likes: lines of one paragraph or of one item are joined."""
    lines: list[str] = []
    length = 0  # of the line before, as it was
    for line in text.splitlines():
        indent, before = (len(one) - len(one.lstrip()) for one in (line, lines[-1] if lines else ""))
        paragraph = not indent and not before and length > 70
        item = 0 < before == indent - 2
        if line.strip() and (paragraph or item):
            lines[-1] += " " + line.lstrip()
        else:
            lines.append(line)
        length = len(line)
    return "``` {.text .wrap}\n" + "\n".join(lines) + "\n```"


def helped(text: str) -> str:
    """A command's help: its paragraphs as such, all else, of two columns mostly, as it is."""
    parts: list[str] = []
    for part in text.split("\n\n"):
        if part.startswith("usage:") or re.search(r"^[ -]", part, re.MULTILINE):
            block = parts.pop()[:-3] + "\n" if parts and parts[-1].endswith("```") else "``` {.text .help}\n"
            parts.append(f"{block}{part.rstrip()}\n```")
        else:
            parts.append(_plain(part))
    return "\n\n".join(parts)


def commands_page() -> str:
    """Every command's help."""
    from metaopt.cli.commands import COMMANDS
    from metaopt.cli.entry import main

    parts = ["# Commands", "What `metaopt COMMAND --help` prints, and `metaopt --help` first."]
    parts.append(helped(said(main, ["--help"])))
    parts.append("The fields of an experiment, which `train` and `launch` take as flags, have [a page](fields.md).")
    for name in COMMANDS:
        parts += [f"## {name}", helped(said(main, [name, "--help"]))]
    return "\n\n".join(parts) + "\n"


def fields_page() -> str:
    """The fields of an experiment and of its parts."""
    from metaopt import experiment

    parts = [
        "# Fields of an experiment",
        "An experiment is a frozen dataclass, `metaopt.Experiment`. Each field is a flag of `metaopt train` and a key "
        "of `config.json`; those of its parts are written with a dot, `--meta-optimizer.learning-rate 3e-3`. A task, "
        "an optimizer, an estimator and an oracle are [entries](entries.md), written `NAME:key=value,...`; "
        "`:key=value` changes options of the one that stands there.",
    ]
    inner = {"meta_optimizer": "MetaOptimizer", "curriculum": "Curriculum", "validation": "Validation"}
    inner |= {"evaluation": "Evaluation", "log": "Log"}
    for field, name in {"": "Experiment", **inner}.items():
        kind = getattr(experiment, name)
        comments = field_comments(kind)
        called = f"`{name}`" + (f", the field `{field}`" if field else "")
        parts += [f"## {name}", f"{called}. {inspect.getdoc(kind)}"]
        for each in dataclasses.fields(kind):
            if each.name not in inner:
                flag = f"--{field}.{each.name}".replace("--.", "--").replace("_", "-")
                words = comments[each.name]
                parts.append(f"`{flag}`\n:   {_sentence(words)}.  \n    `{each.type}`, default: {_default(each)}")
    return "\n\n".join(parts) + "\n"


def _default(field: Any) -> str:
    from metaopt.choices import Choice

    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "must be given"
    if isinstance(value, Choice):
        return f"`{value}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value) or "none"
    return f"`{value}`".replace("None", "none")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def field_comments(kind: type) -> dict[str, str]:
    """Field -> the comment at its line, of a class whose fields are explained so."""
    lines = inspect.getsource(kind)
    held = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(lines).readline)
        if token.type == tokenize.COMMENT
    }
    (made,) = ast.parse(lines).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for node in made.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            place = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found[node.target.id] = " ".join(held[line] for line in place if line in held)
    return {name: words for name, words in found.items() if words}


def entries_page() -> str:
    """Every entry of the registries, as `metaopt list` and `metaopt list NAME` tell of them."""
    from metaopt.cli import list as listing

    sections = listing.listing()
    parts = [
        "# Everything that can be named",
        "What `metaopt list` and `metaopt list NAME` print. An entry of your own joins them with one decorator: "
        "[how](../extending.md).",
    ]
    for title, entries in sections.items():
        registry = next((one for one in listing.REGISTRIES if title == listing.plural(one.kind)), None)
        rows = ["| name | |", "| --- | --- |"]
        for name, words in entries.items():
            shown = f"[`{name}`](#{name})" if registry else f"`{name}`"
            rows.append(f"| {shown} | {_plain(words)} |")
        parts += [f"## {title.capitalize()}", "\n".join(rows)]
        for name in entries if registry else ():
            parts += [f"### {name}", flowing(said(listing.print_options, name, registry))]
    return "\n\n".join(parts) + "\n"


def _plain(words: str) -> str:
    """Words of a docstring in a cell of a table."""
    return re.sub(r"(?<!`)([*_|\\\[\]<>])(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"\\\1", words)


GROUPS = {
    "Meta-train": ("Experiment", "choice", "meta_train", "Trainer", "load_experiment"),
    "Use and judge an optimizer": (
        *("load", "pretrained", "to_torch", "evaluate", "Curves", "EarlyStopping", "build_optimizer"),
    ),
    "Read runs": ("load_run", "load_results"),
    "Tasks of your own": ("make_task", "TaskFamily", "Hyper", "Law"),
    "Entries of your own": (
        *("TASKS", "ORACLES", "OPTIMIZERS", "ESTIMATORS", "OBJECTIVES", "Optimizer", "Oracle", "Estimate"),
        *("MetaGradient", "Objective", "Schedule"),
    ),
    "The inner loop": ("bind_tasks", "reset", "step", "unroll"),
    "Parts of an experiment": ("MetaOptimizer", "Validation", "Evaluation", "Log", "Choice"),
}
BESIDE = {
    "metaopt.plots": ("curves", "meta_training", "horizons", "compare", "profile"),
    "metaopt.testing": ("check_task", "check_optimizer", "check_estimator"),
    "metaopt.data": ("load_dataset",),
    "metaopt.evaluation.tuning": ("tune_baselines",),
    "metaopt.estimators.bilevel": (
        *("Problem", "descend", "unrolled", "hoag", "implicit", "neumann", "identity", "drmad", "greedy"),
    ),
}


def python_page() -> str:
    """The public names, and those that pages show beside them."""
    import metaopt

    grouped = {name for names in GROUPS.values() for name in names}
    others = tuple(name for name in metaopt._WHERE if name not in grouped)
    groups = {**GROUPS, **({"Others": others} if others else {})}
    parts = ["# Python", "All names of the first sections are `metaopt.NAME`."]
    for title, names in groups.items():
        parts.append(f"## {title}")
        parts += [f"::: metaopt.{metaopt._WHERE[name]}.{name}" for name in names]
    for module, names in BESIDE.items():
        doc = inspect.getdoc(importlib.import_module(module)) or ""
        parts += [f"## {module}", doc.partition("\n")[0]]
        parts += [f"::: {home(module, name)}" for name in names]
    return "\n\n".join(parts) + "\n"


def home(module: str, name: str) -> str:
    """Where a name that a module offers is written."""
    return f"{getattr(importlib.import_module(module), name).__module__}.{name}"


GENERATED = {
    "reference/commands.md": commands_page,
    "reference/fields.md": fields_page,
    "reference/entries.md": entries_page,
    "reference/python.md": python_page,
}
OWN = ("reference/", "tutorials/")  # folders of docs/ with pages that are made here
