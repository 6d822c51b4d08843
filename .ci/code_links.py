"""Links from the docs to lines of code, by the names of what stands there.

`ops/quantizers.py:Clipped` between backticks is a class, a function, a constant or a field of a class,
`nn/spec.py:Architecture.scaling`, in a file below ftbnn_jax/; `ops/quantizers_test.py:test_x` is a test
below tests/. A hook of mkdocs makes links of them, so that a line that moves is found again at the next
build, and tests/docs_test.py asks whether all are there.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
REFERENCE = re.compile(r"`((?:\w+/)*\w+\.py):([\w.]+)`")


def file_of(path):
    """Returns the file that a reference names, relative to the repository's root."""
    return f"tests/{path}" if path.endswith("_test.py") else f"ftbnn_jax/{path}"


def line_of(path, name):
    """Returns the line on which something is defined.

    Args:
      path: of the file, as in a reference.
      name: of a class, function, constant or field; dots lead into classes.

    Raises:
      KeyError: there is no such file or name.
    """
    file = ROOT / file_of(path)
    if not file.exists():
        raise KeyError(f"{path}: no such file")
    body, line = ast.parse(file.read_text(encoding="utf-8")).body, 0
    for part in name.split("."):
        found = [node for node in body if part in _names(node)]
        if not found:
            raise KeyError(f"{path}: defines no {name}")
        body, line = getattr(found[0], "body", []), found[0].lineno
    return line


def _names(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def linked(text, root):
    """Returns a page with its references as links.

    Args:
      text: of the page, Markdown.
      root: address of the source tree.
    """

    def link(match):
        path, name = match.groups()
        return f"[{match[0]}]({root}/{file_of(path)}#L{line_of(path, name)})"

    return REFERENCE.sub(link, text)


def on_page_markdown(markdown, page, config, files):
    """Is called by mkdocs for each page."""
    return linked(markdown, f"{config.repo_url.rstrip('/')}/blob/main")
