"""Exported pages in headless Chromium: what they show, and that their numbers are those of Python.

    python .ci/web_page.py [ARTIFACT] [--screenshots=DIR]

The artifact is the quickstart's by default. Needs chromium, chromedriver and selenium.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import io
import pathlib
import shutil
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from sklearn import datasets

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "tests" / part) for part in ("deploy", "graph")]

import contract_networks  # noqa: E402
import encoded_images_test  # noqa: E402
import networks  # noqa: E402

import ftbnn_jax  # noqa: E402
from ftbnn_jax.deploy import artifact as artifact_lib  # noqa: E402
from ftbnn_jax.deploy.c import export as c_export  # noqa: E402
from ftbnn_jax.deploy.c import generate, reference  # noqa: E402
from ftbnn_jax.deploy.c.options import DEFAULT  # noqa: E402
from ftbnn_jax.deploy.web import build  # noqa: E402
from ftbnn_jax.deploy.web import export as web_export  # noqa: E402
from ftbnn_jax.nn import architectures  # noqa: E402
from ftbnn_jax.ops import decoding  # noqa: E402

# What stands there without a result.
_NOTHING = "\N{EN DASH}"
# In the place of a 3; corners of a line, in shares of the drawing area.
_THREE = ((0.3, 0.2), (0.5, 0.12), (0.68, 0.25), (0.62, 0.42), (0.48, 0.48))
_THREE += ((0.64, 0.54), (0.7, 0.7), (0.55, 0.86), (0.3, 0.8))


def _export(folder: pathlib.Path, artifact: artifact_lib.Artifact, images: np.ndarray) -> None:
    """Writes the page of an artifact, with these images as golden vectors."""
    found = reference.Reference(artifact, DEFAULT)
    files = {name: text.encode() for name, text in generate.files(artifact, DEFAULT).items()}
    files["golden.bin"] = found.golden(images)
    program = c_export.Program(files, DEFAULT, found)
    modules = build.modules(files, build.compiler())
    assert modules == build.modules(files, build.compiler()), "the same program, other bytes"
    folder.mkdir(parents=True)
    for name, content in web_export.files(artifact, program, modules, folder.name, 12345).items():
        (folder / name).write_bytes(content)


class _Browser:
    """A page in Chromium."""

    def __init__(self, screenshots: pathlib.Path | None):
        options = webdriver.ChromeOptions()
        # The sandbox refuses root; a camera is a moving picture.
        for flag in ("headless=new", "no-sandbox", "use-fake-device-for-media-stream"):
            options.add_argument(f"--{flag}")
        options.add_argument("--use-fake-ui-for-media-stream")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(120)
        self._screenshots = screenshots

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a page and waits for its network."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(url)
        self.wait("net && document.getElementById('numbers').children.length")

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns the value of an expression, which may wait, of `a`, the arguments."""
        text = f"""const a = arguments, done = a[a.length - 1];
            (async () => ({script}))().then(done, (error) => done("error: " + error.message));"""
        return self.driver.execute_async_script(text, *arguments)

    def wait(self, condition: str, *arguments: Any) -> None:
        """Waits until a condition holds."""
        script = f"const a = arguments; return Boolean({condition});"
        message = f"never: {condition}; {self.driver.get_log('browser')}"
        WebDriverWait(self.driver, 60).until(
            lambda driver: driver.execute_script(script, *arguments), message
        )

    def text(self, name: str) -> str:
        """Returns the text of an element."""
        return self.run("document.getElementById(a[0]).textContent", name)

    def click(self, name: str) -> None:
        """Clicks on an element."""
        self.driver.find_element("id", name).click()

    def choose(self, source: str) -> None:
        """Chooses where images come from."""
        self.driver.find_element("css selector", f"input[value={source}]").click()

    def draw(self) -> None:
        """Draws a digit with the mouse."""
        paper = self.driver.find_element("id", "paper")
        side = paper.size["width"]
        self.run("document.getElementById('input').scrollIntoView()")
        actions = ActionChains(self.driver, duration=10)
        for i, (x, y) in enumerate(_THREE):
            actions.move_to_element_with_offset(paper, (x - 0.5) * side, (y - 0.5) * side)
            if not i:
                actions.click_and_hold()
        actions.release().perform()
        self.wait("document.getElementById('bars').children.length")

    def drop(self, name: str, content: bytes | None, event: str = "drop") -> None:
        """Drops a file on the page, or something that is none; or pastes it."""
        encoded = None if content is None else base64.b64encode(content).decode()
        self.run(
            """(() => {
              const data = new DataTransfer();
              if (a[1] === null) data.setData("text/plain", "no file");
              else data.items.add(new File([Uint8Array.from(atob(a[1]), (c) => c.charCodeAt(0))], a[0]));
              const given = { bubbles: true, cancelable: true };
              dispatchEvent(a[2] === "drop" ? new DragEvent("drop", { ...given, dataTransfer: data })
                : new ClipboardEvent("paste", { ...given, clipboardData: data }));
            })()""",
            name,
            encoded,
            event,
        )
        self.wait("!working")

    def golden(self) -> str:
        """Runs the golden vectors and returns what the page says of them."""
        self.click("check")
        self.wait("/[✓✗]/.test(document.getElementById('verdict').textContent)")
        return self.text("verdict")

    def decoded(self, content: bytes, channels: int) -> np.ndarray | str:
        """Returns the pixels that the page makes of a file, or what it says in their place."""
        found = self.run(
            """ftbnnImages.decode(Uint8Array.from(atob(a[0]), (c) => c.charCodeAt(0)), a[1]).then(
              async ({ width, height, pixels }) => [width, height, await new Promise((resolve) => {
                const reader = new FileReader();
                reader.onload = () => resolve(reader.result.split(",")[1]);
                reader.readAsDataURL(new Blob([pixels]));
              })])""",
            base64.b64encode(content).decode(),
            channels,
        )
        if isinstance(found, str):
            return found
        width, height, encoded = found
        return np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(height, width, channels)

    def show(self, name: str) -> None:
        """Writes a screenshot of the whole page, where one was asked for."""
        if self._screenshots:
            self.run("new Promise((resolve) => setTimeout(resolve, 300))")
            shown = {"captureBeyondViewport": True, "format": "png"}
            found = self.driver.execute_cdp_cmd("Page.captureScreenshot", shown)
            (self._screenshots / f"{name}.png").write_bytes(base64.b64decode(found["data"]))

    def check_silent(self) -> None:
        """Fails where the console holds a message, or something came from elsewhere."""
        assert not (log := self.driver.get_log("browser")), log
        found = self.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
        here = self.run("new URL('.', location).href")
        assert all(name.startswith((here, "data:", "blob:")) for name in found), found


