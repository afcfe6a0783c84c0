"""The study of SAF as a command, its comparison, and the methods in the full loop."""

import json
import math

import numpy as np
import pytest

from experiments import saf_study
from experiments.studies import saf_table


def measured(accuracy, sharp):
    names = ("nll", "train_accuracy", "lambda_max", "trace", "sam_sharpness", "m_sharpness")
    return dict.fromkeys(names, sharp) | {"accuracy": accuracy}


def test_the_comparison_pairs_equal_seeds():
    runs = {
        "sgd": [measured(0.80, 2.0), measured(0.90, 4.0)],
        "saf": [measured(0.82, 1.0), measured(0.91, 3.0)],
        "sam": [measured(0.85, 4.0)],
    }
    table = saf_table.compare(runs)
    np.testing.assert_allclose(table["saf"]["gain"], [2.0, 1.0])
    np.testing.assert_allclose(table["saf"]["lambda_max"], [0.5, 0.75])
    np.testing.assert_allclose(table["sam"]["trace"], [2.0])
    assert math.isnan(table["sam"]["deviation"])
    text = saf_table.format_table(table)
    assert "SAF 0.3" in text
    assert "+1.50 [+1.00,+2.00]" in text
    assert "0.62 [0.50,0.75]" in text


@pytest.mark.slow
def test_the_command_writes_both_tables(tmp_path, capsys):
    assert saf_study.main(["--fast", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for method in saf_table.METHODS.values():
        assert method.label in printed
    for name in ("table", "interpolation"):
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(result["runs"]["sgd"]) == 2
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    # equal seeds start alike and differ by the method alone
    again = saf_table.run(["sgd"], [0], saf_study.settings(fast=True)[0])
    first = json.loads((tmp_path / "table.json").read_text())["runs"]["sgd"][0]
    assert again["runs"]["sgd"][0]["accuracy"] == first["accuracy"]
