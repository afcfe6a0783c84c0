"""A file is the old one or the new one."""

from pathlib import Path

import pytest

from experiments._files import write_text


def test_a_kill_between_writing_and_moving_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "record.json"
    write_text(path, "old")

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
