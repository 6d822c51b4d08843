/* Pictures of the signs that binary layers read; page.js has what is used of the page. */
"use strict";

const MOST_TILES = 64;

/* A colour of the style sheet as one number, as an image's memory holds it. */
function colour(name) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const bytes = [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
  return new Uint32Array(Uint8Array.of(...bytes, 255).buffer)[0];
}

let colours = null, showing = 0;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours = null;
  if (!at("layers").hidden) showLayers();
});

/* Images that follow each other faster get one picture of their signs, that of the last. */
function showLayers() {
  showing ||= setTimeout(() => {
    showing = 0;
    net.predictWithSigns(showSigns);
  }, 120);
}

/* Where the bit of each channel lies among the words of a position: groups begin with a new word. */
function places(layer) {
  let word = 0;
  return layer.groups.flatMap((count) => {
    const first = word;
    word += Math.ceil(count / 32);
    return Array.from({ length: count }, (_, i) => [first + (i >> 5), i & 31]);
  });
}

function prepareSigns() {
  at("signs").replaceChildren(
    ...about.layers.map((layer) => {
      const channels = places(layer), tiles = Math.min(channels.length, MOST_TILES);
      /* About as wide as two thirds of it are high; a line between tiles. */
      const across = Math.min(tiles, Math.ceil(Math.sqrt((1.6 * tiles * layer.height) / layer.width)));
      const canvas = made("canvas", { width: across * (layer.width + 1) - 1,
        height: Math.ceil(tiles / across) * (layer.height + 1) - 1 });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Signs that ${layer.name} reads`);
      Object.assign(layer, { canvas, across, places: channels.slice(0, tiles) });
      const some = tiles < channels.length ? `, ${tiles} of ${channels.length} channels` : "";
      return made("figure", {}, canvas, made("figcaption", {}, made("b", { textContent: layer.name }),
        `${layer.height}×${layer.width}×${channels.length} ${layer.form}${some}`));
    }),
  );
}

function showSigns(block, positive, nonzero) {
  colours ||= { positive: colour("--accent"), zero: colour("--zero"), negative: colour("--negative") };
  const layer = about.layers[block], { canvas, width, height, words } = layer;
  const image = new ImageData(canvas.width, canvas.height), found = new Uint32Array(image.data.buffer);
  const none = layer.form === "and" ? colours.zero : colours.negative;
  layer.places.forEach(([word, bit], tile) => {
    const left = (tile % layer.across) * (width + 1), top = Math.floor(tile / layer.across) * (height + 1);
    for (let y = 0, i = word; y < height; y++) {
      let to = (top + y) * canvas.width + left;
      for (let x = 0; x < width; x++, i += words) {
        const isZero = nonzero && !((nonzero[i] >>> bit) & 1);
        found[to++] = isZero ? colours.zero : (positive[i] >>> bit) & 1 ? colours.positive : none;
      }
    }
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}
