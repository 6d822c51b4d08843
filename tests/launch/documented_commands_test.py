import importlib.util
import os
import pathlib

import pytest

from ftbnn_jax.graph import ir

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location(
    "documented_commands", _ROOT / ".ci/documented_commands.py"
)
documented = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(documented)

PAGE = """Text.

```bash
echo one \\
  two
```

1. In a list:

    ```python title="made/here.py"
    value = 3
    if value:
        pass
    ```

```text
echo not run
```
"""


def _listed(text, instead=None, data=""):
    return documented.Listed("page.md", text, "why", instead, data)


def test_blocks_are_found_with_their_lines_and_titles_those_of_lists_too():
    assert documented.blocks("page.md", PAGE) == [
        documented.Block("page.md", 3, "bash", "", "echo one \\\n  two\n"),
        documented.Block("page.md", 10, "python", "made/here.py", "value = 3\nif value:\n    pass\n"),
        documented.Block("page.md", 16, "text", "", "echo not run\n"),
    ]


def test_a_program_in_c_that_nothing_compiles_is_refused():
    with pytest.raises(ValueError, match=r"page.md:1: a block of C needs title="):
        documented.blocks("page.md", "```c\nint main(void) { return 0; }\n```\n")


@pytest.mark.parametrize(
    ("listed", "prepared", "expected"),
    [
        ([], (), "echo one \\\n  two\n"),
        ([_listed("two", "2")], (), "echo one \\\n  2\n"),
        ([_listed("two", "2"), _listed("one", "1")], (), "echo 1 \\\n  2\n"),
        ([_listed("two")], ("mnist",), ""),
        ([_listed("two", "2", "mnist")], ("mnist",), "echo one \\\n  2\n"),
        ([_listed("two", "2", "mnist")], ("cifar10",), ""),
    ],
)
def test_a_listed_part_runs_as_the_list_says(listed, prepared, expected):
    (block, why), *_ = documented.shortened(documented.blocks("page.md", PAGE), listed, prepared)
    assert (block.text, why) == (expected, "why" if listed else "")


@pytest.mark.parametrize("text", ["three", "o"])
def test_a_listed_part_that_is_nowhere_or_in_two_places_is_refused(text):
    with pytest.raises(ValueError, match=f"page.md: must have exactly one '{text}', as _LISTED says"):
        documented.shortened(documented.blocks("page.md", PAGE), [_listed(text)], ())


def test_the_list_fits_the_pages_as_they_are():
    assert set(documented.read(documented.pages())) == set(documented.pages())


def test_blocks_of_a_page_run_in_order_and_share_names_and_files(tmp_path, capfd):
    page = """
```python title="made.py"
count = 5
```
```python
import made
count = made.count + 1
```
```bash
echo from bash > said
```
```python
print(count, open("said").read())
```
"""
    documented._run_page(
        [(b, "") for b in documented.blocks("page.md", page)], tmp_path, dict(os.environ)
    )
    assert "6 from bash" in capfd.readouterr().out


@pytest.mark.parametrize("block", ["```bash\nfalse | true\n```", "```python\n1 / 0\n```"])
def test_a_block_that_fails_ends_the_run(tmp_path, block):
    with pytest.raises(SystemExit, match=r"error: page.md:1: failed"):
        documented._run_page(
            [(b, "") for b in documented.blocks("page.md", block)], tmp_path, dict(os.environ)
        )


def test_the_docs_name_every_operation_of_a_graph():
    page = (_ROOT / "docs/reference/graph.md").read_text()
    assert [name for name in ir.OPERATIONS if f"`{name}`" not in page] == []


def test_the_readme_stays_short():
    assert len((_ROOT / "README.md").read_text().splitlines()) <= 150
