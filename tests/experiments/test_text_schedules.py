"""The text that the schedules' transformers read."""

import pytest

from experiments.studies import text_schedules


def test_files_of_a_folder_are_joined_by_name_and_links_are_left_out(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"second")
    (tmp_path / "a.txt").write_bytes(b"first ")
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "more").mkdir()
    assert text_schedules.load_bytes(tmp_path).tobytes() == b"first second"


def test_a_folder_of_folders_is_refused_by_name(tmp_path):
    (tmp_path / "more").mkdir()
    with pytest.raises(ValueError, match=f"{tmp_path} holds no files.*set config.text"):
        text_schedules.load_bytes(tmp_path)