@contextlib.contextmanager
def _served(folder: pathlib.Path) -> Iterator[str]:
    """Gives the address of a folder that a static server serves."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


def _png(rows: np.ndarray, depth: int, kind: int, *chunks: tuple[bytes, bytes], passes=((0, 0, 1, 1),)):
    """Encodes a PNG of any depth and colour type, with every filter in turn.

    Args:
      rows: samples `[H, W, samples]`.
      depth: bits of a sample.
      kind: the colour type.
      *chunks: names and contents of what stands before the data.
      passes: first column and row and the distances of those that follow, of each pass.
    """
    data = bytearray()
    for left, top, across, down in passes:
        part = rows[top::down, left::across].astype(np.uint32)
        if not part.size:
            continue
        bits = (part.reshape(len(part), -1)[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.astype(np.uint8).reshape(len(part), -1), axis=-1)
        distance = max(1, depth * rows.shape[-1] // 8)
        above = np.zeros(packed.shape[1], np.int64)
        for y, row in enumerate(packed.astype(np.int64)):
            left_of = np.concatenate([np.zeros(distance, np.int64), row])[: len(row)]
            corner = np.concatenate([np.zeros(distance, np.int64), above])[: len(row)]
            guess = left_of + above - corner
            nearest = [np.abs(guess - x) for x in (left_of, above, corner)]
            order = np.argmin(nearest, axis=0)
            paeth = np.choose(order, [left_of, above, corner])
            filters = (0, left_of, above, (left_of + above) // 2, paeth)
            data += bytes([y % 5]) + ((row - filters[y % 5]) % 256).astype(np.uint8).tobytes()
            above = row

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width, _ = rows.shape
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, len(passes) > 1)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(bytes(data))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def _pngs() -> Iterator[tuple[str, bytes]]:
    """Yields PNGs of every colour type and depth, plain and interlaced, with what readers may act on."""
    rng = np.random.default_rng(0)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    palette = (b"PLTE", rng.integers(0, 256, 768, np.uint8).tobytes())
    # A gamma that would change every colour.
    gamma = (b"gAMA", struct.pack(">I", 100000))
    for kind, count in samples.items():
        for depth in depths[kind]:
            for passes in (((0, 0, 1, 1),), _ADAM7):
                for height, width in ((13, 21), (1, 1), (5, 2)):
                    rows = rng.integers(0, 2**depth, (height, width, count))
                    chunks = [gamma]
                    if kind == 3:
                        chunks += [palette, (b"tRNS", bytes(range(0, 256, 1 if depth == 8 else 100)))]
                    name = f"type {kind}, {depth} bits, {len(passes)} passes, {width}x{height}"
                    yield name, _png(rows, depth, kind, *chunks, passes=passes)


def _check_decoding(browser: _Browser) -> None:
    """PNGs of all kinds, JPEGs of all samplings, and what must be refused."""
    for name, content in _pngs():
        for channels in (1, 3):
            found, expected = browser.decoded(content, channels), decoding.from_bytes(content, channels)
            assert np.array_equal(found, expected), (name, channels, found)
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    # A profile that would swap colours, were it used: any will do that is none of sRGB.
    for width, height in ((61, 47), (1, 1), (16, 15), (200, 123)):
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        for mode in ("RGB", "L"):
            for sampling in (0, 1, 2):
                for more in ({}, {"progressive": True}, {"exif": turned}, {"restart_marker_rows": 1}):
                    buffer = io.BytesIO()
                    image.convert(mode).save(buffer, "JPEG", subsampling=sampling, quality=80, **more)
                    for channels in (1, 3):
                        expected = decoding.from_bytes(buffer.getvalue(), channels)
                        found = browser.decoded(buffer.getvalue(), channels)
                        assert np.array_equal(found, expected), (width, mode, sampling, more, found)
        for kind in ("BMP", "GIF", "WEBP"):
            buffer = io.BytesIO()
            image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
            expected = decoding.from_bytes(buffer.getvalue(), 3)
            assert np.array_equal(browser.decoded(buffer.getvalue(), 3), expected), kind

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    jpeg, png = encoded(coarse, "JPEG"), encoded(coarse, "PNG")
    clear = Image.fromarray(rng.integers(0, 256, (5, 5, 4), np.uint8))
    refused = {
        "no image in a format of": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "CMYK": encoded(coarse.convert("CMYK"), "JPEG"),
        "ends early": jpeg[: len(jpeg) // 2],
        "a damaged JPEG": jpeg[:2] + b"\xff\xe0\x00\x04ab" + b"xy" + jpeg[2:],
        "or one that ends early": png[:-30],
        "a damaged PNG": png[:17] + b"\x01" + png[18:],
        "more than 67,108,864 pixels": _png(np.zeros((1, 1, 1), int), 8, 0).replace(
            b"IHDR\x00\x00\x00\x01\x00\x00\x00\x01", b"IHDR\x00\x00\xff\xff\x00\x00\xff\xff"
        ),
        "transparent": encoded(clear, "WEBP", lossless=True),
        "cannot decode": b"GIF89a" + bytes(20),
    }
    for text, content in refused.items():
        found = browser.decoded(content, 3)
        # A changed header has another checksum.
        wanted = "a damaged PNG" if text.startswith("more than") else text
        assert isinstance(found, str) and wanted in found, (text, found)


def _check_images(browser: _Browser, folder: pathlib.Path, channels: int) -> None:
    """40 files give the pixels, integers and logits of Python."""
    _, _, artifact = networks.build(
        architectures.small((1, 1), 8), 24, channels=channels, augment="resized_crop"
    )
    encoded = encoded_images_test._encoded("L" if channels == 1 else "RGB")
    decoded = [decoding.from_bytes(content, channels) for content in encoded]
    pixels = artifact.preprocessing.stack(decoded)
    page = folder / f"images {channels}"
    _export(page, artifact, pixels)
    browser.open((page / "index.html").as_uri())
    logits = reference.Reference(artifact, DEFAULT).traces(pixels)[1].logits
    for number, content in enumerate(encoded):
        found = browser.run(
            """ftbnnImages.decode(Uint8Array.from(atob(a[0]), (c) => c.charCodeAt(0)), a[1]).then(
              async (image) => [[...await net.preprocess(image)], [...net.predict()]])""",
            base64.b64encode(content).decode(),
            channels,
        )
        assert not isinstance(found, str), found
        assert np.array_equal(found[0], pixels[number].ravel()), f"image {number}: pixels differ"
        assert np.array_equal(np.float32(found[1]), logits[number]), f"image {number}: logits differ"
    assert browser.golden().startswith("✓"), browser.text("verdict")
    browser.check_silent()
    print(f"40 images of {channels} channels: equal pixels, {browser.text('verdict')}", flush=True)


def _check_huge(browser: _Browser) -> None:
    """8000 x 8000 pixels, twice, without memory that stays."""
    browser.choose("file")
    ramp = np.add.outer(np.arange(8000), np.arange(8000)) // 63 % 256
    image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}))
        browser.drop(f"huge.{kind}", buffer.getvalue())
        assert browser.run("document.getElementById('alert').hidden"), browser.text("alert")
        found = browser.run(
            "[...new Uint8Array(net.exports.memory.buffer, net.exports.pixels(), about.rule.size ** 2)]"
        )
        assert len(set(found)) > 4, (kind, found)
    assert browser.run("net.exports.memory.buffer.byteLength") < 2**26


def _check_page(browser: _Browser, url: str) -> None:
    """What a visitor does, one thing after the other."""
    browser.open(url)
    assert browser.run("document.title").endswith("1-bit network")
    browser.draw()
    assert browser.run("document.getElementById('bars').children.length") == 5
    assert browser.text("time")[0].isdigit() and browser.text("best")[0] != _NOTHING
    assert browser.golden().startswith("✓"), browser.text("verdict")
    cells = browser.run("[...document.querySelectorAll('#rows td')].map((cell) => cell.textContent)")
    assert cells and all(len(set(cell.split(" of "))) == 1 for cell in cells), cells
    browser.show("light")
    browser.click("clear")
    assert browser.text("best") == _NOTHING

    # The keyboard draws what a mouse would.
    browser.run("document.getElementById('paper').focus()")
    ActionChains(browser.driver).send_keys(" ", *[Keys.ARROW_DOWN] * 9, " ").perform()
    browser.wait("document.getElementById('bars').children.length")
    ActionChains(browser.driver).send_keys(Keys.ESCAPE).perform()
    assert browser.text("best") == _NOTHING

    digit = np.round(datasets.load_digits().images[4] * (255 / 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(digit).save(buffer, "PNG")
    for event in ("drop", "paste"):
        browser.run("showNothing()")
        browser.drop("four.png", buffer.getvalue(), event)
        assert browser.text("best").startswith("4"), browser.text("best")
        assert browser.text("file-name").startswith("four.png")
    for name, content, message in (
        ("letter.txt", b"Dear Sir", "letter.txt: no image in a format of"),
        ("broken.png", buffer.getvalue()[:40], "broken.png: "),
        ("text", None, "holds no file"),
    ):
        browser.drop(name, content)
        assert message in browser.text("alert"), browser.text("alert")
    browser.drop("four.png", buffer.getvalue())
    assert browser.run("document.getElementById('alert').hidden")

    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(buffer.getvalue())
        file.flush()
        browser.run("showNothing()")
        browser.driver.find_element("id", "chosen").send_keys(file.name)
        browser.wait("document.getElementById('best').textContent.startsWith('4')")

    browser.choose("camera")
    browser.click("start")
    browser.wait("document.getElementById('video').videoWidth")
    browser.wait("document.getElementById('bars').children.length")
    browser.choose("draw")
    assert browser.run("stream === null")
    browser.run(
        """navigator.mediaDevices.getUserMedia = async () => {
          throw new DOMException("", "NotAllowedError");
        }"""
    )
    browser.choose("camera")
    browser.click("start")
    browser.wait("document.getElementById('alert').textContent.includes('not allowed')")
    browser.check_silent()


def _check_looks(browser: _Browser, url: str) -> None:
    """Dark, and on a phone."""
    browser.open(url, width=320, height=640, dark=True)
    browser.draw()
    browser.golden()
    assert browser.run("document.documentElement.scrollWidth") <= 320
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert all(int(x) < 64 for x in colour.removeprefix("rgb(").rstrip(")").split(",")), colour
    browser.show("phone dark")
    browser.open(url, dark=True)
    browser.draw()
    browser.show("dark")
    browser.check_silent()


def _check_others(browser: _Browser, folder: pathlib.Path) -> None:
    """Networks that take no images, and golden vectors that are not the program's."""
    network = next(n for n in contract_networks.NETWORKS if n.name == "plain JAX")
    images = network.images()
    _export(folder / "numbers", ftbnn_jax.pack(*network.build(), images, **network.options), images)
    browser.open((folder / "numbers" / "index.html").as_uri())
    assert "only the golden vectors" in browser.text("alert")
    assert browser.run("document.getElementById('input').hidden")
    assert browser.golden().startswith("✓")
    browser.check_silent()
    browser.show("numbers")

    shutil.copytree(folder / "digits", folder / "changed")
    golden = bytearray((folder / "changed" / "golden.bin").read_bytes())
    golden[-30] ^= 1
    (folder / "changed" / "golden.bin").write_bytes(golden)
    with _served(folder) as url:
        browser.open(f"{url}changed/")
        assert browser.golden().startswith("✗")


