"""Pages whose code is run as it stands, from top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def code_of(page: Path) -> str:
    """The page's Python blocks, each on its own lines, so that a failure names the page's line."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for block in _CODE.finditer(text):
        first = text.count("\n", 0, block.start(1))
        for number, line in enumerate(block[1].splitlines(), start=first):
            lines[number] = line
    return "\n".join(lines)


def test_parts_of_ones_own_train_privately(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "extending.md"
    names = {"__name__": "extending"}
    exec(compile(code_of(page), str(page), "exec"), names)
    assert "per shop, peak error" in capsys.readouterr().out
    trainable = [name for name, p in names["model"].named_parameters() if p.requires_grad]
    assert trainable == [
        f"net.{n}"
        for n in (
            "steer.linear.weight",
            "steer.linear.bias",
            "hidden.0.weight",
            "hidden.0.bias",
            "out.weight",
            "out.bias",
        )
    ]
    assert names["privacy"].plan.epsilon == pytest.approx(8, abs=0.01)


@pytest.mark.parametrize(
    "mistake",
    [
        "MLPNet(UnitBallAdaLNZero(), length=96, num_channels=1, num_covariates=0, hidden_size=0)",
        "LastLayers(0)",
        "ShopSales(3)",
    ],
)
def test_mistakes_in_them_are_refused_in_a_sentence(mistake):
    names = {"__name__": "extending"}
    code = code_of(ROOT / "docs" / "extending.md").partition("data = ShopSales(")[0]
    exec(compile(code, "extending.md", "exec"), names)
    with pytest.raises(ValueError, match=r"(is|must be) .+"):
        eval(mistake, names)
