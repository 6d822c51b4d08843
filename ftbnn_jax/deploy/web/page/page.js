/* The page: from an image to what the network says of it. */
"use strict";

const TOP = 5;
const MOST_TIMES = 9;
/* Clocks of browsers are coarse: a time is of as many predictions as fit into so many milliseconds. */
const TIMED_MS = 12;

const about = FTBNN_ABOUT;
const at = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const pause = () => new Promise((resolve) => setTimeout(resolve));

let net = null, paper = null, moduleBytes = 0;
let times = [], measuring = 0;

function complain(text, kind = "bad") {
  at("alert").textContent = text;
  at("alert").classList.toggle("bad", kind === "bad");
  at("alert").hidden = !text;
}

/* From an image to the page. */

/* The newest image wins: one that comes while another is worked on replaces those that wait, and one that was
 * cleared meanwhile is not shown. */
let waiting = null, working = false, cleared = 0;

async function classify(read) {
  waiting = read;
  if (working) return;
  working = true;
  try {
    while (waiting) {
      const next = waiting, before = cleared;
      waiting = null;
      const pixels = await net.preprocess(await next());
      complain("");
      if (cleared === before) show(pixels);
    }
  } catch (error) {
    complain(error.message);
    if (!(error instanceof FtbnnImageError)) console.error(error);
  } finally {
    working = false;
  }
}

function softmax(logits) {
  const most = Math.max(...logits), powers = logits.map((logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b);
  return Array.from(powers, (power) => power / sum);
}

function show(pixels) {
  showSeen(pixels);
  const logits = net.predict();
  if (net.saturated) complain("A number left the range of fixed point on the way: the result may be wrong.");
  const shares = softmax(logits);
  const order = shares.map((_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, TOP);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  at("best").replaceChildren(about.classes[order[0]], made("small", { textContent: percent(shares[order[0]]) }));
  at("bars").replaceChildren(
    ...order.map((i) => {
      const bar = made("i");
      bar.style.transform = `scaleX(${shares[i]})`;
      return made("li", {}, made("span", { textContent: about.classes[i] }),
        made("span", { className: "share", textContent: percent(shares[i]) }),
        made("span", { className: "bar", ariaHidden: "true" }, bar));
    }),
  );
  say(`${about.classes[order[0]]}, ${percent(shares[order[0]])}`);
  measure();
  showLayers();
}

function showNothing() {
  cleared++;
  waiting = null;
  at("best").textContent = "–";
  at("bars").replaceChildren();
}

/* A screen reader hears a result when no other follows at once. */
let saying = 0;

function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => { at("said").textContent = text; }, 600);
}

