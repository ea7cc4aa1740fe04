"""`lightning-dp verify`, and every reader of an ε: each fault that is planted is named in one sentence."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from lightning_dp import load_run
from lightning_dp.cli import main
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.ledger.keys import SigningKey, signing_key
from lightning_dp.privacy.ledger.signed_report import with_signature
from lightning_dp.tracking.account import read_account
from lightning_dp.tracking.cards import write_model_card

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
TINY = [
    "--trainer.max_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_test_batches=1",
    "--trainer.limit_val_batches=0",
    "--run.wandb=disabled",
    "--model.init_args.net.init_args.hidden_size=8",
    "--model.init_args.net.init_args.patch_size=24",
    "--model.init_args.sampler.init_args.num_steps=2",
    "--data.init_args.windows_per_user=1",
    "--data.init_args.num_households=30",
    "--data.init_args.num_days=6",
    "--data.init_args.task=lightning_dp.timeseries.masks.Forecast",
    "--data.init_args.task.horizon=24",
    "--privacy.target_epsilon=null",
    "--privacy.noise_multiplier=2",
    "--privacy.delta=1e-2",
    "--privacy.expected_batch_size=6",
]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A folder with a private run, a table of its forecasts, and the ledger that paid."""
    folder = tmp_path_factory.mktemp("verify")
    recipe = ROOT / "conf" / "experiment" / "synthesise_simulator.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_DP_LEDGER", str(folder / "ledger.sqlite"))
        patch.setenv("WANDB_MODE", "disabled")
        assert main(["fit", f"--config={recipe}", f"--run.dir={folder / 'run'}", *TINY]) == 0
        (folder / "made").mkdir()
        table = folder / "made" / "days.csv"
        assert main(["sample", str(folder / "run"), "--num=2", f"--output={table}"]) == 0
    return folder


@pytest.fixture
def place(original, tmp_path, monkeypatch) -> Path:
    """A copy to be spoilt."""
    copy = Path(shutil.copytree(original, tmp_path / "place"))
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(copy / "ledger.sqlite"))
    return copy


def report_of(place: Path) -> dict:
    return json.loads((place / "run" / "privacy.json").read_text())


def write(place: Path, report: dict, *, key: SigningKey | None = None) -> None:
    """A report that the ledger's key, or another, has signed."""
    key = key or signing_key(place / "ledger.sqlite", create=False)
    signed = with_signature(report, key=key)
    (place / "run" / "privacy.json").write_text(json.dumps(signed, indent=2))


def stranger(place: Path) -> SigningKey:
    key = signing_key(place / "other.sqlite", create=True)
    assert key is not None
    return key


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def shown(place: Path, ending: str = "md") -> Path:
    return place / "run" / f"privacy_report.{ending}"


def card(place: Path) -> Path:
    return place / "run" / "checkpoints" / "README.md"


def without(report: dict, *names: str) -> dict:
    return {name: value for name, value in report.items() if name not in names}


def without_signature(place: Path) -> None:
    (place / "run" / "privacy.json").write_text(json.dumps(without(report_of(place), "signature")))


def signature_of_another(place: Path) -> None:
    table = json.loads((place / "made" / "days.csv.privacy.json").read_text())
    changed = report_of(place) | {"signature": table["signature"]}
    (place / "run" / "privacy.json").write_text(json.dumps(changed))


def cut(place: Path, *, where: str, mend: bool) -> None:
    """Entries that are gone, and the triggers that would have kept them, unless these are put back."""
    with sqlite3.connect(place / "ledger.sqlite") as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in found:
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute(f"DELETE FROM entry WHERE {where}")
        for _, text in found if mend else ():
            connection.execute(text)


def less(place: Path) -> None:
    """One step less, in every field, signed by the ledger's own key."""
    report = report_of(place)
    one = report["mechanisms"][0] | {"steps": 1}
    composed = report["composition"][0] | {"event": one}
    few = report["epsilon_spent"] * 0.99
    write(
        place,
        report
        | {"steps_charged": 1, "mechanisms": [one], "composition": [composed], "epsilon_spent": few}
        | {"curve": None, "total": None},
    )


