"""Runs every code block of the README and of the pages in docs/.

    python .ci/documented_commands.py [--folder=DIR] [PAGE ...]

Commands run in copies of the repository, with the environment of the interpreter that runs this: those
of the first page in DIR or a temporary folder, then those of every other page in a copy of its own, with
the quickstart's run if the first has made it, as many pages at a time as there are cores. A page's
blocks run in the page's order:

- `bash` and `console`: commands, each block in a shell of its own at the copy's root;
- `python`: statements; all of one page share their names, as in one session;
- a block of any language with `title="PATH"`: the content of that file, written where the page says;
- `c`: has such a title, and a later command compiles it;
- `text` and others: shown, not run.

What cannot run everywhere stands in `_LISTED`, with the reason and with what runs in its place.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Sequence
from concurrent import futures

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_COMMANDS = ("bash", "console")
_RUN = (*_COMMANDS, "python")
_BLOCK = re.compile(r"^( *)(`{3,})(\w*)([^\n`]*)\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r'title="([^"]+)"')
# What most pages begin with, and takes a minute to train.
_TRAINED = "runs/quickstart"
# Prepared data that tests read, where it lies beside the checkout.
_DATA = _ROOT.parent / "shared" / "tfds"


@dataclasses.dataclass(frozen=True)
class Listed:
    """A part of a page's blocks that does not run as it stands there.

    Attributes:
      page: path of the page, from the repository's root.
      text: the part; it stands in exactly one place of the page's commands.
      why: what one would need to run it.
      instead: what runs in its place; None: the block that holds it does not run.
      data: set of TFDS without whose prepared records that block does not run either.
    """

    page: str
    text: str
    why: str
    instead: str | None = None
    data: str = ""


_FEW = "--config.num_steps=4 --config.eval_split='test[:2%]'"
_PAPER = "docs/tutorials/paper.md"
_TRAINING = "docs/how_to/training.md"
_MACHINES = "docs/how_to/many_machines.md"
_RESULTS = "docs/results.md"
_INSTALL = "docs/install.md"
# In the place of pictures of one's own: digits, by whether they are even.
_PICTURES = """python - <<'END'
import pathlib
from PIL import Image
from sklearn.datasets import load_digits
digits = load_digits()
for number in range(100):
    folder = pathlib.Path("pictures", ("even", "odd")[digits.target[number] % 2])
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (digits.images[number] * 15).astype("uint8")
    Image.fromarray(pixels).resize((64, 64)).save(folder / f"{number}.png")
