"""What the docs say about the code is there."""

import importlib.util
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("code_links", _ROOT / ".ci/code_links.py")
code_links = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(code_links)

_CLAIMS = (_ROOT / "docs/paper.md").read_text(encoding="utf-8")


def test_a_reference_is_linked_to_its_line():
    test = "`ops/quantizers_test.py:test_the_default_gradient_is_the_papers`"
    text = f"see `ops/quantizers.py:Clipped.bound` and {test}."
    linked = code_links.linked(text, "https://x/blob/main")
    found = re.findall(r"\[`[^`]+`\]\(https://x/blob/main/([^)#]+)#L(\d+)\)", linked)
    (file, line), (test, line_of_test) = found
    assert "bound: float = 1.2" in (_ROOT / file).read_text().splitlines()[int(line) - 1]
    assert "def test_the_default" in (_ROOT / test).read_text().splitlines()[int(line_of_test) - 1]


@pytest.mark.parametrize("name", ["Cliped", "Clipped.bond", "Clipped.bound.x"])
def test_a_reference_to_nothing_is_told(name):
    with pytest.raises(KeyError, match="defines no"):
        code_links.line_of("ops/quantizers.py", name)
    with pytest.raises(KeyError, match="no such file"):
        code_links.line_of("ops/none.py", name)


@pytest.mark.parametrize("page", sorted(p.relative_to(_ROOT) for p in _ROOT.glob("docs/**/*.md")))
def test_every_reference_of_a_page_is_there(page):
    for path, name in code_links.REFERENCE.findall((_ROOT / page).read_text(encoding="utf-8")):
        assert code_links.line_of(path, name)


def _rows():
    rows = [line.strip("|").split(" | ") for line in _CLAIMS.splitlines() if re.match(r"\| \d", line)]
    return {cells[0].strip(): cells for cells in rows}


def test_every_claim_has_a_row_that_says_where_it_is_and_how_it_was_checked():
    rows = _rows()
    assert list(rows) == [str(number) for number in range(1, len(rows) + 1)]
    assert len(rows) >= 42
    for number, cells in rows.items():
        assert len(cells) == 5, number
        _, _, _, where, how = cells
        assert code_links.REFERENCE.search(where), f"{number}: no code"
        tested = code_links.REFERENCE.search(how) or "results.md" in how or "not run" in how
        assert tested, f"{number}: neither a test nor a result"


def test_every_choice_and_difference_stands_in_the_list_of_them():
    marked = {
        int(n)
        for n, cells in _rows().items()
        if re.search(r"\*\*(choice|differs)", " ".join(cells), re.I)
    }
    _, _, listed = _CLAIMS.partition("## Choices and differences")
    found = set()
    for numbers in re.findall(r"\*\* \(([\d, to]+)\)", listed):
        for part in numbers.split(", "):
            first, _, last = part.partition(" to ")
            found.update(range(int(first), int(last or first) + 1))
    assert marked <= found
