"""A site that is made to be published, and one that is put in place as a whole."""

import json

import pytest
from synthetic import write_run

from lightning_dp.cli import main
from lightning_dp.dashboard import site as module
from lightning_dp.dashboard.site import write_site


def everything(site) -> str:
    return "\n".join(
        f"{path.name}\n{path.read_bytes().decode(errors='replace')}"
        for path in sorted(site.rglob("*"))
        if path.is_file() and path.name != "plotly.min.js" and path.suffix != ".css"
    )


@pytest.fixture
def runs(tmp_path):
    for name, picture in (("fan", "forecast_fan"), ("grid", "sample_grid")):
        run = write_run(tmp_path / "runs" / name, picture=picture, diagnostics=True)
        (run / "config.yaml").write_text("data: {init_args: {path: /secret/place, columns: [diagnosis]}}\n")
        (run / "environment.json").write_text('{"machine": "host-of-mine"}')
    write_run(tmp_path / "runs" / "open", epsilon=float("inf"), method="without-privacy")
    return tmp_path / "runs"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_that_no_epsilon_covers_is_published(runs, tmp_path):
    private = ("nonprivate/train_loss", "forecast_fan", "/secret/place", "diagnosis", "host-of-mine")
    private += ("without-privacy", "clip_fraction")
    write_site([runs], out=tmp_path / "whole")
    whole = everything(tmp_path / "whole")
    assert [word for word in private if word not in whole] == []
    assert write_site([runs], out=tmp_path / "site", publishable=True) == 2
    shown = everything(tmp_path / "site")
    data = (tmp_path / "site" / "data.js").read_text()
    details = "".join(path.read_text() for path in (tmp_path / "site").rglob("details.js"))
    copies = "".join(path.read_text() for path in (tmp_path / "site").rglob("*.txt"))
    assert [word for word in private if word in data + details + copies] == []
    assert list((tmp_path / "site").rglob("forecast_fan.png")) == []
    assert len(list((tmp_path / "site").rglob("sample_grid.png"))) == 1
    assert "Made to be published" in shown
    assert "1 run without a finite ε is left out" in shown
    assert "privacy/epsilon" in details


def test_what_is_open_alone_is_not_published(runs, tmp_path, capsys):
    out = f"--out={tmp_path / 'site'}"
    assert main(["dashboard", str(runs / "open"), out, "--publishable"]) == 2
    assert "nothing of them can be published" in capsys.readouterr().err
    assert main(["dashboard", str(runs), out, "--publishable", "--ledger"]) == 2
    assert "drop one" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_a_site_that_can_not_be_finished_leaves_the_older_one(runs, tmp_path, monkeypatch):
    out = tmp_path / "site"
    write_site([runs / "fan"], out=out)
    before = everything(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device", "details.js")

    monkeypatch.setattr(module, "_write_details", full)
    with pytest.raises(OSError, match=r"details\.js"):
        write_site([runs], out=out)
    assert everything(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    data = (out / "data.js").read_text().removeprefix("LightningDP.receive(").removesuffix(");\n")
    assert len(json.loads(data)["runs"]) == 1


def test_a_report_of_many_methods_is_short_and_says_so(tmp_path, capsys):
    for number in range(40):
        write_run(tmp_path / "runs" / f"{number}", method=f"method-{number:02d}", seed=number)
    assert main(["report", str(tmp_path / "runs"), "--lines=10"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) < 60
    assert "more lines are left out" in said.out
    assert "780 pairs of methods at equal ε are more than the 500 that are tested" in said.err