END
"""
_LISTED = (
    Listed(
        "README.md",
        "ftbnn train --config=own_images",
        "pictures of one's own",
        f"{_PICTURES}ftbnn train --config=own_images --config.num_epochs=4",
    ),
    Listed("docs/how_to/prepare_data.md", "ftbnn prepare cifar10\n", "downloads"),
    Listed("docs/how_to/prepare_data.md", "launch/prepare_imagenet.sh", "ImageNet's archives"),
    Listed("docs/install.md", "python -m venv", "2 GB; .ci/wheel.sh installs the wheel"),
    Listed("docs/install.md", "EXTRAS=cuda", "a GPU"),
    Listed(_INSTALL, "python -m venv", "gigabytes; .ci/wheel.sh does it"),
    Listed(_INSTALL, "source launch/environment.sh", "gigabytes; CI itself begins so"),
    Listed(_INSTALL, "EXTRAS=cuda", "a machine with GPUs"),
    Listed(
        _PAPER,
        "--config.batch_size=8 --config.num_steps=3",
        "three minutes",
        "--config.batch_size=8 --config.num_steps=1 --config.image_size=32 "
        "--config.model.blocks='(1,1)'",
    ),
    Listed(_PAPER, "--workdir=runs/cifar10", "ten minutes", f"--workdir=runs/cifar10 {_FEW}", "cifar10"),
    Listed(_PAPER, "--workdir=runs/teacher\n", "minutes", f"--workdir=runs/teacher {_FEW}\n", "cifar10"),
    Listed(
        _PAPER,
        "--config.teacher=runs/teacher",
        "minutes",
        f"--config.teacher=runs/teacher {_FEW}",
        "cifar10",
    ),
    Listed(_PAPER, "--jobs=2", "ten minutes", "--jobs=2 --report"),
    Listed(_PAPER, "--seeds=0,1,2", "an hour", f"--seeds=0 --rows=none,baseline -- {_FEW}", "cifar10"),
    Listed(
        _PAPER,
        "--seeds=0,1 \\\n",
        "ImageNet, days",
        "--seeds=0 \\\n",
    ),
    Listed(
        _PAPER,
        "--config.batch_size=512",
        "ImageNet, days",
        "--config.batch_size=8 --config.dataset=fake --config.image_size=32 --config.num_steps=1 "
        "--config.model.blocks='(1,1)'",
    ),
    Listed(_PAPER, "--steps=1000,4000", "an hour", "--steps=1000,4000 --report"),
    Listed(_PAPER, "--epochs=20", "hours", "--epochs=20 --report"),
    Listed(_PAPER, "--widths=2,8,32", "an hour", "--widths=2,8,32 --report"),
    Listed(_PAPER, "--output=schedules", "hours", "--output=schedules --report"),
    Listed(
        _TRAINING,
        "bench exactness",
        "a minute and a half",
        "bench exactness --config=quickstart",
    ),
    Listed(
        _TRAINING,
        "--config=quickstart\n",
        "a minute",
        "--config=quickstart --variants=ftbnn_jax,flax --rounds=3\n",
    ),
    Listed("docs/how_to/budgets.md", "--table4", "half a minute; tested", "derived18_g1"),
    Listed(_TRAINING, "bench input\n", "ImageNet", "bench input --help\n"),
    Listed(
        _RESULTS,
        "--seeds=0,1,2 --jobs=5",
        "seven minutes of a GPU",
        "--seeds=0,1,2 --jobs=5 --report",
    ),
    Listed(_RESULTS, "--epochs=1,5", "a quarter of an hour of a GPU", "--epochs=1,5 --report"),
    Listed(_RESULTS, "--steps=1000,4000,16000", "likewise", "--steps=1000,4000,16000 --report"),
    Listed(_RESULTS, "--output=table3_30", "likewise", "--output=table3_30 --report"),
    Listed(_RESULTS, "--output=schedules", "likewise", "--output=schedules --report"),
    Listed(_RESULTS, "--epochs=20 --output", "likewise", "--epochs=20 --report --output"),
    Listed(_MACHINES, "launch/tpu.sh create", "an account of Google Cloud"),
    Listed(_MACHINES, "EXTRAS=train,cuda", "a cluster with GPUs"),
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block: of a page, in a line, in a language, with a title ("" for none)."""

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> list[Block]:
    """Returns the code blocks of a page, those in lists, tabs and notes included.

    Raises:
      ValueError: a block of C is no file.
    """
    found = []
    for match in _BLOCK.finditer(text):
        _, _, language, attributes, content = match.groups()
        title = _TITLE.search(attributes)
        line = text.count("\n", 0, match.start()) + 1
        block = Block(page, line, language, title[1] if title else "", textwrap.dedent(content))
        if language == "c" and not title:
            raise ValueError(f'{block}: a block of C needs title="PATH", and a command that compiles it')
        found.append(block)
    return found


def shortened(
    found: Iterable[Block], listed: Iterable[Listed], prepared: Iterable[str]
) -> list[tuple[Block, str]]:
    """Returns blocks as they run, each with why it runs otherwise than it stands there.

    A block without a command left is skipped by whoever runs it.

    Raises:
      ValueError: a listed part stands in no block of its page, or in several places.
    """
    found = list(found)
    texts, reasons = [block.text for block in found], {}
    for entry in listed:
        inside = [i for i, b in enumerate(found) if b.page == entry.page and entry.text in b.text]
        if len(inside) != 1 or found[inside[0]].text.count(entry.text) != 1:
            raise ValueError(f"{entry.page}: must have exactly one {entry.text!r}, as _LISTED says")
        (at,) = inside
        skipped = entry.instead is None or (entry.data and entry.data not in prepared)
        texts[at] = "" if skipped else texts[at].replace(entry.text, entry.instead)
        reasons[at] = entry.why
    return [
        (dataclasses.replace(block, text=text), reasons.get(i, ""))
        for i, (block, text) in enumerate(zip(found, texts, strict=True))
    ]


# Reads a line with a file's name, runs the file among the names of those before, and says how that went.
_SESSION = """
import sys, traceback
answers, names = sys.stdout, {"__name__": "__main__"}
sys.path.insert(0, "")
for line in sys.stdin:
    path, place = line.rstrip("\\n").split("\\t")
    try:
        with open(path) as file:
            exec(compile(file.read(), place, "exec"), names)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    print(status, file=open(3, "w", closefd=False), flush=True)
"""


class _Session:
    """A Python interpreter that runs the blocks of one page, started by the first of them."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
        self._folder, self._environment, self._process = folder, environment, None

    def run(self, block: Block) -> int:
        """Runs a block and returns 0, or 1 where it raised an exception."""
        if self._process is None:
            self._start()
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            file.write(block.text)
            file.flush()
            self._process.stdin.write(f"{file.name}\t{block}\n")
            self._process.stdin.flush()
            return int(self._answers.readline() or 1)

    def _start(self) -> None:
        answers, to_answer = os.pipe()
        # The descriptor is called 3 in the session.
        command = f'exec "$0" -c "$1" 3>&{to_answer}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, sys.executable, _SESSION],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            pass_fds=[to_answer],
            text=True,
        )
        os.close(to_answer)
        self._answers = open(answers)  # noqa: SIM115

    def close(self) -> None:
        """Ends the interpreter."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._answers.close()


