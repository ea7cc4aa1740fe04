"""Data sets are known by one name and by what they hold; a limit can be set before anything is read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lightning_dp.commands.ledger import main
from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.ledger import BudgetExceeded, Content, Ledger, LedgerError, UnclearData
from lightning_dp.privacy.ledger.content import content_of

EVENT = GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=10)


@pytest.fixture
def path(memory_folder: Path) -> Path:
    return memory_folder / "owner" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(path)


def call(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> tuple[int, str]:
    code = main(["--ledger", str(path), *arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def pieces(begin: int, end: int) -> Iterator[bytes]:
    return (number.to_bytes(4, "big") for number in range(begin, end))


def known(ledger: Ledger, name: str, begin: int, end: int) -> None:
    content = ledger.content_of(pieces(begin, end))
    assert content is not None
    ledger.identify(name, content)
    ledger.register(name, unit="user", delta=1e-5)


# --- a limit before the first run -------------------------------------------------------------------


def test_a_limit_holds_from_the_first_run_on_and_for_finer_units(
    path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = call(capsys, path, "set-limit", "clinic", "--unit", "user", "--epsilon", "0")
    assert (code, "lightning-dp ledger register" in said) == (2, True)
    assert call(capsys, path, "register", "clinic", "--unit", "user", "--limit", "0")[0] == 0
    assert "clinic" in call(capsys, path, "list")[1]
    ledger.register("clinic", unit="user", delta=1e-4)  # the first run brings δ
    assert ledger.budget("clinic", unit="user").delta == 1e-4
    for unit in ("user", "window", "record"):
        ledger.register(" clinic ", unit=unit, delta=1e-4)
        with pytest.raises(BudgetExceeded):
            ledger.open_run("clinic", unit=unit, run="r", plan=[EVENT])
    assert {name for name, _ in ledger.accounts()} == {"clinic"}
    code, said = call(capsys, path, "set-limit", "other", "--epsilon", "3")
    assert code == 2
    assert "lightning-dp ledger register other" in said


@pytest.mark.parametrize("name", ["Clinic", "ｃｌｉｎｉｃ", "CLINIC", "cli nic"])
def test_a_name_that_could_be_taken_for_another_is_refused(ledger: Ledger, name: str) -> None:
    ledger.register("clinic", unit="user", delta=1e-5)
    with pytest.raises(ValueError, match="the ledger knows 'clinic'"):
        ledger.register(name, unit="user", delta=1e-5)


def test_spellings_of_one_name_are_one_account(ledger: Ledger) -> None:
    ledger.register("Hôpital  du  Nord", unit="user", delta=1e-5)
    ledger.register(" Ho\u0302pital du Nord", unit="user", delta=1e-5)
    assert ledger.accounts() == [("Hôpital du Nord", "user")]
    for name in ("a\tb", "a\u200bb", "\x1b[2J", ""):
        with pytest.raises(ValueError, match="printable"):
            ledger.register(name, unit="user", delta=1e-5)


def test_terminals_are_told_nothing(path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.register("clinic", unit="user", delta=1e-5)
    code, _ = call(capsys, path, "set-limit", "clinic", "--epsilon", "1", "--reason", "\x1b[2J gone")
    assert code == 2
    with ledger.open_run("clinic", unit="user", run="r") as lease:
        lease.override("harmless \x1b]0;x\x07")  # of a configuration, as older versions took it
    code, said = call(capsys, path, "show", "clinic")
    assert code == 0
    assert "\x1b" not in said
    assert "\\x1b]0;x" in said


def test_two_spellings_mean_one_data_set_to_who_compares_them(ledger: Ledger) -> None:
    assert ledger.is_same(" clinic", "clinic")
    assert not ledger.is_same("", "clinic")
    ledger.register("clinic", unit="user", delta=1e-5)
    ledger.same_as("ward", "clinic")
    assert ledger.is_same("ward ", "clinic")
    assert not ledger.is_same("Clinic", "clinic")
    ledger.open_run("ward", unit="user", run="r")
    assert ledger.datasets_of("r") == ["clinic"]


# --- content ----------------------------------------------------------------------------------------


def test_known_content_can_not_be_renamed_away(
    path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    known(ledger, "clinic", 0, 5000)
    head = ledger.head()
    known(ledger, "clinic", 0, 5000)
    assert ledger.head() == head  # nothing new to say
    for begin, end in ((0, 5000), (0, 2500), (4000, 9000), (0, 30_000)):
        with pytest.raises(UnclearData, match=r"'clinic2' and 'clinic'.*same-as clinic2 clinic"):
            known(ledger, "clinic2", begin, end)
    assert ledger.head() == head
    assert call(capsys, path, "same-as", "clinic2", "clinic")[0] == 0
    known(ledger, "clinic2", 0, 5000)
    with ledger.open_run("clinic2", unit="user", run="r") as lease:
        lease.reserve(EVENT)
    assert ledger.accounts() == [("clinic", "user")]
    assert ledger.epsilon("clinic", unit="user") > 0
    assert "also called clinic2" in call(capsys, path, "show", "clinic")[1]
    known(ledger, "ward", 90_000, 95_000)
    code, said = call(capsys, path, "same-as", "ward", "clinic")
    assert (code, "known already" in said) == (2, True)


def test_two_that_overlap_may_be_two_if_the_owner_says_so(
    path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    known(ledger, "clinic", 0, 5000)
    assert call(capsys, path, "accept-content", "trial", "--reason", "two studies")[0] == 0
    known(ledger, "trial", 2000, 7000)
    known(ledger, "trial", 2000, 7500)  # it grows, and need not be asked about again
    known(ledger, "clinic", 0, 5500)
    with pytest.raises(UnclearData):
        known(ledger, "third", 2000, 7000)  # what was allowed was allowed once


def test_a_data_set_grows_and_is_not_exchanged(
    path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    known(ledger, "clinic", 0, 5000)
    for end in (5200, 8000, 20_000):
        known(ledger, "clinic", 0, end)
    known(ledger, "clinic", 1000, 9000)
    with pytest.raises(UnclearData, match="has nothing in common with what the ledger knows by that name"):
        known(ledger, "clinic", 50_000, 55_000)
    assert call(capsys, path, "accept-content", "clinic", "--reason", "new units")[0] == 0
    known(ledger, "clinic", 50_000, 55_000)


def test_another_content_key_is_said(path: Path, ledger: Ledger) -> None:
    known(ledger, "clinic", 0, 5000)
    path.with_name("ledger.sqlite-content-key").unlink()
    with pytest.raises(LedgerError, match="content key is not the one"):
        known(ledger, "clinic", 0, 5000)


def test_without_the_key_marks_say_nothing_and_are_few(ledger: Ledger) -> None:
    one, other = (content_of(pieces(0, 10_000), key=bytes([k]) * 32, key_id=str(k)) for k in (1, 2))
    assert not set(one.sketch) & set(other.sketch)
    assert one.share_in(other) == 0
    assert len(one.sketch) == 256
    again = content_of(reversed(list(pieces(0, 10_000))), key=bytes([1]) * 32, key_id="1")
    assert again == one
    few = content_of(pieces(0, 3), key=bytes([1]) * 32, key_id="1")
    sealed = [content.sealed(bytes(32)) for content in (one, one, few)]
    assert len({len(box["sealed"]) for box in sealed}) == 1  # not even how many there are
    assert sealed[0] != sealed[1]
    assert [Content.opened(box, bytes(32)) for box in sealed] == [one, one, few]
    assert Content.opened(sealed[0], bytes([7]) * 32) is None


@pytest.mark.parametrize("size", [40, 3000, 20_000])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_in_common_is_about_right(size: int, share: float) -> None:
    shift = round((1 - share) * size)
    one, other = (content_of(pieces(begin, begin + size), key=bytes(32), key_id="") for begin in (0, shift))
    assert one.share_in(other) == pytest.approx(share, abs=0.1)


# --- what data modules say of themselves -----------------------------------------------------------


def test_stretches_of_series_outlive_appended_rows_and_other_columns() -> None:
    from lightning_dp.timeseries.data.stretches import stretches

    rng = np.random.default_rng(0)
    values = rng.normal(size=(240, 2)).astype(np.float32)
    values[41:65, 0] = 0.5
    values[100, 1] = np.nan
    whole = list(stretches(values, clock=7))
    assert len(whole) == 9 * 2 - 2  # one is flat, one has a gap
    assert set(stretches(values[50:], clock=57)) < set(whole)
    assert set(stretches(values[:, :1], clock=7)) < set(whole)
    assert not set(stretches(values, clock=8)) & set(whole)


def test_images_are_known_whatever_file_they_are_in(tmp_path: Path) -> None:
    from PIL import Image

    from lightning_dp.images.data.image_data import ImageData
    from lightning_dp.images.data.image_folder import ImageFolder
    from lightning_dp.images.data.npz import NPZ

    images = np.random.default_rng(0).integers(0, 256, (6, 12, 12), dtype=np.uint8)
    for name in ("one", "moved"):
        for number, image in enumerate(images):
            place = tmp_path / name / "train" / "thing"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.png")
    (tmp_path / "packed").mkdir()
    np.savez(tmp_path / "packed" / "train.npz", images=images, labels=np.zeros(6, dtype=np.int64))
    sources = [
        ImageFolder(path=str(tmp_path / "one")),
        ImageFolder(path=str(tmp_path / "moved")),
        NPZ(path=str(tmp_path / "packed"), class_names=["thing"]),
    ]
    found = [set(ImageData(source, size=12).content_pieces()) for source in sources]
    small = set(ImageData(sources[0], size=8, other_sizes="crop").content_pieces())
    assert found[0] == found[1] == found[2] == small
    assert len(small) == 6
