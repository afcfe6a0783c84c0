"""The figure runner: what it writes, refuses and reports."""

import json
import sys
import types

import pytest

import experiments.figures.__main__ as command
from experiments.figures import claim
from shared import plotting


def add_figure(monkeypatch, value):
    module = types.ModuleType("experiments.figures.planted.line", "Two points make a line.")
    module.compute = lambda fast: {
        "x": [0.0, 1.0],
        "fast": fast,
        "claims": [claim("height", value, low=0.0, high=2.0)],
    }

    def draw(result):
        figure, axes = plotting.new_figure()
        axes[0, 0].plot(result["x"], result["x"])
        return figure

    module.draw = draw
    monkeypatch.setitem(sys.modules, "experiments.figures.planted", types.ModuleType("planted"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "names", lambda: ["planted.line"])


def test_a_figure_writes_its_picture_and_its_number(monkeypatch, tmp_path, capsys):
    add_figure(monkeypatch, 1.5)
    assert command.main(["--fast", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "planted/line.json").read_text())
    assert record["result"]["claims"][0]["value"] == 1.5
    assert record["result"]["fast"] is True
    assert record["environment"]["packages"]["jax"]
    assert (tmp_path / "planted/line.png").read_bytes().startswith(b"\x89PNG")
    assert "holds  height: 1.5" in capsys.readouterr().out


@pytest.mark.parametrize("value", [3.0, float("nan"), float("-inf")])
def test_a_claim_that_does_not_hold_fails_the_command(monkeypatch, tmp_path, capsys, value):
    add_figure(monkeypatch, value)
    assert command.main(["planted", "--out", str(tmp_path)]) == 1
    assert "FAILS  height" in capsys.readouterr().out


def test_a_picture_is_drawn_again_from_its_json_to_the_same_bytes(monkeypatch, tmp_path):
    add_figure(monkeypatch, 1.0)
    command.main(["--out", str(tmp_path)])
    first = (tmp_path / "planted/line.png").read_bytes()
    command.main(["--redraw", "--out", str(tmp_path)])
    assert (tmp_path / "planted/line.png").read_bytes() == first


def test_an_unknown_figure_is_named(tmp_path, capsys):
    assert command.main(["no_such_figure", "--out", str(tmp_path)]) == 2
    assert "unknown figure 'no_such_figure'" in capsys.readouterr().err


def test_the_listing_names_figures_by_package(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == sorted(listed)
    assert all(name.count(".") == 1 for name in listed)
