/* From the bytes of an image file to pixels, those that ftbnn_jax.ops.decoding gives. */
"use strict";

/* What is told to whoever chose the file. */
class FtbnnImageError extends Error {}

const FTBNN_MOST_PIXELS = 2 ** 26;
const FTBNN_MOST_SIDE = 16384;

/* Pixels that are read from a canvas at once. */
const FTBNN_BAND = 2 ** 21;

const ftbnnImages = {
  /* Decodes a file: {width, height, pixels}, the latter a Uint8Array [height][width][channels]. */
  async decode(bytes, channels) {
    const starts = (text, at = 0) => [...text].every((c, i) => bytes[at + i] === c.charCodeAt(0));
    if (starts("\x89PNG\r\n\x1a\n")) return ftbnnImages.decodePng(bytes, channels);
    const image = { type: "", parts: [bytes] };
    if (starts("\xff\xd8\xff")) Object.assign(image, { type: "image/jpeg", parts: ftbnnImages.plainJpeg(bytes) });
    else if (starts("GIF8")) image.type = "image/gif";
    else if (starts("BM")) image.type = "image/bmp";
    else if (starts("RIFF") && starts("WEBP", 8)) image.type = "image/webp";
    else throw new FtbnnImageError("no image in a format of JPEG, PNG, GIF, BMP, WEBP");
    /* Pixels as they are stored: no colour profile, no turning, nothing multiplied by transparency. */
    const asStored = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "none" };
    let bitmap;
    try {
      bitmap = await createImageBitmap(new Blob(image.parts, { type: image.type }), asStored);
    } catch (error) {
      throw new FtbnnImageError("this browser cannot decode it; it may be damaged");
    }
    try {
      return ftbnnImages.fromDrawable(bitmap, bitmap.width, bitmap.height, channels);
    } finally {
      bitmap.close();
    }
  },

  checkSize(width, height) {
    if (!width || !height) throw new FtbnnImageError("an image without a pixel");
    if (width * height > FTBNN_MOST_PIXELS) {
      throw new FtbnnImageError(`an image of more than ${FTBNN_MOST_PIXELS.toLocaleString("en")} pixels`);
    }
    if (Math.max(width, height) > FTBNN_MOST_SIDE) {
      throw new FtbnnImageError(`a side of more than ${FTBNN_MOST_SIDE.toLocaleString("en")} pixels`);
    }
  },

  /* Colours become gray as ITU-R BT.601 weighs them, in 65536ths. */
  gray: (r, g, b) => (19595 * r + 38470 * g + 7471 * b + 32768) >> 16,

  /* Pixels of whatever a canvas can draw: a bitmap, a canvas, a video. */
  fromDrawable(drawable, width, height, channels) {
    ftbnnImages.checkSize(width, height);
    const rows = Math.min(height, Math.max(1, Math.floor(FTBNN_BAND / width)));
    const canvas = Object.assign(document.createElement("canvas"), { width, height: rows });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const pixels = new Uint8Array(width * height * channels);
    let to = 0;
    for (let top = 0; top < height; top += rows) {
      context.clearRect(0, 0, width, rows);
      context.drawImage(drawable, 0, -top);
      const count = 4 * width * Math.min(rows, height - top);
      const { data } = context.getImageData(0, 0, width, rows);
      for (let i = 0; i < count; i += 4) {
        if (data[i + 3] !== 255) {
          throw new FtbnnImageError("transparent pixels can be read exactly from a PNG alone; save it as one");
        }
        if (channels === 1) pixels[to++] = ftbnnImages.gray(data[i], data[i + 1], data[i + 2]);
        else for (let c = 0; c < 3; c++) pixels[to++] = data[i + c];
      }
    }
    return { width, height, pixels };
  },

  /* Returns the parts of a JPEG without what would turn it (EXIF) or change its colours (a profile). */
  plainJpeg(bytes) {
    const parts = [bytes.subarray(0, 2)];
    const early = () => new FtbnnImageError("the file ends early");
    for (let at = 2; ; ) {
      const start = at;
      while (bytes[at] === 0xff) at++;
      const marker = bytes[at];
      if (at + 2 >= bytes.length) throw early();
      if (at === start) throw new FtbnnImageError("a damaged JPEG");
      const end = at + 1 + ((bytes[at + 1] << 8) | bytes[at + 2]);
      if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
        const [precision, h1, h0, w1, w0, components] = bytes.subarray(at + 3, at + 9);
        ftbnnImages.checkSize((w1 << 8) | w0, (h1 << 8) | h0);
        if (precision !== 8) throw new FtbnnImageError(`a JPEG of ${precision} bits; save it with 8`);
        if (components === 4) throw new FtbnnImageError("a JPEG in CMYK; save it in RGB");
      }
      if (marker === 0xda) {
        const rest = bytes.subarray(start);
        if (!rest.some((byte, i) => byte === 0xff && rest[i + 1] === 0xd9)) throw early();
        return [...parts, rest];
      }
      if (marker !== 0xe1 && marker !== 0xe2) parts.push(bytes.subarray(start, end));
      at = end;
    }
  },

  /* Decodes a PNG, whatever browsers make of its colour profile and its transparency, which is left out; of
   * 16 bits, the upper 8 count. */
  async decodePng(bytes, channels) {
    const { header, palette, data } = ftbnnImages.pngChunks(bytes);
    const { width, height, depth, type, interlaced } = header;
    ftbnnImages.checkSize(width, height);
    const samples = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[type];
    const pixels = new Uint8Array(width * height * channels);
    const inflated = new FtbnnInflated(data);
    /* First column and row, and the distance of the next, of each pass. */
    const passes = interlaced
      ? [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]]
      : [[0, 0, 1, 1]];
    for (const [left, top, across, down] of passes) {
      const columns = Math.ceil((width - left) / across);
      if (columns <= 0) continue;
      const length = Math.ceil((columns * samples * depth) / 8), distance = Math.max(1, (samples * depth) >> 3);
      let above = new Uint8Array(length);
      for (let y = top; y < height; y += down) {
        const [filter] = inflated.has(1) ? inflated.take(1) : await inflated.wait(1);
        const row = (inflated.has(length) ? inflated.take(length) : await inflated.wait(length)).slice();
        ftbnnImages.unfilter(filter, row, above, distance);
        ftbnnImages.pngRow(row, { depth, type, samples, palette, columns }, channels, pixels,
          (y * width + left) * channels, across * channels);
        above = row;
      }
    }
    inflated.close();
    return { width, height, pixels };
  },

  /* Returns the header, the palette and the compressed data of a PNG. */
  pngChunks(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const found = { header: null, palette: new Uint8Array(768), data: [] };
    for (let at = 8; at + 8 <= bytes.length; ) {
      const length = view.getUint32(at), body = bytes.subarray(at + 8, at + 8 + length);
      const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
      const whole = at + 12 + length <= bytes.length;
      at += 12 + length;
      if (name === "IEND") break;
      if (name === "IDAT") found.data.push(body);
      if (name !== "IHDR" && name !== "PLTE") continue;
      if (!whole) throw new FtbnnImageError("the file ends early");
      if (ftbnnImages.crc(bytes.subarray(at - length - 8, at - 4)) !== view.getUint32(at - 4)) {
        throw new FtbnnImageError("a damaged PNG");
      }
      if (name === "PLTE") found.palette.set(body.subarray(0, 768));
      else if (length === 13) found.header = ftbnnImages.pngHeader(view, at - length - 4);
    }
    if (!found.header) throw new FtbnnImageError("a damaged PNG");
    return found;
  },

  pngHeader(view, at) {
    const [depth, type, , , interlaced] = [8, 9, 10, 11, 12].map((i) => view.getUint8(at + i));
    const depths = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] }[type] || [];
    if (!depths.includes(depth) || interlaced > 1) throw new FtbnnImageError("a damaged PNG");
    return { width: view.getUint32(at), height: view.getUint32(at + 4), depth, type, interlaced };
  },

  crc(bytes) {
    let crc = 0xffffffff;
    for (const byte of bytes) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc >>> 0;
  },

  /* Undoes a row's filter in place: what is left, above, and above on the left is `distance` bytes away. */
  unfilter(filter, row, above, distance) {
    const n = row.length;
    if (filter === 1) {
      for (let i = distance; i < n; i++) row[i] += row[i - distance];
    } else if (filter === 2) {
      for (let i = 0; i < n; i++) row[i] += above[i];
    } else if (filter === 3) {
      for (let i = 0; i < n; i++) row[i] += ((i < distance ? 0 : row[i - distance]) + above[i]) >> 1;
    } else if (filter === 4) {
      for (let i = 0; i < n; i++) {
        const a = i < distance ? 0 : row[i - distance], b = above[i], c = i < distance ? 0 : above[i - distance];
        const toA = Math.abs(b - c), toB = Math.abs(a - c), toC = Math.abs(a + b - 2 * c);
        row[i] += toA <= toB && toA <= toC ? a : toB <= toC ? b : c;
      }
    } else if (filter !== 0) {
      throw new FtbnnImageError("a damaged PNG");
    }
  },

  /* Writes a row's pixels, the first to pixels[to], each `step` behind the one before. */
  pngRow(row, { depth, type, samples, palette, columns }, channels, pixels, to, step) {
    const bytes = depth >> 3, most = (1 << depth) - 1;
    for (let x = 0; x < columns; x++, to += step) {
      let r, g, b;
      if (type === 2 || type === 6) {
        const at = x * samples * bytes;
        [r, g, b] = [row[at], row[at + bytes], row[at + 2 * bytes]];
      } else {
        const bit = x * depth;
        const value = bytes ? row[x * samples * bytes] : (row[bit >> 3] >> (8 - depth - (bit & 7))) & most;
        if (type === 3) [r, g, b] = [palette[3 * value], palette[3 * value + 1], palette[3 * value + 2]];
        else r = g = b = bytes ? value : (value * 255) / most;
      }
      if (channels === 1) {
        pixels[to] = ftbnnImages.gray(r, g, b);
      } else {
        pixels[to] = r;
        pixels[to + 1] = g;
        pixels[to + 2] = b;
      }
    }
  },
};

/* Bytes that were compressed with zlib, in order. */
class FtbnnInflated {
  constructor(parts) {
    this._reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    this._held = new Uint8Array(0);
    this._at = 0;
  }

  has(count) {
    return this._held.length - this._at >= count;
  }

  take(count) {
    this._at += count;
    return this._held.subarray(this._at - count, this._at);
  }

  async wait(count) {
    while (!this.has(count)) {
      let next;
      try {
        next = await this._reader.read();
      } catch (error) {
        throw new FtbnnImageError("a damaged PNG, or one that ends early");
      }
      if (next.done) throw new FtbnnImageError("the file ends early");
      const left = this._held.subarray(this._at);
      const joined = new Uint8Array(left.length + next.value.length);
      joined.set(left);
      joined.set(next.value, left.length);
      [this._held, this._at] = [joined, 0];
    }
    return this.take(count);
  }

  /* What comes behind the last row matters to nobody. */
  close() {
    this._reader.cancel().catch(() => {});
  }
}

if (typeof module === "object") module.exports = { ftbnnImages, FtbnnImageError };
