/* A network's program in WebAssembly, in a page or in node. */
"use strict";

/* Images of more bytes than this get memory of their own, which goes when they are done: that of a module
 * never shrinks. */
const FTBNN_KEPT_BYTES = 2 ** 25;
const FTBNN_GOLDEN_HEAD = 24;

class FtbnnNet {
  /* module: a WebAssembly.Module of the program; about: what export knows of it. */
  static async load(module, about) {
    const net = new FtbnnNet();
    net.about = about;
    net.module = module;
    net.onSigns = () => {};
    net.exports = await net._instance();
    if (net.exports.init()) throw new Error("the program does not start");
    net.kernels = net._text(net.exports.kernels());
    return net;
  }

  async _instance() {
    const imports = { page: { signs: (block) => this.onSigns(block) } };
    return (await WebAssembly.instantiate(this.module, imports)).exports;
  }

  _text(at) {
    const bytes = new Uint8Array(this.exports.memory.buffer, at);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  static _copied(exports, bytes) {
    const at = exports.room(bytes.length) >>> 0;
    if (!at) throw new Error("too little memory");
    new Uint8Array(exports.memory.buffer, at, bytes.length).set(bytes);
    return at;
  }

  /* Makes the network's pixels of an image {width, height, pixels}: returns them, [size][size][channels]. */
  async preprocess(image) {
    const own = this.exports;
    const other = image.pixels.length > FTBNN_KEPT_BYTES ? await this._instance() : own;
    if (other.preprocess(FtbnnNet._copied(other, image.pixels), image.width, image.height)) {
      throw new Error("no image that the network takes");
    }
    const count = this.about.shape.reduce((a, b) => a * b);
    const found = new Uint8Array(other.memory.buffer, other.pixels(), count).slice();
    if (other !== own) new Uint8Array(own.memory.buffer, own.pixels(), count).set(found);
    return found;
  }

  /* Returns the logits of the pixels that are there, as real numbers. */
  predict() {
    this.saturated = this.exports.predict() === 1;
    return this._logits();
  }

  /* As predict; onSigns(i, words, words or null) gets what each binary layer reads: positive, non-zero. */
  predictWithSigns(onSigns) {
    this.onSigns = (block) => {
      const layer = this.about.layers[block];
      const words = layer.height * layer.width * layer.words;
      const start = this.exports.signs() + 4 * layer.signs;
      const plane = (n) => new Uint32Array(this.exports.memory.buffer, start + 4 * n * (words + layer.words), words);
      onSigns(block, plane(0).slice(), layer.form === "ternary" ? plane(1).slice() : null);
    };
    this.saturated = this.exports.predict_with_signs() === 1;
    this.onSigns = () => {};
    return this._logits();
  }

  _logits() {
    const { fraction_bits: bits, results } = this.about;
    const numbers = bits === null ? Float32Array : Int32Array;
    const found = new numbers(this.exports.memory.buffer, this.exports.logits(), results);
    return Float64Array.from(found, (logit) => (bits === null ? logit : logit / 2 ** bits));
  }

  /* Yields what has been compared after each image of golden vectors, the bytes of golden.bin. */
  *check(golden) {
    const head = new DataView(golden.buffer, golden.byteOffset, FTBNN_GOLDEN_HEAD);
    const images = head.getUint32(20, true);
    const each = (golden.length - FTBNN_GOLDEN_HEAD) / images;
    const record = this.about.record_bytes;
    if (head.getUint32(0, true) !== 0x47425446 || each !== record) throw new Error("golden vectors of another network");
    if (this.exports.init()) throw new Error("the program does not start");
    const found = { images: 0, of: images, classes: [], logits: 0, logits_differing: 0, blocks: [] };
    const start = FtbnnNet._copied(this.exports, golden) + FTBNN_GOLDEN_HEAD;
    for (let image = 0; image < images; image++) {
      found.logits_differing += this.exports.check(start + image * each);
      found.logits += this.about.results;
      const logits = this._logits();
      found.classes.push(logits.indexOf(Math.max(...logits)));
      found.images++;
      const counts = new Uint32Array(this.exports.memory.buffer, this.exports.blocks(), 3 * this.about.layers.length);
      found.blocks = this.about.layers.map((layer, i) => ({
        name: layer.name,
        compared: counts[3 * i],
        differing: counts[3 * i + 1],
        end_to_end: counts[3 * i + 2],
      }));
      yield found;
    }
  }

  /* The checksum over all integers and logits since check began, as test_model prints it. */
  checksum() {
    const words = new Uint32Array(this.exports.memory.buffer, this.exports.checksum(), 2);
    return [words[1], words[0]].map((word) => word.toString(16).padStart(8, "0")).join("");
  }
}

if (typeof module === "object") module.exports = { FtbnnNet };