def main(path: str, screenshots: pathlib.Path | None) -> None:
    """Checks everything."""
    digits = np.round(datasets.load_digits().images[:8, ..., None] * (255 / 16)).astype(np.uint8)
    browser = _Browser(screenshots)
    with contextlib.closing(_Closing(browser)), tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        _export(folder / "digits", artifact_lib.load(path), digits)
        with _served(folder) as url:
            for address in (f"{url}digits/", (folder / "digits" / "index.html").as_uri()):
                _check_page(browser, address)
                print(f"{address}: drawn, dropped, pasted, chosen, filmed", flush=True)
            _check_looks(browser, f"{url}digits/")
            browser.open(f"{url}digits/?plain")
            assert browser.golden().startswith("✓") and "portable" in browser.text("numbers")
            browser.open(f"{url}digits/")
            _check_huge(browser)
        print("phone, dark, plain, huge", flush=True)
        _check_decoding(browser)
        print("PNGs and JPEGs of all kinds are decoded as in Python", flush=True)
        for channels in (1, 3):
            _check_images(browser, folder, channels)
        browser.draw()
        browser.show("colour")
        _check_others(browser, folder)


class _Closing:
    """Ends the browser."""

    def __init__(self, browser: _Browser):
        self._browser = browser

    def close(self) -> None:
        self._browser.driver.quit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("artifact", nargs="?", default=str(_ROOT / "runs/quickstart/model.safetensors"))
    parser.add_argument("--screenshots", type=pathlib.Path)
    flags = parser.parse_args()
    if flags.screenshots:
        flags.screenshots.mkdir(parents=True, exist_ok=True)
    main(flags.artifact, flags.screenshots)
