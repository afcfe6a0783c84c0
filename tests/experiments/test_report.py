"""The report: runs found and gathered over seeds, the table's numbers, a page that stands alone."""

import html.parser
import json
import math

import numpy as np
import pytest

from experiments import _runs, report
from shared import metrics


def write_run(folder, config, values, *, rates=(100.0, 200.0, 400.0), loss=None):
    """A run's folder with test/accuracy at steps 10, 20, ..."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"study": "toy", "seed": 0} | config))
    (folder / "environment.json").write_text(
        json.dumps({"commit": "abc", "device": "cpu", "num_devices": 1})
    )
    sink = metrics.JsonLines(folder / "metrics.jsonl")
    for i, value in enumerate(values, 1):
        sink.write(10 * i, {"loss": 1 / i if loss is None else loss})
        sink.write(10 * i, {"test/accuracy": value})
    sink.close()
    times = metrics.JsonLines(folder / "timings.jsonl")
    times.write(1, {"kind": "compilation", "wall_time_s": 3.0})
    for i, rate in enumerate(rates, 1):
        times.write(10 * i, {"kind": "train", "steps_per_s": rate})
    times.close()
    return folder


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed, last in enumerate((0.5, 0.7, 0.9)):
        write_run(folder / f"sgd-{seed}", {"method": "sgd", "seed": seed}, [0.1, last])
    write_run(folder / "saf-0", {"method": "saf", "width": 8}, [0.2, 0.6, 0.8], rates=())
    return folder


def test_runs_are_found_below_a_folder_and_named_once(runs):
    found = _runs.find([runs / "sgd-1", runs])
    assert [path.name for path in found] == ["sgd-1", "saf-0", "sgd-0", "sgd-2"]
    with pytest.raises(ValueError, match="holds no run"):
        _runs.find([runs / "sgd-1" / "..", runs.parent / "runs" / "sgd-1", _empty(runs)])
    with pytest.raises(ValueError, match="is no folder"):
        _runs.find([runs / "nothing"])


def _empty(runs):
    folder = runs.parent / "empty"
    folder.mkdir()
    return folder


def test_seeds_are_gathered_and_numbers_are_means_and_deviations(runs):
    groups = _runs.gather([_runs.load(path) for path in _runs.find([runs])])
    assert [group.label for group in groups] == ["method=saf width=8", "method=sgd width=-"]
    sgd = groups[1]
    steps, mean, band = sgd.band("test/accuracy")
    assert steps.tolist() == [10, 20]
    np.testing.assert_allclose(mean, [0.1, 0.7])
    np.testing.assert_allclose(band, [0, 0.2], atol=1e-15)  # of 0.5, 0.7, 0.9 with n - 1
    assert report.cell(np.array([0.1, 0.1, 0.1])) == "0.1 ± 0"
    header, saf_row, sgd_row = report.make_table(groups, ["test/accuracy", "loss"])
    assert header == ["run", "seeds", "steps", "test/accuracy", "loss", "ms/step"]
    assert sgd_row == ["method=sgd width=-", "3", "20", "0.7 ± 0.2", "0.5 ± 0", "5 ± 0"]
    assert saf_row == ["method=saf width=8", "1", "30", "0.8", "0.3333", "-"]


def test_seeds_that_stopped_at_other_steps_share_what_all_of_them_have(tmp_path):
    write_run(tmp_path / "a", {"seed": 0}, [0.1, 0.2, 0.3])
    write_run(tmp_path / "b", {"seed": 1}, [0.3])
    (group,) = _runs.gather([_runs.load(tmp_path / name) for name in "ab"])
    assert group.band("test/accuracy")[0].tolist() == [10]
    assert report.make_table([group], [])[1][:3] == ["a", "2", "10-30"]
    assert group.band("nothing")[0].size == 0


def test_a_run_that_diverged_stands_out_and_does_not_spoil_the_picture(tmp_path, capsys):
    write_run(tmp_path / "a", {"method": "x"}, [0.1, math.nan], loss=0.5)
    write_run(tmp_path / "b", {"method": "y"}, [0.1, 0.2])
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not finite" in next(line for line in lines if line.startswith("method=x"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<td class="bad">not finite</td>') == 1


def test_groups_are_in_the_order_of_their_numbers(tmp_path):
    for width in (128, 16, 1024):
        write_run(tmp_path / f"{width}", {"width": width}, [0.1])
    groups = _runs.gather([_runs.load(path) for path in _runs.find([tmp_path])])
    assert [group.label for group in groups] == ["width=16", "width=128", "width=1024"]


class Page(html.parser.HTMLParser):
    """Checks that elements close, and collects what a browser would fetch."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "use", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_fetches_nothing(runs, tmp_path, capsys):
    write_run(runs / "odd", {"method": "<script>alert(1)</script>"}, [0.4])
    out = tmp_path / "out"
    assert report.main([str(runs), "--out", str(out)]) == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert "@import" not in text
    assert "url(http" not in text
    assert "<script" not in text
    assert "0.7 ± 0.2" in "".join(page.text)
    assert "alert(1)" in "".join(page.text)  # shown, not run
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "0.7 ± 0.2" in printed
    assert str(out / "report.html") in printed


def test_the_same_runs_make_the_same_bytes(runs, tmp_path, capsys):
    pages = []
    for name in ("one", "two"):
        assert report.main([str(runs), "--out", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metrics", "test/acuracy"], "there are: loss, test/accuracy"),
        (["nowhere"], "nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line_and_code_two(runs, tmp_path, capsys, more, message):
    out = tmp_path / "out"
    assert report.main([str(runs), *more, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_damaged_and_empty_runs_are_named(tmp_path, capsys):
    folder = write_run(tmp_path / "a", {}, [0.1])
    (folder / "config.json").write_text("{")
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "config.json is damaged" in capsys.readouterr().err
    empty = write_run(tmp_path / "b", {}, [])
    assert report.main([str(empty), "--out", str(tmp_path / "out")]) == 2
    assert "no evaluation and no loss" in capsys.readouterr().err