function showSeen(pixels) {
  const { size, channels } = about.rule;
  const canvas = at("seen");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[channels * i + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/* Times. */

/* Takes one more time; the first few come by themselves, since programs get faster as browsers compile them. */
function measure() {
  const start = performance.now();
  let count = 0, end;
  do {
    net.predict();
    count++;
    end = performance.now();
  } while (end - start < TIMED_MS);
  times = [...times.slice(1 - MOST_TIMES), (end - start) / count];
  const median = [...times].sort((a, b) => a - b)[times.length >> 1];
  at("time").firstChild.data = `${median.toPrecision(3)} ms`;
  clearTimeout(measuring);
  if (times.length < MOST_TIMES) measuring = setTimeout(measure, 200);
}

function bytes(count) {
  const [power, unit] = count < 1e6 ? [1e3, "KB"] : [1e6, "MB"];
  return `${(count / power).toFixed(count / power < 10 ? 1 : 0)} ${unit}`;
}

function showNumbers() {
  const entries = [
    ["time", "Time of an image", "–", `median, ${net.kernels}`],
    ["packed", "Packed network", bytes(about.packed_bytes), `${bytes(about.float_bytes)} as float32 weights`],
    ["bits", "Binary weights", bytes(about.binary_bytes),
      `${(about.binary_float_bytes / about.binary_bytes).toFixed(1)} times smaller than float32`],
    ["work", "Binary multiply-adds", number(about.multiply_adds), `${about.layers.length} layers, ${about.arithmetic}`],
    ["program", "Program with its weights", bytes(moduleBytes), "WebAssembly"],
  ];
  at("numbers").replaceChildren(...entries.map(([id, name, value, small]) =>
    made("div", {}, made("dt", { textContent: name }), made("dd", { id }, value, made("small", { textContent: small })))));
  at("time").parentElement.hidden = !about.rule;
}

/* Golden vectors. */

async function check() {
  const button = at("check"), verdict = at("verdict");
  button.disabled = true;
  verdict.className = "verdict";
  verdict.textContent = "Reading the golden vectors …";
  try {
    const golden = await ftbnnRead("golden.bin");
    let found;
    for (found of net.check(golden)) {
      at("rows").replaceChildren(...found.blocks.map(row));
      at("compared").hidden = false;
      verdict.textContent = `Image ${found.images} of ${found.of} …`;
      await pause();
    }
    const sum = (key) => found.blocks.reduce((total, block) => total + block[key], 0);
    const compared = 2 * sum("compared"), wrong = sum("differing") + sum("end_to_end");
    const good = !wrong && !found.logits_differing;
    verdict.classList.add(good ? "good" : "bad");
    verdict.textContent =
      `${good ? "✓" : "✗"} ${number(compared - wrong)} of ${number(compared)} integers equal, and ` +
      `${number(found.logits - found.logits_differing)} of ${number(found.logits)} results, on ${found.of} test images.`;
  } catch (error) {
    verdict.classList.add("bad");
    verdict.textContent = error.message;
    console.error(error);
  } finally {
    button.disabled = false;
  }
}

function row(block) {
  const cell = (differing) =>
    made("td", { className: differing ? "bad" : "good",
      textContent: `${number(block.compared - differing)} of ${number(block.compared)}` });
  return made("tr", {}, made("th", { scope: "row", textContent: block.name }), cell(block.differing),
    cell(block.end_to_end));
}

/* Where images come from. */

const source = () => document.querySelector("input[name=source]:checked").value;

function choose(name) {
  document.querySelector(`input[name=source][value=${name}]`).checked = true;
  for (const panel of ["draw", "file", "camera"]) at(panel).hidden = panel !== name;
  if (name !== "camera") stopCamera();
}

function drawn() {
  if (source() !== "draw") return;
  if (paper.empty) return showNothing();
  const canvas = paper.image(at("fit").checked && about.fill);
  classify(() => ftbnnImages.fromDrawable(canvas, canvas.width, canvas.height, about.rule.channels));
}

/* Gray nets have a pen and a paper as dark as training images are, colour nets white paper and any pen. */
function setColours() {
  const { mean, channels } = about.rule, gray = channels === 1;
  const dark = gray && mean.reduce((a, b) => a + b) / mean.length < 128 !== at("swap").checked;
  paper.ink = gray ? null : at("ink").value;
  paper.setColours(...(dark ? ["#000000", "#ffffff"] : ["#ffffff", "#000000"]));
}

function takeFile(file) {
  if (!file) return complain("That holds no file: drop or paste an image.");
  choose("file");
  at("file-name").textContent = file.name ? `${file.name}, ${bytes(file.size)}` : bytes(file.size);
  classify(async () => {
    if (file.size > 2 ** 30) throw new FtbnnImageError("a file of more than 1,073,741,824 bytes");
    let content;
    try {
      content = new Uint8Array(await file.arrayBuffer());
    } catch (error) {
      throw new FtbnnImageError(`${file.name}: cannot be read; is it a folder?`);
    }
    const image = await ftbnnImages.decode(content, about.rule.channels).catch((error) => {
      throw error instanceof FtbnnImageError ? new FtbnnImageError(`${file.name}: ${error.message}`) : error;
    });
    URL.revokeObjectURL(at("shown").src);
    Object.assign(at("shown"), { src: URL.createObjectURL(file), alt: file.name, hidden: false });
    at("drop-text").hidden = true;
    return image;
  });
}

function listen() {
  document.querySelectorAll("input[name=source]").forEach((input) =>
    input.addEventListener("change", () => {
      complain("");
      choose(input.value);
      drawn();
    }));
  at("clear").addEventListener("click", () => paper.clear());
  at("swap").addEventListener("change", setColours);
  at("fit").addEventListener("change", drawn);
  at("ink").addEventListener("input", setColours);
  at("chosen").addEventListener("change", () => {
    if (at("chosen").files.length) takeFile(at("chosen").files[0]);
    at("chosen").value = "";
  });
  at("start").addEventListener("click", startCamera);
  addEventListener("paste", (event) => takeFile(event.clipboardData.files[0]));
  for (const name of ["dragenter", "dragover"]) {
    addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.add("dragging");
    });
  }
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    takeFile(event.dataTransfer.files[0]);
  });
}

async function begin() {
  at("check").disabled = true;
  try {
    const { module, bytes: length } = await ftbnnModule();
    net = await FtbnnNet.load(module, about);
    moduleBytes = length;
  } catch (error) {
    complain(`The network's program cannot be loaded: ${error.message}`);
    console.error(error);
    return;
  }
  showNumbers();
  at("check").disabled = false;
  at("check").addEventListener("click", check);
  if (!about.rule) {
    complain("This network takes numbers, not images: only the golden vectors can run here.", "note");
    return;
  }
  for (const id of ["input", "result", "layers"]) at(id).hidden = false;
  at("seen-size").textContent = `${about.rule.size}×${about.rule.size}, ${about.rule.channels === 1 ? "gray" : "colour"}`;
  at("ink-label").hidden = about.rule.channels === 1;
  at("swap-label").hidden = about.rule.channels !== 1;
  at("fit-label").hidden = !about.fill;
  prepareSigns();
  paper = new FtbnnPaper(at("paper"), drawn);
  setColours();
  listen();
}

begin();
