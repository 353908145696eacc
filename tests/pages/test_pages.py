"""Pages of runs: what they say, and what they do in a browser."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

import ddfast
from ddfast.cli import cli
from ddfast.pages.record import read
from tests.conftest import SMALL

VOID = {"meta", "link", "img", "input", "br"}
WIDTHS = (360, 768, 1600)


class Page(HTMLParser):
    """The elements of a page, which must be closed in order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page_of(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def charts_of(path) -> dict:
    text = re.search(r'id="charts">(.*?)</script>', path.read_text(encoding="utf-8")).group(1)
    return {chart["id"]: chart for chart in json.loads(text)}


def test_a_report_says_what_the_run_folder_holds(runs, pair, tmp_path):
    path = ddfast.report(runs / "first", tmp_path / "page.html", dataset=pair)
    page, summary = page_of(path), json.loads((runs / "first/summary.json").read_text())
    words = re.sub(r"\s+", " ", page.text)
    for key in ("distilled", "random_real", "full_data"):
        row = summary["accuracy"][key]
        assert f"{row['mean']:.1f}% ± {row['std']:.1f}" in words, key
    table = json.loads((runs / "first/transfer.json").read_text())
    assert {row["network"] for row in table["rows"]} == {"mlp", "lenet"}
    for row in table["rows"]:
        assert f"{row['parameters']:,}" in words and row["trained_on"] in words
    for name in table["scores"]:
        assert name.replace("_", " ") in words or name == "confusion"
    assert "Useless:" in words and summary["useless"] in words
    metrics = [json.loads(line) for line in (runs / "first/metrics.jsonl").read_text().splitlines()]
    charts = charts_of(path)
    assert set(charts) == {"loss", "lr", "peak_bytes", "seconds", "accuracy"}
    assert charts["loss"]["x"] == [record["iteration"] for record in metrics]
    assert charts["loss"]["series"][0]["values"] == pytest.approx([r["loss"] for r in metrics], rel=1e-6)
    assert charts["accuracy"]["x"] == [3, 6]
    shown = [int(image["data-iteration"]) for image in page.all("img") if "data-iteration" in image]
    assert shown == [0, 2, 3, 4, 6]
    assert len([image for image in page.all("img") if "nearest" in image["alt"]]) == 2
    assert all(name in words for name in read(runs / "first").settings)


def test_a_page_needs_no_network_and_takes_names_as_text(runs, pair, tmp_path):
    path = ddfast.report(runs / "first", tmp_path / "page.html", dataset=pair)
    page = page_of(path)
    assert "<b>one</b>" in page.text and "two & three" in page.text
    for tag, attribute in (("img", "src"), ("link", "href"), ("script", "src")):
        for found in page.all(tag):
            assert found.get(attribute, "data:").startswith("data:"), found
    text = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", path.read_text(), flags=re.S)
    assert "http" not in text


def test_a_run_that_was_stopped_has_a_page_that_says_so(runs, tmp_path):
    path = ddfast.report(runs / "stopped", tmp_path / "page.html", neighbours=False)
    page = page_of(path)
    assert "4 of 6 iterations are done" in page.text
    assert [int(i["data-iteration"]) for i in page.all("img") if "data-iteration" in i] == [0, 2, 3, 4]
    assert charts_of(path)["loss"]["x"] == [1, 2, 3, 4]


def test_without_the_data_a_report_is_made_without_neighbours(runs, tmp_path, caplog):
    page = page_of(ddfast.report(runs / "first", tmp_path / "page.html"))
    assert "Nearest training images are not shown: --dataset: say what to test" in page.text
    assert not [image for image in page.all("img") if "nearest" in image["alt"]]


def test_the_nearest_training_image_is_the_nearest(runs, pair, tmp_path):
    """Of a run without iterations it is the image itself."""
    run = ddfast.distill(pair, output=tmp_path / "run", method="random", ipc=2, num_eval=1, eval_epochs=1).path
    page = page_of(ddfast.report(run, dataset=pair))
    by_words = {}
    for image in page.all("img"):
        by_words.setdefault(image["alt"].split(", ")[-1], []).append(image["src"])
    assert len(by_words["nearest training image"]) == 4
    assert by_words["nearest training image"] == by_words["distilled"] == by_words["at the start"]


KINDS = {
    "texture": {"method": "texture", "canvas": 2},
    "tiles": {"method": "dm", "parameterisation": "tiles", "lr_img": 1.0},
    "frequencies": {"method": "dm", "parameterisation": "frequencies", "lr_img": 1.0, "batch_real": 8},
    "soft": {"method": "datm", "init": "correct"},
    "recipe": {"method": "dd"},
    "labels": {"method": "ld"},
    "uneven": {"method": "dm", "ipc": [1, 3], "lr_img": 1.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_set_has_a_page(kind, pair, tmp_path):
    how = {"num_eval": 1, "eval_epochs": 1, "iterations": 2, "network": "convnet:width=8", **KINDS[kind]}
    if ddfast.methods.METHODS[how["method"]].needs.unroll and how["method"] not in ("dd", "ld"):
        how = {**SMALL, **how}
    run = ddfast.distill(pair, output=tmp_path / "run", **how)
    page = page_of(ddfast.report(run.path, dataset=pair))
    assert [int(i["data-iteration"]) for i in page.all("img") if "data-iteration" in i] == [0, 2]
    nearest = [image for image in page.all("img") if "nearest" in image["alt"]]
    assert len(nearest) == (0 if kind == "texture" else len(run.synthetic))
    assert ("networks see other parts" in page.text) == (kind == "texture")


def test_runs_of_version_01_have_a_page(tmp_path):
    run = shutil.copytree(Path(__file__).parent.parent / "run" / "run-0.1" / "run", tmp_path / "run")
    page = page_of(ddfast.report(run))
    assert "mtt on" in page.text and charts_of(run / "report.html")["loss"]["x"]


def test_a_comparison_shows_what_differs(runs, tmp_path):
    path = ddfast.compare([runs / name for name in ("first", "second", "stopped")], tmp_path / "page.html")
    page = page_of(path)
    assert "stopped: has not finished" in re.sub(r"\s+", " ", page.text)
    text = path.read_text()
    differences = text[text.index('id="settings"') : text.index('id="curves"')]
    assert "<code>method</code>" in differences and "<code>seed</code>" not in differences
    assert "<td>dm</td>" in differences
    chart = charts_of(path)["loss"]
    assert [line["label"] for line in chart["series"]] == ["first", "second", "stopped"]
    assert chart["series"][2]["values"][4:] == [None, None]
    assert len([image for image in page.all("img") if "synthetic images of" in image["alt"]]) == 3
    twice = ddfast.compare([runs / "first", runs / "first"], tmp_path / "twice.html")
    assert "The runs have the same settings." in twice.read_text()


def test_a_run_has_one_colour_in_all_charts(runs, tmp_path):
    charts = charts_of(ddfast.compare([runs / "second", runs / "first"], tmp_path / "compare.html"))
    assert [line["label"] for line in charts["lr"]["series"]] == ["first"]  # dm learns no rate
    for chart in charts.values():
        assert all(line["colour"] == ("second", "first").index(line["label"]) for line in chart["series"])


def test_what_is_no_run_is_refused(runs, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no run here"):
        ddfast.report(tmp_path)
    for alone in ([runs / "first"], str(runs / "first")):
        with pytest.raises(ValueError, match="two or more folders"):
            ddfast.compare(alone)
    for make in (ddfast.report, lambda _, output: ddfast.compare([runs / "first"] * 2, output)):
        with pytest.raises(FileNotFoundError, match="no such folder; create it"):
            make(runs / "first", output=tmp_path / "none" / "page.html")
    broken = shutil.copytree(runs / "first", tmp_path / "broken")
    (broken / "transfer.json").write_text("[]")
    with pytest.raises(ValueError, match="not a transfer table"):
        ddfast.report(broken)
    (broken / "transfer.json").write_text("{")
    with pytest.raises(ValueError, match="transfer"):
        ddfast.report(broken)
    assert not (broken / "report.html").exists()


def test_records_without_their_numbers_are_left_out_and_told(runs, tmp_path, caplog):
    copy = shutil.copytree(runs / "first", tmp_path / "copy")
    for name in ("metrics", "evaluations"):
        with open(copy / f"{name}.jsonl", "a") as file:
            file.write('{"iteration": 1}\n{"iteration": 2, "seconds": null, "peak_bytes": 1, "mean": null}\n')
    ddfast.report(copy, neighbours=False)
    assert caplog.text.count("skipped 2 damaged lines") == 2
    assert len(read(copy).metrics) == 6 and len(read(copy).evaluations) == len(read(runs / "first").evaluations)


@pytest.mark.parametrize("table", [{"rows": [1]}, {"rows": [{"network": "mlp"}]}, {"rows": [], "scores": 3}])
def test_a_transfer_table_of_other_rows_is_refused(runs, tmp_path, table):
    copy = shutil.copytree(runs / "first", tmp_path / "copy")
    (copy / "transfer.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="not a transfer table"):
        ddfast.report(copy, neighbours=False)


@pytest.mark.parametrize("name", ["first", "stopped"])
def test_the_commands_of_a_page_take_any_folder(runs, tmp_path, name):
    copy = shutil.copytree(runs / name, tmp_path / "it's <b>a</b> $HOME run")
    (copy / "transfer.json").unlink(missing_ok=True)
    text = page_of(ddfast.report(copy, neighbours=False)).text
    commands = [
        shlex.split(line) for line in re.findall(r"ddfast (?:evaluate|distill) --?[^\n]*|ddfast evaluate [^\n,]*", text)
    ]
    for command in commands:
        assert any(part.rstrip(".") in (str(copy), str(copy / "config.json")) for part in command), command
    assert len(commands) == (2 if name == "first" else 3)


def test_thumbnails_that_are_no_pictures_are_left_out_and_the_last_is_of_the_checkpoint(runs, tmp_path):
    copy = shutil.copytree(runs / "stopped", tmp_path / "copy")
    (copy / "thumbnails" / "000001.webp").mkdir()
    (copy / "thumbnails" / "000003.webp").write_bytes(b"")
    record = json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1]) | {"iteration": 5}
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")  # of an iteration after the last checkpoint
    page = page_of(ddfast.report(copy, neighbours=False))
    assert [int(i["data-iteration"]) for i in page.all("img") if "data-iteration" in i] == [0, 2, 4]


def test_only_the_loss_is_drawn_on_a_logarithmic_axis_for_only_it_has_a_switch(runs, tmp_path):
    copy = shutil.copytree(runs / "first", tmp_path / "copy")
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    records[-1] |= {"loss": 1e4, "seconds": 1e4}
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    charts = charts_of(ddfast.report(copy, neighbours=False))
    assert {name for name, chart in charts.items() if chart["log"]} == {"loss"}


def test_reading_a_run_changes_nothing(runs, tmp_path):
    copy = shutil.copytree(runs / "stopped", tmp_path / "copy")
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 5, "lo')  # a run that goes on has such a line for a moment
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert len(read(copy).metrics) == 4
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_the_commands_say_where_the_page_is(runs, tmp_path, capsys):
    page = tmp_path / "a.html"
    cli(["report", str(runs / "second"), "--no-neighbours", "--output", str(page)], standalone_mode=False)
    cli(["compare", str(runs / "first"), str(runs / "second"), "--output", str(page)], standalone_mode=False)
    assert capsys.readouterr().out == 2 * f"page: {page}\n" and page_of(page).text.count("second") > 2


@pytest.fixture
def opened(browser, runs, pair, tmp_path):
    """Opens a page at a width; what its console says is an error."""
    paths = {
        "report": ddfast.report(runs / "first", tmp_path / "report.html", dataset=pair),
        "compare": ddfast.compare([runs / "first", runs / "second"], tmp_path / "compare.html"),
    }
    said, contexts = [], []

    def open_page(name, width=1000, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(paths[name].as_uri())
        return page

    yield open_page
    for page in contexts:
        page.close()
    assert said == []


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_every_width(opened, name, scheme):
    for width in WIDTHS:
        page = opened(name, width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for canvas in page.query_selector_all(".uplot"):
            assert canvas.bounding_box()["width"] <= width
        back, text = (page.evaluate(f"getComputedStyle(document.body).{key}") for key in ("backgroundColor", "color"))
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, text)]
        assert (light[0] > light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 400


def test_the_slider_and_its_button_show_the_iterations(opened):
    page = opened("report")
    shown = (
        "Array.from(document.querySelectorAll('#pictures img')).filter(i => !i.hidden).map(i => i.dataset.iteration)"
    )
    assert page.evaluate(shown) == ["6"] and page.inner_text("#shown") == "iteration 6"
    page.focus("#iteration")
    page.keyboard.press("Home")
    assert page.evaluate(shown) == ["0"]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(shown) == ["2"] and page.get_attribute("#iteration", "aria-valuetext") == "iteration 2"
    page.click("#play")
    assert page.inner_text("#play") == "Stop"
    page.wait_for_function("document.getElementById('shown').textContent === 'iteration 6'")
    assert page.inner_text("#play") == "Play"
    page.click("#play")  # from the start again
    page.click("#play")
    assert page.inner_text("#play") == "Play" and page.evaluate(shown) != ["6"]


@pytest.mark.parametrize("name", ["report", "compare"])
def test_every_button_and_box_of_a_page_does_something(opened, name):
    page = opened(name)
    for chart in page.evaluate("specs.map(spec => spec.id)"):
        at = "(id => { const { min, max } = drawn.get(id).scales.x; return [min, max]; })"
        scale = lambda: page.evaluate(f"{at}({json.dumps(chart)})")  # noqa: E731, B023
        whole = scale()
        buttons = {b.get_attribute("data-zoom"): b for b in page.query_selector_all(f"#controls-{chart} button")}
        assert set(buttons) == {"in", "out", "earlier", "later", "all"}
        buttons["in"].click()
        middle = scale()
        assert middle[1] - middle[0] == pytest.approx((whole[1] - whole[0]) / 2)
        buttons["earlier"].click()
        assert scale()[0] < middle[0]
        buttons["later"].click()
        assert scale()[0] > whole[0] or chart == "accuracy"
        buttons["out"].click()
        assert scale() == whole
        buttons["in"].click()
        buttons["all"].click()
        assert scale() == whole
    box = page.query_selector("#controls-loss input")
    before = box.is_checked()
    box.click()
    assert page.evaluate("drawn.get('loss').scales.y.distr") == (1 if before else 3)
    for details in page.query_selector_all("details"):
        details.query_selector("summary").click()
        assert details.get_attribute("open") is not None
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000


def test_a_drag_over_a_chart_zooms_it(opened):
    page = opened("report")
    chart = page.query_selector("#chart-loss .u-over")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60, steps=5)
    page.mouse.up()
    low, high = page.evaluate("[drawn.get('loss').scales.x.min, drawn.get('loss').scales.x.max]")
    assert 1 < low < high < 5


def test_a_page_can_be_read_aloud(opened):
    """Every image has words, every control a name, and headings come in order."""
    page = opened("report")
    assert page.evaluate("Array.from(document.images).every(i => i.alt.length > 3)")
    nameless = """Array.from(document.querySelectorAll('button, input, summary')).filter(
        e => !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length)))"""
    assert page.evaluate(f"{nameless}.length") == 0
    levels = page.evaluate("Array.from(document.querySelectorAll('h1, h2, h3')).map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"
