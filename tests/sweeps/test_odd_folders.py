"""A sweep's study lies in its folder, whatever that is called."""

import pytest

from lightning_dp.sweeps.study import _SQLITE, _storage


@pytest.mark.parametrize("name", ["sw?x=1", "sw%41", "sw#1", "ärm el"])
def test_the_study_lies_in_its_folder(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    storage = _storage(folder, across_hosts=False)
    assert (folder / _SQLITE).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert _storage(folder, across_hosts=False).get_all_studies() == storage.get_all_studies()
