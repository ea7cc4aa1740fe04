"""Model and data cards in the Hugging Face format: README.md with YAML in front, for its owner to complete.

What a card says of privacy stands in one block between two comments and in `privacy` of the YAML. Both are
made of the privacy report, and `lightning-dp verify` compares them; everything else may be edited.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_dp.privacy.report import REPORT_NAME, replace_text
from lightning_dp.privacy.report.document import PrivacyReport
from lightning_dp.privacy.report.markdown import escaped
from lightning_dp.privacy.report.sections import headline_of, summary_of

CARD = "README.md"
_BEGIN = "<!-- privacy: begin, made of {report}; edit around it -->"
_END = "<!-- privacy: end -->"
_TAGS = ("lightning-dp", "differential-privacy")
_LICENSE = "license: choose one, and take this line's # away; it must allow what the data's owner allows"


def card_beside(report: Path) -> Path:
    """Where the card of what a report speaks of lies.

    >>> card_beside(Path("samples/privacy.json")).name, card_beside(Path("days.csv.privacy.json")).name
    ('README.md', 'days.csv.README.md')
    """
    return report.with_name(report.name.removesuffix(REPORT_NAME) + CARD)


def write_model_card(
    path: Path,
    content: Mapping[str, Any],
    *,
    results: Mapping[str, Any],
    library: str,
    report_name: str = REPORT_NAME,
) -> None:
    """The card of trained weights.

    Args:
        path: of the card.
        content: the privacy report.
        results: of results.json; {} where there is none.
        library: that reads the weights, as the Hub calls it.
        report_name: where the report lies, seen from the card.
    """
    report = PrivacyReport.of(content)
    front: dict[str, Any] = {"library_name": library, "tags": list(_TAGS)}
    metrics = _metrics(results)
    if metrics:
        front["model-index"] = [_model_index(metrics, results=results, report=report)]
    _write(
        path,
        report,
        front=front,
        title=f"A diffusion model of {report.dataset or 'data that its report does not name'}",
        about="Weights that lightning-dp trained"
        + (", with DP-SGD." if report.delta is not None else ", without privacy or on no private data."),
        use="Drawing synthetic data, forecasts or imputations of the kind that the model was trained on. "
        "Whatever is drawn from the weights costs no further ε.",
        metrics=_metrics_section(metrics, results=results),
        report_name=report_name,
    )


def write_data_card(
    path: Path,
    content: Mapping[str, Any],
    *,
    title: str,
    about: str,
    files: Sequence[str] = (),
    report_name: str = REPORT_NAME,
) -> None:
    """The card of a synthetic data set.

    Args:
        path: of the card.
        content: the privacy report.
        title: the heading.
        about: what the files hold, in a sentence or two.
        files: patterns of the data, for the Hub's viewer.
        report_name: where the report lies, seen from the card.
    """
    front: dict[str, Any] = {"tags": [*_TAGS, "synthetic"]}
    if files:
        front["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": list(files)}]}
        ]
    _write(
        path,
        PrivacyReport.of(content),
        front=front,
        title=title,
        about=about,
        use="Developing and testing methods where the private data can't be given away.",
        metrics="",
        report_name=report_name,
    )


def check_card(path: Path, report: PrivacyReport, *, report_name: str = REPORT_NAME) -> list[str]:
    """A sentence for each place where a card says something else of privacy than the report."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    findings = []
    if _block(report, report_name=report_name) not in text or text.count(_END) != 1:
        findings.append(f"{path} does not hold the privacy block that {report_name} stands for.")
    try:
        front = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
        stated = front.get("privacy") if isinstance(front, dict) else None
    except (yaml.YAMLError, IndexError):
        stated = None
    if stated != _stated(report, report_name=report_name):
        findings.append(f"{path} states other figures under 'privacy' than {report_name} does.")
    return findings


def _write(
    path: Path,
    report: PrivacyReport,
    *,
    front: dict[str, Any],
    title: str,
    about: str,
    use: str,
    metrics: str,
    report_name: str,
) -> None:
    front["privacy"] = _stated(report, report_name=report_name)
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=110)
    limits = [
        "ε bounds what can be learnt of one unit beyond what is known without it; it says nothing of truth: "
        "what is drawn may be wrong, biased as its data was, or rare where the data was common.",
        *(report.not_covered or ()),
    ]
    parts = [
        f"---\n# {_LICENSE}\n{head}---",
        f"# {escaped(title)}",
        escaped(about),
        _block(report, report_name=report_name),
        f"## Intended use\n\n{use}",
        "## Limits\n\n" + "\n".join(f"- {escaped(one)}" for one in limits),
        metrics,
        "## License\n\nFor the owner to choose.",
    ]
    replace_text(path, "\n\n".join(part for part in parts if part) + "\n")


def _block(report: PrivacyReport, *, report_name: str) -> str:
    sentences = "\n\n".join(escaped(sentence) for sentence in summary_of(report))
    page = report_name.removesuffix(REPORT_NAME) + "privacy_report.md"
    return (
        f"{_BEGIN.format(report=report_name)}\n## Privacy\n\n**{escaped(headline_of(report))}**\n\n"
        f"{sentences}\n\n"
        f"Private data: {escaped(report.dataset or 'not named in the report')}. All of the report: "
        f"[{escaped(page)}](<{page}>); check it by `lightning-dp verify`.\n{_END}"
    )


def _stated(report: PrivacyReport, *, report_name: str) -> dict[str, Any]:
    """ε and what it is of, as the YAML says it."""
    content = report.to_dict()
    stated = {
        "epsilon": content.get("epsilon_spent", content.get("epsilon")),
        **{name: content.get(name) for name in ("delta", "unit", "relation", "dataset", "run")},
        "report": report_name,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Scores on the test split; nothing private, and no baseline."""
    found = results.get("metrics")
    return {
        name.removeprefix("test/"): float(value)
        for name, value in (found if isinstance(found, Mapping) else {}).items()
        if name.startswith("test/") and name != "test/epsilon" and isinstance(value, int | float)
    }


def _covered(results: Mapping[str, Any]) -> str:
    if results.get("test_rows_are_public") is True:
        return "The rows of the test split are public."
    return (
        "They are functions of the rows of the test split, which no ε covers: show them to who may see those."
    )


def _model_index(
    metrics: Mapping[str, float], *, results: Mapping[str, Any], report: PrivacyReport
) -> dict[str, Any]:
    facts = results.get("facts")
    task = str(facts.get("task", "diffusion")) if isinstance(facts, Mapping) else "diffusion"
    name = str(results.get("dataset") or report.dataset or "private data")
    return {
        "name": str(results.get("method") or "model"),
        "results": [
            {
                "task": {"type": "other", "name": task},
                "dataset": {"name": name, "type": "private", "split": "test"},
                "metrics": [{"type": one, "name": one, "value": value} for one, value in metrics.items()],
            }
        ],
    }


def _metrics_section(metrics: Mapping[str, float], *, results: Mapping[str, Any]) -> str:
    if not metrics:
        return ""
    rows = "\n".join(f"| {escaped(name)} | {value:.4g} |" for name, value in metrics.items())
    return f"## Metrics\n\n{_covered(results)}\n\n| on the test split | |\n|---|---|\n{rows}"
