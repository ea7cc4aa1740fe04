"""The typed report and its schema: what they take, what they refuse, and that pages show text as text."""

import copy
import json
import re
from pathlib import Path

import pytest

from lightning_dp.privacy.report import schema
from lightning_dp.privacy.report.document import SCHEMA, PrivacyReport, fields_in_words
from lightning_dp.privacy.report.markdown import to_markdown
from lightning_dp.privacy.report.page import to_page

ROOT = Path(__file__).parents[2]
EVENT = {"type": "GaussianEvent", "noise_multiplier": 2.0, "sampling_rate": 0.1, "steps": 3}
REPORT = {
    "schema": SCHEMA,
    "kind": "fit",
    "status": "finished",
    "dataset": "meters",
    "epsilon_spent": 1.25,
    "epsilon": 1.25,
    "delta": 1e-5,
    "unit": "user",
    "num_units": 1000,
    "relation": "add or remove one unit",
    "epsilon_of_unit": {"user": 1.25, "event": None, "window": "inf"},
    "curve": [{"delta": 1e-6, "epsilon": "inf"}, {"delta": 1e-5, "epsilon": 1.25}],
    "composition": [
        {
            "name": "Poisson-sampled Gaussian mechanism",
            "event": EVENT,
            "released": "gradients",
            "dataset": "meters",
            "unit": "user",
            "runs": ["ab"],
        }
    ],
    "mechanisms": [EVENT],
    "noise": [{"of": "training", "source": "GaussianNoise", "secure": False, "generator": "its own"}],
    "code": {
        "version": "0.1.0",
        "git_commit": None,
        "git_changed": None,
        "python": "3.11",
        "packages": {"torch": "2"},
    },
    "total": {
        "dataset": "meters",
        "unit": "user",
        "epsilon": 2.5,
        "delta": 1e-5,
        "runs": 2,
        "entry": 9,
        "limit_epsilon": None,
    },
    "not_covered": ["test rows"],
    "made_by": {"an": ["other", "writer"]},
}


def valid(value, rule, whole) -> bool:
    """The part of JSON Schema that the file uses, to see it refuse; no library for it is needed."""
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if "$ref" in rule:
        return valid(value, whole["$defs"][rule["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in rule and not any(valid(value, one, whole) for one in rule["anyOf"]):
        return False
    if "const" in rule and value != rule["const"]:
        return False
    if kind := rule.get("type"):
        numeric = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
        if not (numeric if kind in ("integer", "number") else isinstance(value, types[kind])):
            return False
    if isinstance(value, list):
        return all(valid(one, rule.get("items", {}), whole) for one in value)
    if not isinstance(value, dict):
        return True
    known, more = rule.get("properties", {}), rule.get("additionalProperties", True)
    return set(rule.get("required", ())) <= set(value) and all(
        valid(one, known[name], whole)
        if name in known
        else more is True or (more is not False and valid(one, more, whole))
        for name, one in value.items()
    )


def changed(*path, to) -> dict:
    content = copy.deepcopy(REPORT)
    where = content
    for step in path[:-1]:
        where = where[step]
    if to is None:
        del where[path[-1]]
    else:
        where[path[-1]] = to
    return content


WRONG_TYPES = {
    "epsilon_spent": changed("epsilon_spent", to="0.1"),
    "num_units": changed("num_units", to=12.5),
    "epsilon_of_unit.user": changed("epsilon_of_unit", "user", to=True),
    "curve[1].epsilon": changed("curve", 1, "epsilon", to="nan"),
    "curve[0].delta": changed("curve", 0, "delta", to=None),
    "noise[0].secure": changed("noise", 0, "secure", to="yes"),
    "composition[0].runs[0]": changed("composition", 0, "runs", to=[1]),
    "total.more": changed("total", "more", to=1),
    "not_covered": changed("not_covered", to="nothing"),
}

CONTRADICTIONS = {
    "don't list the same releases": changed("mechanisms", to=[{**EVENT, "steps": 2}]),
    "less than the 1.25 of this one": changed("total", "epsilon", to=1.0),
    "curve doesn't hold": changed("epsilon_spent", to=1.5),
    "is not that of an ε": changed("curve", 0, "epsilon", to=1.0),
    "update lightning-dp": changed("schema", to="privacy-report-2"),
    "it claims no ε": {name: REPORT[name] for name in REPORT if not name.startswith("epsilon")},
}


def test_the_schema_file_is_that_of_the_dataclasses():
    assert schema.schema() == schema.make_schema(), "python -m lightning_dp.privacy.report.schema > its file"


@pytest.mark.parametrize("field", WRONG_TYPES)
def test_schema_and_reader_refuse_the_same_types(field):
    whole = schema.schema()
    assert valid(REPORT, whole, whole)
    assert not valid(WRONG_TYPES[field], whole, whole)
    with pytest.raises(ValueError, match=re.escape(field)):
        PrivacyReport.of(WRONG_TYPES[field])


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_a_report_that_contradicts_itself_is_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PrivacyReport.of(CONTRADICTIONS[message])


def test_what_was_read_is_written_again():
    assert PrivacyReport.of(REPORT).to_dict() == REPORT
    assert list(PrivacyReport.of(REPORT).to_dict()) == list(REPORT)
    old = {"epsilon": "inf", "epsilon_spent": "inf", "note": "trained without privacy"}
    assert PrivacyReport.of(old).to_dict() == old


def test_pages_show_every_value_and_names_as_text():
    hostile = "<script>alert(1)</script>|[x](javascript:1) `rm` *b*"
    report = PrivacyReport.of(changed("dataset", to=hostile))
    page, markdown = to_page(report), to_markdown(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.search(r"(?<!\\)[<|`*]script|(?<!\\)\[x\]|(?<!\\)`rm", markdown) is None
    assert not re.search(r"(src|href)=|url\(|@import", page)
    for text in ("1.25", "gradients", "test rows", "0.1.0", "2.5", "writer"):
        assert text in page
        assert text in markdown


def test_every_field_has_its_line_in_the_documentation():
    text = (ROOT / "docs" / "privacy_report.md").read_text()
    for name, words in fields_in_words().items():
        assert f"| `{name}` | {words} |" in text, f"docs/privacy_report.md lacks | `{name}` | {words} |"


def test_the_example_of_the_documentation_is_a_report():
    text = (ROOT / "docs" / "privacy_report.md").read_text()
    (example,) = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    content = json.loads(example)
    assert valid(content, schema.schema(), schema.schema())
    assert PrivacyReport.of(content).to_dict() == content
