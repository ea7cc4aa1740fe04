"""Whether a data set is the one that its name stands for: names and contents against those that are known.

Scope: what is refused and why. How contents are marked, and what such marks miss, is `content.py`.
"""

from lightning_dp.privacy.ledger.content import Content
from lightning_dp.privacy.ledger.errors import UnclearData
from lightning_dp.privacy.ledger.names import check_alike, normalised
from lightning_dp.privacy.ledger.replay import DataSet, Replay


def find_name(replay: Replay, dataset: str) -> str:
    """The name of the accounts of a data set; a new one in its one spelling.

    Raises:
        ValueError: it is no name, or one that would be taken for another.
    """
    if any(dataset == name for name, _ in replay.accounts):
        return dataset  # also one that older versions let be spelt otherwise
    name = normalised("dataset", dataset)
    known = {name for name, _ in replay.accounts} | set(replay.datasets) | set(replay.aliases)
    if name not in known:
        check_alike(name, sorted(known))
    return replay.name_of(name)


def is_news(replay: Replay, dataset: str, content: Content, *, key: bytes) -> bool:
    """Whether a content must be written down for the data set; nothing may be charged before that.

    A content that has enough in common with an earlier one of the same name is its next version.

    Raises:
        UnclearData: it is known under another name, or has nothing in common with what this name stood for.
    """
    known = replay.datasets.get(dataset)
    own = [] if known is None else _opened(known, key)
    if any(one.whole == content.whole for one in own):
        return False
    if known is not None and known.accepts:
        return True
    if known is not None and known.contents and not own:
        raise UnclearData(
            f"What data set {dataset!r} held can't be compared with what it holds: the ledger's content key "
            "is not the one that it was marked with. Put that key back, or let the data's owner say that it "
            f"is the same: lightning-dp ledger accept-content {_quoted(dataset)} --reason WHY"
        )
    for other, record in replay.datasets.items():
        if other == dataset:
            continue
        theirs = _opened(record, key)
        if any(mine.overlaps(one) for mine in own for one in theirs):
            continue  # which its owner has accepted
        share = max((content.share_in(one) for one in theirs if content.overlaps(one)), default=0.0)
        if share:
            raise UnclearData(
                f"Data set {dataset!r} and {other!r}, which the ledger knows, have about {share:.0%} of the "
                f"smaller one's content in common, and apart their costs would not add up: name it {other!r} "
                "(privacy.dataset), or let the data's owner say that the names mean one data set "
                f"(lightning-dp ledger same-as {_quoted(dataset)} {_quoted(other)}) or two (lightning-dp "
                f"ledger accept-content {_quoted(dataset)} --reason WHY). Nothing was charged."
            )
    if own and not any(content.overlaps(one) for one in own):
        raise UnclearData(
            f"Data set {dataset!r} has nothing in common with what the ledger knows by that name: give other "
            "data another name (privacy.dataset), or let the data's owner say that it is the same in another "
            f"form: lightning-dp ledger accept-content {_quoted(dataset)} --reason WHY. Nothing was charged."
        )
    return True


def _opened(known: DataSet, key: bytes) -> list[Content]:
    opened = (Content.opened(one, key) for one in known.contents)
    return [content for content in opened if content is not None]


def _quoted(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").replace(".", "").isalnum() else f"'{name}'"