def _run_page(found: Sequence[tuple[Block, str]], folder: pathlib.Path, environment: dict) -> None:
    """Runs a page's blocks; exits with a message at the first that fails."""
    session = _Session(folder, environment)
    try:
        for block, why in found:
            if block.title:
                path = folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
                continue
            if block.language not in _RUN:
                continue
            print(f"--- {block}" + (f" ({why})" if why else ""))
            if not block.text.strip():
                continue
            print(block.text, end="", flush=True)
            started = time.monotonic()
            if block.language == "python":
                status = session.run(block)
            else:
                command = ["bash", "-euo", "pipefail", "-c", block.text]
                status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
            print(f"-> {status} after {time.monotonic() - started:.0f} s", flush=True)
            if status:
                sys.exit(f"error: {block}: failed")
    finally:
        session.close()


def pages() -> list[str]:
    """Returns the README and the pages of docs/, from the repository's root."""
    found = sorted((_ROOT / "docs").rglob("*.md"))
    return ["README.md", *(str(page.relative_to(_ROOT)) for page in found)]


def read(names: Sequence[str], prepared: Iterable[str] = ()) -> dict[str, list[tuple[Block, str]]]:
    """Returns the blocks of pages as they run; see `shortened`."""
    listed = [entry for entry in _LISTED if entry.page in names]
    if unknown := {entry.page for entry in _LISTED} - set(pages()):
        raise ValueError(f"_LISTED has {', '.join(sorted(unknown))}, and there is no such page")
    found = shortened(
        [block for name in names for block in blocks(name, (_ROOT / name).read_text())],
        listed,
        prepared,
    )
    return {name: [each for each in found if each[0].page == name] for name in names}


def _copy(folder: pathlib.Path) -> None:
    """Copies what git has or could have here, and shares the repository's .venv where that runs this."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=_ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (_ROOT / name).is_symlink() or (_ROOT / name).is_file():
            (folder / name).unlink(missing_ok=True)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_ROOT / name, folder / name, follow_symlinks=False)
    if pathlib.Path(sys.prefix) == _ROOT / ".venv" and not (folder / ".venv").exists():
        # Only an environment that is up to date may be shared: scripts would renew it, for the copy.
        subprocess.run(["bash", "launch/environment.sh"], cwd=_ROOT, check=True)
        (folder / ".venv").symlink_to(sys.prefix)


def _run(name: str, folder: pathlib.Path, environment: dict[str, str], prepared: Sequence[str]) -> None:
    """Runs one page in a copy of the repository at `folder`."""
    found = read([name], prepared)[name]
    folder.mkdir(parents=True, exist_ok=True)
    _copy(folder)
    started = time.monotonic()
    _run_page(found, folder, {**environment, "PYTHONPATH": str(folder)})
    count = sum(block.language in _RUN and not block.title for block, _ in found)
    print(f"=== {name}: {count} blocks in {time.monotonic() - started:.0f} s", flush=True)


def _run_apart(name: str, made: pathlib.Path) -> bool:
    """Runs one page by a process of its own, in a temporary folder with the trained run of `made`."""
    with tempfile.TemporaryDirectory() as temporary:
        if (made / _TRAINED).is_dir():
            shutil.copytree(made / _TRAINED, pathlib.Path(temporary, _TRAINED))
        command = [sys.executable, __file__, f"--folder={temporary}", str(_ROOT / name)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.flush()
    return done.returncode == 0


def main(arguments: Sequence[str]) -> None:
    """Runs the pages that `arguments` names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", help="where commands of the first page run, and what they write stays"
    )
    parser.add_argument(
        "pages", nargs="*", metavar="PAGE", help="README.md, docs/...; all where none is named"
    )
    options = parser.parse_args(arguments)
    names = [os.path.relpath(page, _ROOT) for page in map(os.path.abspath, options.pages)] or pages()
    environment = {**os.environ, "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"}
    if _DATA.is_dir():
        environment.setdefault("TFDS_DATA_DIR", str(_DATA))
    data = environment.get("TFDS_DATA_DIR")
    prepared = [path.name for path in pathlib.Path(data).glob("*")] if data else []
    read(pages())  # What is wrong with a page or with the list is said before anything runs.
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.folder or temporary).resolve()
        _run(names[0], folder, environment, prepared)
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            # The tutorials take longest and stand last: begun first, none is waited for alone.
            others = names[:0:-1]
            passed = list(pool.map(lambda name: _run_apart(name, folder), others))
    if failed := [name for name, right in zip(others, passed, strict=True) if not right]:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