RUN, TABLE = "run", "made/days.csv.privacy.json"
FAULTS = {
    # kind: (what to verify, the fault, what is said of it); of each kind a second one
    "report: a figure": (
        RUN,
        lambda p: edit(p / "run/privacy.json", '"num_units": 24', '"num_units": 25'),
        "is not the report that was signed",
    ),
    "report: a name twice": (
        RUN,
        lambda p: edit(p / "run/privacy.json", "{", '{"epsilon_spent": 0.1,'),
        "says epsilon_spent twice",
    ),
    "signature: gone": (RUN, without_signature, "its signature is gone"),
    "signature: of another report": (RUN, signature_of_another, "is not the report that was signed"),
    "signature: by a stranger": (
        RUN,
        lambda p: write(p, report_of(p), key=stranger(p)),
        "none of the ledger's",
    ),
    "ledger: the last entry": (
        RUN,
        lambda p: cut(p, where="seq = (SELECT MAX(seq) FROM entry)", mend=True),
        "can't be trusted from entry",
    ),
    "ledger: all entries of the run": (
        RUN,
        lambda p: cut(p, where="run != ''", mend=False),
        "can't be trusted from entry 1",
    ),
    "claim: less than the ledger": (RUN, less, "steps, and the checkpoint holds weights of step 2"),
    "claim: a point of the curve": (
        RUN,
        lambda p: write(
            p,
            report_of(p)
            | {
                "curve": [one | {"epsilon": one["epsilon"] * 0.9} for one in report_of(p)["curve"][:3]]
                + report_of(p)["curve"][3:]
            },
        ),
        "on its curve it claims",
    ),
    "files: a byte": (TABLE, lambda p: edit(p / "made/days.csv", "1", "2"), "its SHA-256 differs"),
    "files: another with the name": (
        TABLE,
        lambda p: shutil.copy(p / "run/metrics.csv", p / "made/days.csv"),
        "its SHA-256 differs",
    ),
    "files: gone": (TABLE, lambda p: (p / "made/days.csv").unlink(), "is missing"),
    "markdown: ε": (RUN, lambda p: edit(shown(p), "ε = ", "ε = 0."), "privacy_report.md does not show"),
    "markdown: a sentence more": (
        RUN,
        lambda p: shown(p).write_text(shown(p).read_text() + "\nε is 0 per person.\n"),
        "privacy_report.md does not show",
    ),
    "page: ε": (RUN, lambda p: edit(shown(p, "html"), "ε = ", "ε = 0."), "privacy_report.html does not show"),
    "page: a script": (
        RUN,
        lambda p: edit(shown(p, "html"), "</main>", "<script>alert(1)</script></main>"),
        "privacy_report.html does not show",
    ),
    "page: of a table": (
        TABLE,
        lambda p: edit(p / "made/days.csv.privacy_report.html", "</h1>", "!</h1>"),
        "privacy_report.html does not show",
    ),
    "card: the YAML": (RUN, lambda p: edit(card(p), "delta: 0.01", "delta: 1.0e-09"), "states other figures"),
    "card: the block": (
        RUN,
        lambda p: edit(card(p), "**ε = ", "**ε = 0."),
        "does not hold the privacy block",
    ),
    "card: no YAML": (
        RUN,
        lambda p: card(p).write_text(card(p).read_text().split("---\n")[2]),
        "states other figures",
    ),
    "card: two blocks": (
        RUN,
        lambda p: card(p).write_text(card(p).read_text() + "ε = 0\n<!-- privacy: end -->\n"),
        "does not hold the privacy block",
    ),
}


