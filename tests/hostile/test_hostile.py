"""Each hostile or broken input is answered in one sentence; nothing is executed, nothing half-written."""

import re
from collections import Counter
from pathlib import Path

import of_images
import of_requests
import of_runs
import of_tables
import pytest
import torch
from place import SECRET, Kind, Place

from lightning_dp.tracking.run_config import TRUST

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]
TABLE: list[Kind] = [*of_images.KINDS, *of_tables.KINDS, *of_runs.KINDS, *of_requests.KINDS]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    found = Place(tmp_path / "place")
    monkeypatch.setenv("PATH", str(found.programs), prepend=":")
    monkeypatch.delenv("LIGHTNING_DP_DEBUG", raising=False)
    monkeypatch.delenv(TRUST, raising=False)
    monkeypatch.chdir(found.folder)
    return found


def named(kind: Kind) -> str:
    return f"{kind.family}: {kind.name}"


@pytest.mark.parametrize("kind", TABLE, ids=named)
def test_a_hostile_input_is_answered_in_one_sentence(place, kind):
    answer = kind.attack(place)
    assert re.search(kind.answer, answer), answer
    assert "\n" not in answer
    assert SECRET not in answer
    assert not place.canary.exists()
    assert place.leftovers() == []


def test_the_table_is_long_and_names_each_kind_once():
    assert max(Counter(map(named, TABLE)).values()) == 1
    assert len(TABLE) >= 100


# --- the harness itself: each thing that it looks for is found when it happens ------------------------


def test_a_canary_is_made_by_what_runs_code(place):
    path = place.folder / "x.ckpt"
    torch.save(place.pickle_bomb(), path)
    torch.load(path, weights_only=False)
    assert place.canary.exists()


def test_ghostscript_would_be_found(place):
    """Pillow's own choice of formats starts it."""
    from PIL import Image

    (place.folder / "x.png").write_bytes(of_images.EPS)
    with pytest.raises(Exception, match=r"."):
        Image.open(place.folder / "x.png").load()
    assert place.canary.exists()


def test_what_is_half_written_would_be_found(place):
    (place.folder / ".config.yaml.123").write_text("half")
    place.out.mkdir()
    assert len(place.leftovers()) == 2


def test_trust_is_what_the_user_says(place, monkeypatch):
    """The same folder, once it is trusted, is asked for its class and not for its origin."""
    run = of_runs.write_run(
        place.folder / "run", config=of_runs.changed("model", "class_path", to="os.system")
    )
    assert "may run no code" in of_runs.commanded(place, "sample", run)
    monkeypatch.setenv(TRUST, "1")
    assert "names the model os.system, which can't be imported" in of_runs.commanded(place, "sample", run)
    monkeypatch.delenv(TRUST)
    monkeypatch.setenv(TRUST, "0")
    assert "may run no code" in of_runs.commanded(place, "sample", run)
    answer = place.command("sample", str(run), "--trust", "--output=x.csv")
    assert "names the model os.system, which can't be imported" in answer


def test_every_recipe_of_the_project_could_be_a_run_folder():
    """Of classes alone: a finished run's configuration is one of these, resolved."""
    import yaml

    from lightning_dp.tracking.run_config import _is_trusted

    names = set()
    for path in (Path(__file__).parents[2] / "conf").rglob("*.yaml"):
        names |= set(re.findall(r"class_path: ([\w.]+\.[\w.]+)$", path.read_text(), re.MULTILINE))
        yaml.safe_load(path.read_text())
    assert len(names) > 20
    assert [name for name in sorted(names) if not _is_trusted(name)] == []
