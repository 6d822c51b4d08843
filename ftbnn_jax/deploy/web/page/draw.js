/* A drawing area for fingers, pens, the mouse and the keyboard. */
"use strict";

class FtbnnPaper {
  /* canvas: square; changed: called after every stroke. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.width = canvas.width / 11;
    this.colours = ["#000000", "#ffffff"];
    this.pens = new Map();
    this.keyboard = { x: canvas.width / 2, y: canvas.height / 2, down: false };
    canvas.addEventListener("pointerdown", (event) => this._down(event));
    canvas.addEventListener("pointermove", (event) => this._move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.pens.delete(event.pointerId));
    }
    canvas.addEventListener("keydown", (event) => this._key(event));
  }

  setColours(paper, ink) {
    this.colours = [paper, ink];
    this.clear();
  }

  clear() {
    this.context.fillStyle = this.colours[0];
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.empty = true;
    this.changed();
  }

  _line(from, to) {
    Object.assign(this.context, { strokeStyle: this.colours[1], lineWidth: this.width, lineCap: "round" });
    this.context.beginPath();
    this.context.moveTo(...from);
    this.context.lineTo(...to);
    this.context.stroke();
    this.empty = false;
    this.changed();
  }

  _place(event) {
    const box = this.canvas.getBoundingClientRect(), scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  _down(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    const place = this._place(event);
    this.pens.set(event.pointerId, place);
    this._line(place, place);
  }

  _move(event) {
    const from = this.pens.get(event.pointerId);
    if (!from) return;
    const to = this._place(event);
    this.pens.set(event.pointerId, to);
    this._line(from, to);
  }

  _key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const pen = this.keyboard, from = [pen.x, pen.y];
    if (event.key === "Escape") this.clear();
    else if (event.key === " ") pen.down = !pen.down;
    else if (!steps) return;
    event.preventDefault();
    if (steps) {
      const inside = (at) => Math.min(this.canvas.width, Math.max(0, at));
      pen.x = inside(pen.x + (steps[0] * this.canvas.width) / 28);
      pen.y = inside(pen.y + (steps[1] * this.canvas.height) / 28);
    }
    if (pen.down && event.key !== "Escape") this._line(from, [pen.x, pen.y]);
  }
}
