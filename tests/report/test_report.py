"""The report: whole, offline, escaped, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from jinja2 import UndefinedError

from metaopt.choices import choice
from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.evaluation.curves import Curves
from metaopt.evaluation.record import describe_curves
from metaopt.evaluation.statistics import jsonable
from metaopt.experiment import Experiment
from metaopt.experiment.plain import to_json
from metaopt.report import words as report_words
from metaopt.report.horizons import Evaluated, horizons
from metaopt.report.page import TEMPLATES
from metaopt.report.panels import COLOURS, run_style
from metaopt.report.pictures import evaluation_figure
from metaopt.report.run_page import write_report
from metaopt.runs import evaluations
from metaopt.runs.state import write_state

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}
BAD = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Collects tags, text and attributes, and checks that elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.broken = False  # by <wbr>, which is no space
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.broken = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.broken:
            self.words[-1] += data
        elif not {"style", "script"} & set(self.open):
            self.words.append(data)
        self.broken = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def optimizer(kind: str, rate: float | None, final: object, failed: float, ratio: object) -> dict:
    summary = {"mean": final, "mean_interval": [0.1, final], "median": 0.25, "q25": 0.125, "q75": 0.5}
    curve = {"steps": [0, 5, 50], **{part: [2.0, 1.0, final] for part in ("mean", "median", "q25", "q75")}}
    return {
        "kind": kind,
        "tuned": rate and {"learning_rate": rate, "tried": 3, "gradients": 4321, "num_tasks": 3, "inside": True},
        "final": summary,
        "failed": failed,
        "rises": 0.0,
        "keeps_improving": 1.0,
        "ratio_to_best_baseline": {"of_means": ratio, "interval": [0.5, ratio], "median": 1.0},
        "test": {"accuracy": 0.9375, "loss": 0.3},
        "curve": curve,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    experiment = Experiment(
        tasks=(choice("quadratic", dim=7),),
        optimizer=choice("lstm", features="all"),
        estimator=choice("reparameterised"),
    )
    (tmp_path / "config.json").write_text(json.dumps(to_json(experiment)))
    return tmp_path


@pytest.fixture
def full(run: Path) -> Path:
    optimizers = {
        f"mine {BAD}": optimizer("learned", None, "inf", 0.25, "inf"),
        "adam": optimizer("baseline", 0.0316228, 0.0123456, 0.0, 1.0),
    }
    optimizers["adam"]["tuned"]["lowered_from"] = 0.1
    result = {
        "task": f"quadratic:{BAD}",
        "horizon": 50,
        "train_horizon": 5,
        "num_tasks": 16,
        "seed": 0,
        "evaluated_on": f"exact {BAD}",
        "best_baseline": "adam",
        "keeps_improving_at": 50,
        "optimizers": optimizers,
    }
    (run / "evaluation.json").write_text(json.dumps({"version": 1, "results": [result]}))
    environment = {
        "experiment": f"demo {BAD}",
        "command": ["metaopt", "train", "demo"],
        "versions": {"jax": "0.10.2"},
        "git": {"commit": "abc123", "dirty": True},
        "config": {"num_tasks": 77},
    }
    (run / "environment.json").write_text(json.dumps(environment))
    rows: list[dict] = [
        {
            "kind": "train",
            "meta_step": step,
            "meta_loss": 1 / step,
            "grad_norm": 0.5,
            "alive": 1.0,
            "diverged": 2,
            "skipped": 0,
        }
        for step in range(1, 2001)
    ]
    rows.insert(
        1000, {"kind": "validation", "meta_step": 1000, "validation/1x/median": 0.321, "validation/10x/median": "inf"}
    )
    lines = [json.dumps(row) for row in rows]
    (run / "metrics.jsonl").write_text("\n".join([*lines[:10], "not json", *lines[10:]]) + '\n{"kind": "train", "meta_')
    return run


def test_the_page_holds_everything(full: Path) -> None:
    path = write_report(full)
    assert path == full / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for words in (
        "Meta-training is done: 2,000 meta-steps.",
        "∞ 0.5 to ∞ ∞ 0.1 to ∞",  # the ratio and the mean with their intervals
        "4 of 16",  # failed
        "none of 16",
        "all 16",  # keeps improving
        "the best baseline",
        "93.8%",
        "rate 0.0316",
        "trained to 5",
        "The dashed line marks the training horizon, 5 steps.",
        "Keeps improving: lower at step 50",
        "4,000 inner runs became non-finite and were masked.",
        "0.321",
        "quadratic: dim = 7",
        "lstm: features = all",
        "num_meta_steps 2000",
        "meta_optimizer.learning_rate 0.001",
        "versions.jax 0.10.2",
        "commit abc123, with changes that were not committed",
        "metaopt train demo",
        "3 other tasks",
        "the best of 3",
        "4,321",
        "lowered from 0.1, which failed on some of the tasks reported here",
        "above 10 times the first loss, at any step",
        "the loss of a step between two recorded ones is its minibatch's",
    ):
        assert words in page.text, words
    assert "77" not in page.text  # the configuration stands on it once
    assert page.tags.count("figure") == 2 and page.tags.count("details") == 4


def test_what_was_not_tuned_or_knows_the_horizon_is_marked(full: Path) -> None:
    content = json.loads((full / "evaluation.json").read_text())
    optimizers = content["results"][0]["optimizers"]
    as_it_comes = {**optimizer("untuned", None, 0.3, 0.2, 2.0), "tuned": {"untuned": True, "knows_horizon": True}}
    optimizers["prodigy"] = as_it_comes
    optimizers["adam"]["tuned"]["knows_horizon"] = True
    (full / "evaluation.json").write_text(json.dumps(content))
    page = Page(write_report(full).read_text(encoding="utf-8"))
    assert "as it comes, told the horizon" in page.text and "rate 0.0316, told the horizon" in page.text
    rows = [evaluations._cells(name, record, 16)["optimizer"] for name, record in optimizers.items()]
    assert rows[1:] == ["adam (rate 0.0316, told the horizon)", "prodigy (as it comes, told the horizon)"]
    with_it = evaluations.identity(content["results"][0])
    del optimizers["prodigy"]
    assert with_it != evaluations.identity(content["results"][0])


def test_nothing_from_a_file_becomes_markup(full: Path) -> None:
    page = Page(write_report(full).read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1  # the page's own
    assert page.text.count("alert('x')") >= 4


# What a folder, a plugin's entry or a file of data may be called.
ODD = "a\x1b[31m\"'&<script>\u202e$x$ font-family: d='1.234567' id=\"1\" #d55e00 --q\udcff"
ODD_SHOWN = r"""a\x1b[31m"'&<script>\u202e$x$ font-family: d='1.234567' id="1" #d55e00 --q\udcff"""


@pytest.mark.parametrize("runs", [1, 2])
def test_odd_names_stand_as_they_are_and_cannot_move_a_cursor(
    runs: int, full: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path_factory.mktemp("odd") / os.fsdecode(b"a\x1b[31m\xff")
    held = json.loads((full / "evaluation.json").read_text())
    (result,) = held["results"]
    result |= {"task": ODD, "optimizers": {ODD: result["optimizers"]["adam"] | {"kind": "learned"}}}
    near = {**result, "horizon": 5}
    for index in range(runs):
        run = Path(shutil.copytree(full, root / f"{index}{ODD.replace('/', '')}"))
        (run / "evaluation.json").write_text(json.dumps({"results": [near, result]}))
        (run / "environment.json").write_text(json.dumps({"experiment": ODD, "data": ODD}))
        config = json.loads((run / "config.json").read_text())
        config["tasks"][0]["options"] = {"data": ODD, ODD: index}
        (run / "config.json").write_text(json.dumps(config))
        assert main(["report", str(run)]) == 0
    assert main(["report", *([str(root)] if runs > 1 else [str(run)])]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and r"a\x1b[31m\udcff" in printed
    out = (root if runs > 1 else run) / "report.html"
    text = out.read_text(encoding="utf-8")
    page = Page(text)  # every element closes where it should
    assert page.tags.count("script") == 1 and not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", text)
    assert page.text.count(ODD_SHOWN) >= 5
    if runs > 1:
        linked = re.findall(r'href="\./([^"]*)"', text)
        assert len(linked) == runs and all((root / os.fsdecode(unquote_to_bytes(link))).is_file() for link in linked)
    assert main(["report", str(root / "nothing\x1b[2J")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_the_configuration_marks_what_differs_from_the_defaults(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config |= {"rescale": 0, "horizon": 50}  # a whole number is no other value
    (run / "config.json").write_text(json.dumps(config))
    text = write_report(run).read_text(encoding="utf-8")
    section = text[text.index("<h2>Configuration</h2>") :]
    marked, _, folded = section.partition("<details>")
    marked = Page(marked.replace("<section>", "").partition("</h2>")[2]).text
    assert marked.startswith("tasks quadratic: dim = 7 optimizer lstm: features = all estimator reparameterised")
    assert marked.endswith("horizon 50 default: 100")
    folded = Page("<details>" + folded.partition("</details>")[0] + "</details>").text
    assert "fields as they are by default" in folded and "rescale 0 " in folded and "horizon" not in folded.split()


def test_the_page_asks_for_nothing_from_elsewhere(full: Path) -> None:
    text = write_report(full).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on") and name != "src"
        assert name != "href" or (value or "").startswith("#")
    assert not {"http:", "https:", "@import", "url(//"} & set(re.findall(r"https?:|@import|url\(//", text))
    (policy,) = re.findall(r'content="(default-src[^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert len(text) < 200_000


def test_every_picture_says_what_it_shows(full: Path) -> None:
    text = write_report(full).read_text(encoding="utf-8")
    page = Page(text)
    labels = re.findall(r'role="img" aria-label="([^"]*)"', text)
    assert len(labels) == 4 and all(label and "table" in label for label in labels)  # two figures, wide and narrow
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_average_over_meta_steps_has_its_lines_and_columns(run: Path) -> None:
    def row(step: int) -> dict:
        values = {f"{prefix}/{m}x/median": 1 / step for prefix in ("validation", "validation_ema") for m in (1, 10)}
        return {"kind": "validation", "meta_step": step, **values}

    rows = [{"kind": "train", "meta_step": step, "meta_loss": 1.0} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, row(2), row(4)]))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for words in (
        "median at the training horizon, averaged φ",
        "median at 10 times it, averaged φ",
        "averaged φ, 10x, median",
        "which is what the run leaves",
    ):
        assert words in page.text, words


def test_horizons_stand_beside_one_another(full: Path) -> None:
    page = Page(write_report(full).read_text(encoding="utf-8"))
    assert "Horizon generalisation" not in page.text  # at one horizon there is nothing to compare
    held = json.loads((full / "evaluation.json").read_text())
    (far,) = held["results"]
    near = {**json.loads(json.dumps(far)), "horizon": 5}
    for record in near["optimizers"].values():
        record["final"] |= {"median": 0.75}
    held["results"] = [near, far]
    (full / "evaluation.json").write_text(json.dumps(held))
    page = Page(write_report(full).read_text(encoding="utf-8"))
    assert "1× ∞ 0.5 to ∞ 0.75 ∞ 4 of 16 5 16" in page.text and "10× ∞ 0.5 to ∞ 0.25 ∞ 4 of 16 50 16" in page.text


def test_runs_evaluated_at_one_horizon_have_a_table(full: Path) -> None:
    (far,) = json.loads((full / "evaluation.json").read_text())["results"]
    runs = [Evaluated(name, run_style(0, name), [{**far, "horizon": 5}]) for name in ("one", "two")]
    section = TEMPLATES.get_template("horizons.html").render(horizons=horizons(runs))
    assert "<h2>Evaluation</h2>" in section and "<figure" not in section
    assert all(f"{name}</th>" in section for name in ("one", "two"))
    assert horizons(runs[:1]) is None


def test_the_doctors_advice_is_on_the_page(run: Path) -> None:
    measured = {"value": 0.5, "error": 0.1}
    counts = {"one_step_cosine": 0.25, "tasks_for_snr_1": 4.0, "nonfinite": 0.0, "clipped": 1.0, "diverged": 0.0}
    where = {"estimator": f"mine {BAD}", "own": True, "horizon": 100, "window": 20, "num_lives": 8}
    entry = {**where, **counts, "cosine": measured, "norm_ratio": None, "snr": measured}
    impossible = {"estimator": "other", "horizon": 100, "window": 100, "reason": f"no noise {BAD}"}
    reference = {"horizon": 100, "kind": "unbiased", "estimator": "mine", "num_lives": 64, "resolved": False}
    sentences = ["Two tasks in three die: shorten the window.", f"Inputs lie outside {BAD} of their range."]
    result = {
        "meta_step": 1200, "num_tasks": 16, "horizon": 100, "jacobian": [], "inputs": None, "gates": None, "steps": [],
        "estimators": [entry, impossible], "references": [reference],
        "advice": [{"rule": "dying", "figure": 0.5, "text": text} for text in sentences],
    }  # fmt: skip
    (run / "doctor.json").write_text(json.dumps(result))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for words in (
        *sentences,
        "of φ of meta-step 1,200, with 16 tasks a meta-step.",
        "Reference over 100 steps: the unbiased gradient, 64 draws, which do not tell it from zero.",
        f"mine {BAD} (the run's own) 100 20 8 0.5 0.1 – 0.25 0.5 4 0 1 0",
        f"cannot: no noise {BAD}",
    ):
        assert words in page.text, words
    assert page.tags.count("script") == 1
    (run / "doctor.json").write_text(json.dumps({**result, "advice": [], "meta_step": None}))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "of a fresh φ" in text and "Nothing to complain about." in text and sentences[0] not in text


def test_a_chart_that_would_be_empty_is_left_out(run: Path) -> None:
    shares = {gate: 0.004 for gate in "ifgo"}
    gates = [{"task": "quadratic", "steps": "within", "training": True, "layers": [shares]}]
    result = {
        "meta_step": 1, "num_tasks": 4, "horizon": 10, "jacobian": [], "inputs": None, "gates": gates, "steps": [],
        "estimators": [{"estimator": "other", "horizon": 10, "window": 10, "reason": "no noise"}], "references": [],
        "advice": [],
    }  # fmt: skip
    (run / "doctor.json").write_text(json.dumps(result))
    rows = [{"kind": "train", "meta_step": 1, "meta_loss": None}, {"kind": "train", "meta_step": 2, "meta_loss": "inf"}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "figure" not in page.tags
    for words in ("every gate has less than 1%", "0.4%", "No estimator's meta-gradient", "there is nothing to draw"):
        assert words in page.text, words
    gates[0]["layers"][0]["f"] = 0.5
    (run / "doctor.json").write_text(json.dumps(result))
    assert Page(write_report(run).read_text(encoding="utf-8")).tags.count("figure") == 1


def losses_from(shift: float, bound: float | None, horizon: int = 40) -> dict:
    """An entry of evaluation.json: losses that fall from shift + 1 or 2 towards the shift; adam half as fast."""
    steps, start = np.arange(0, horizon + 1, 2), np.array([1.0, 2.0, 1.5, 1.0])
    loss = {name: shift + start[:, None] * np.exp(-rate * steps / 20) for name, rate in (("mine", 2.0), ("adam", 1.0))}
    peak = {name: np.maximum.accumulate(values, axis=1) for name, values in loss.items()}
    alive: dict = {name: np.isfinite(values) for name, values in loss.items()}
    lower_bound = np.full(4, np.nan if bound is None else bound)
    curves = Curves(steps, loss, peak, alive, {name: {} for name in loss}, lower_bound, "the exact loss", 20)
    described = describe_curves(curves, tuned={"adam": {"learning_rate": 0.1}})
    return jsonable({"task": "valley", "horizon": horizon, "train_horizon": 20, "num_tasks": 4, **described})


def test_losses_with_a_bound_are_shown_above_it(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps({"results": [losses_from(-50, -50), losses_from(-50, -50, 20)]}))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for words in (
        "mine ends at a mean loss 0.0252 above its bound; in the geometric mean 0.135 times that of the best",
        "Curves show the loss above its bound",
        "Ratio to best baseline Mean final loss Mean above its bound Median above its bound",
        "−50 0.0252 ",
        "(geometric mean over the same tasks of the loss above its bound over the baseline's, a failed",
        "both less the bound, at any step",
        "0.0229 above its bound 0.0252 above its bound none of 4 40 4",  # beyond the training horizon
    ):
        assert words in page.text, words
    assert "Difference" not in page.text
    above = evaluation_figure(losses_from(-50, -50)).axes[0]
    assert above.get_yscale() == "log" and above.get_ylabel() == "loss above its bound"


def test_losses_without_a_bound_are_compared_by_differences(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps({"results": [losses_from(-3, None), losses_from(-3, None, 20)]}))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for words in (
        "mine ends at a mean loss of −2.97482; its difference to the best baseline (adam, rate 0.1) is −0.119 of the",
        "Difference to best baseline Mean final loss Median Gradients to tune Failed",
        "in units of the largest fall below the first loss",
        "above the first loss by 9 times the largest fall, at any step",
        "the loss at the training horizon by a tenth of the largest fall",
        "−2.97711 −2.97482 none of 4 40 4",
        "A difference stands where losses have no bound",
    ):
        assert words in page.text, words
    assert "Ratio" not in page.text and "times that of" not in page.text
    result = losses_from(-3, None)
    result["optimizers"]["adam"]["curve"]["mean"][5:] = [1e9] * len(result["optimizers"]["adam"]["curve"]["mean"][5:])
    result["optimizers"]["adam"]["curve"]["q75"][5] = "inf"
    for axes in evaluation_figure(result).axes:
        low, high = axes.get_ylim()
        assert axes.get_yscale() == "linear" and -3.2 < low < -2.9 and -2 < high < 1  # what explodes is outside
        (line,) = [line for line in axes.get_lines() if line.get_color() == COLOURS["learned-0"]]
        assert np.asarray(line.get_ydata())[-1] == pytest.approx(-2.975, abs=0.01)


def test_what_is_missing_is_said(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for words in (
        "No meta-step has been recorded yet.",
        "It has not been evaluated yet",
        "no environment.json",
        "quadratic: dim = 7",
    ):
        assert words in page.text, words


def test_a_run_that_goes_on_is_said(run: Path) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({"kind": "train", "meta_step": 3, "meta_loss": 1.0}) + "\n")
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "Meta-training stands at meta-step 3 of 2,000." in text and "No inner run became non-finite." in text


def test_a_run_that_did_not_come_to_its_end_is_said(run: Path) -> None:
    write_state(run, "diverged", num_meta_steps=9, reason="no task was alive; try <less>")
    assert "The run diverged: no task was alive; try <less>" in Page(write_report(run).read_text(encoding="utf-8")).text
    write_state(run, "running", num_meta_steps=9)  # and nobody holds the lock
    assert "The run is lost: its process is gone" in Page(write_report(run).read_text(encoding="utf-8")).text
    write_state(run, "finished", num_meta_steps=9)
    assert "The run" not in Page(write_report(run).read_text(encoding="utf-8")).text


def test_a_real_run_has_a_report(finished: Path) -> None:
    text = Page((finished / "report.html").read_text(encoding="utf-8")).text
    assert "Meta-training is done: 8 meta-steps." in text and "trained to 4" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "evaluation.json").write_text('{"results": [')
    with pytest.raises(UserError, match=r"evaluation\.json is not valid JSON"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"), ("inf", "∞"), ("-inf", "−∞"), (0, "0"), (0.123456, "0.123"), (1234.5, "1,234"), (-0.5, "−0.5"),
        (1e-7, "1.00e−7"), (3.2e9, "3.20e9"), ("007", "007"), (float("nan"), "–"), (1234567, "1,234,567"),
    ],
)  # fmt: skip
def test_numbers_in_words(value: object, words: str) -> None:
    assert report_words.number(value) == words


def test_counts_in_words() -> None:
    assert [report_words.share(x, 16) for x in (None, 0.0, 0.25, 1.0)] == ["–", "none of 16", "4 of 16", "all 16"]


def test_a_record_may_lack_fields_and_a_template_may_not_misspell_them() -> None:
    def shown(template: str) -> str:
        return TEMPLATES.from_string(template).render(record={"gap": None}, style=run_style(0, "<b>"))

    assert (
        shown("{{ record.gap.mean|number }} {{ record.test.accuracy|share(4) }} {{ style.label }}") == "– – &lt;b&gt;"
    )
    for wrong in ("{{ style.lable }}", "{{ recrod.gap }}", "{% if style.colour %}{% endif %}"):
        with pytest.raises(UndefinedError):
            shown(wrong)