def test_nothing_is_wrong_with_what_was_written(place, capsys):
    for path in (RUN, TABLE, "run/privacy_report.html", "made/days.csv.privacy_report.md"):
        assert main(["verify", str(place / path)]) == 0, capsys.readouterr().err
        assert "Its pages show what it says." in capsys.readouterr().out
    # What the owner adds to a card is the owner's.
    edit(card(place), "For the owner to choose.", "CC BY 4.0, by the utility.")
    edit(card(place), "# license: choose one, and take this line's # away;", "license: cc-by-4.0 #")
    assert main(["verify", str(place / RUN)]) == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_in_a_sentence(place, capsys, fault):
    what, plant, message = FAULTS[fault]
    plant(place)
    assert main(["verify", str(place / what)]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert all(line.startswith("lightning-dp verify: ") for line in said.splitlines())
    assert "Traceback" not in said


def test_any_byte_of_a_report_that_is_changed_is_found(place):
    path = place / "run" / "privacy.json"
    whole = path.read_bytes()
    for number in range(0, len(whole), max(1, len(whole) // 12)):
        path.write_bytes(whole[:number] + bytes([whole[number] ^ 1]) + whole[number + 1 :])
        assert main(["verify", str(path), "--no-ledger"]) == 1, number


@pytest.mark.parametrize(
    ("reader", "forge"),
    [
        *((reader, "words") for reader in ("sample", "test", "report", "dashboard", "load_run")),
        *((reader, "stranger") for reader in ("sample", "read_account")),
        *((reader, "gone") for reader in ("report", "load_run")),
    ],
)
def test_no_reader_shows_an_epsilon_of_a_report_with_a_wrong_signature(
    place, tmp_path, capsys, reader, forge
):
    """ε is as it was, so that nothing but the signature tells."""
    run, out = place / "run", tmp_path / "out"
    if forge == "words":
        edit(run / "privacy.json", '"unit_declared": true', '"unit_declared": false')
    elif forge == "stranger":
        write(place, report_of(place), key=stranger(place))
    else:
        without_signature(place)
    message = "none of the ledger's" if forge == "stranger" else "is not the report that was signed"
    if reader in ("load_run", "read_account"):
        with pytest.raises(ValueError, match=message):
            (load_run if reader == "load_run" else read_account)(run)
        return
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    arguments = {
        "sample": [str(run), "--num=1", f"--output={out / 'x.csv'}"],
        "test": [f"--config={run / 'config.yaml'}", f"--run.dir={run}", checkpoint],
        "report": [str(run)],
        "dashboard": [str(run), f"--out={out}"],
    }[reader]
    assert main([reader, *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("out/**/privacy.json*"))
    assert not list(tmp_path.rglob("x.csv*"))


def test_cards_are_read_by_the_hub(place):
    model = ModelCard.load(card(place))
    report = report_of(place)
    assert model.data.to_dict()["privacy"]["epsilon"] == report["epsilon_spent"]
    assert model.data.license is None
    assert {one.metric_type for one in model.data.eval_results} >= {"mse", "crps"}
    assert "The rows of the test split are public." in model.content  # they are simulated
    results = json.loads((place / "run" / "results.json").read_text()) | {"test_rows_are_public": False}
    write_model_card(place / "README.md", report, results=results, library="diffusers")
    assert "which no ε covers" in (place / "README.md").read_text()
    data = DatasetCard.load(place / "made" / "days.csv.README.md")
    assert data.data.to_dict()["privacy"]["dataset"] == report["dataset"]
    assert data.data.to_dict()["configs"][0]["data_files"][0]["path"] == ["days.csv"]
    croissant = json.loads((place / "made" / "days.csv.croissant.json").read_text())
    (file,) = croissant["distribution"]
    sha256 = json.loads((place / TABLE).read_text())["sha256"]
    assert (file["contentUrl"], file["sha256"]) == ("days.csv", sha256)
    types = {one["name"]: one["dataType"] for one in croissant["recordSet"][0]["field"]}
    assert types == {"id": "sc:Text", "date": "sc:DateTime", "sample": "sc:Integer", "load": "sc:Float"}


def test_a_report_says_nothing_of_where_it_lies(place):
    files = [*(place / "run").glob("privacy*"), card(place), *(place / "made").glob("days.csv.*")]
    assert len(files) == 9
    for path in files:
        assert str(ROOT) not in path.read_text()
        for folder in ("tmp", "home"):
            assert f"/{folder}" not in path.read_text()


def test_a_page_looks_alike_on_paper_and_in_the_dark(original, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        complaints, grounds = [], set()
        for options in ({}, {"color_scheme": "dark"}, {"viewport": {"width": 380, "height": 800}}):
            page = browser.new_page(**options)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("request", lambda request: complaints.append(request.url))
            page.goto((original / "run" / "privacy_report.html").as_uri())
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.locator("svg circle.headline").count() == 1
            page.close()
        browser.close()
    assert [one for one in complaints if not one.startswith("file:")] == []
    assert len(grounds) == 2


def test_the_ledger_of_the_fixture_is_the_one_that_paid(place):
    assert Ledger(place / "ledger.sqlite").contains(
        report_of(place)["ledger_seq"], report_of(place)["ledger_hash"]
    )
    assert yaml.safe_load((place / "run" / "config.yaml").read_text())["privacy"]["noise_multiplier"] == 2
