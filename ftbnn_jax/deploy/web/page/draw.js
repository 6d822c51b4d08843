/* A drawing area for fingers, pens, the mouse and the keyboard. */
"use strict";

class FtbnnPaper {
  /* canvas: square; changed: called after every stroke. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.width = canvas.width / 11;
    this.colours = ["#000000", "#ffffff"];
    this.lines = [];
    this.pens = new Map();
    this.keyboard = { x: canvas.width / 2, y: canvas.height / 2, line: null, used: false };
    canvas.addEventListener("pointerdown", (event) => this._down(event));
    canvas.addEventListener("pointermove", (event) => this._move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.pens.delete(event.pointerId));
    }
    canvas.addEventListener("keydown", (event) => this._key(event));
    canvas.addEventListener("blur", () => this._showPen(false));
  }

  setColours(paper, ink) {
    this.colours = [paper, ink];
    this._show();
  }

  clear() {
    this.lines = [];
    this._show();
  }

  get empty() {
    return !this.lines.length;
  }

  /* Returns a canvas with the drawing; with `fill`, in the middle and as large as that share of a side. */
  image(fill) {
    const canvas = document.createElement("canvas"), side = this.canvas.width;
    canvas.width = canvas.height = side;
    let scale = 1, move = [0, 0];
    if (fill) {
      const points = this.lines.flatMap((line) => line.points), axes = [0, 1].map((i) => points.map((point) => point[i]));
      const low = axes.map((axis) => Math.min(...axis)), high = axes.map((axis) => Math.max(...axis));
      const longest = Math.max(high[0] - low[0], high[1] - low[1]);
      /* A dot stays one, and nothing becomes more than three times as large. */
      scale = Math.min(3, (fill * side - this.width) / Math.max(longest, 1));
      move = low.map((from, i) => side / 2 - (scale * (from + high[i])) / 2);
    }
    this._paint(canvas, (point) => point.map((x, i) => scale * x + move[i]));
    return canvas;
  }

  _show() {
    this._paint(this.canvas, (point) => point);
    this._paintPen();
    this.changed();
  }

  _showPen(used) {
    if (this.keyboard.used === used) return;
    this.keyboard.used = used;
    this._paint(this.canvas, (point) => point);
    this._paintPen();
  }

  /* Where the keyboard's pen is, and whether it is down. */
  _paintPen() {
    const { x, y, line, used } = this.keyboard;
    if (!used) return;
    const context = this.canvas.getContext("2d");
    context.beginPath();
    context.arc(x, y, this.width / 2 + 3, 0, 2 * Math.PI);
    Object.assign(context, { strokeStyle: line ? "#e0313f" : "#8a90a8", lineWidth: 3 });
    context.stroke();
  }

  _paint(canvas, placed) {
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = this.colours[0];
    context.fillRect(0, 0, canvas.width, canvas.height);
    Object.assign(context, { lineWidth: this.width, lineCap: "round", lineJoin: "round" });
    for (const { ink, points } of this.lines) {
      context.strokeStyle = ink || this.colours[1];
      context.beginPath();
      context.moveTo(...placed(points[0]));
      for (const point of points) context.lineTo(...placed(point));
      context.stroke();
    }
  }

  /* Begins a line and returns it. Of one without a colour of its own, the pen's counts. */
  _begin(point) {
    const line = { ink: this.ink, points: [point] };
    this.lines.push(line);
    this._show();
    return line;
  }

  _go(line, point) {
    line.points.push(point);
    this._show();
  }

  _place(event) {
    const box = this.canvas.getBoundingClientRect(), scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  _down(event) {
    if (event.button) return;
    this.keyboard.used = false;
    this.canvas.setPointerCapture(event.pointerId);
    this.pens.set(event.pointerId, this._begin(this._place(event)));
  }

  _move(event) {
    const line = this.pens.get(event.pointerId);
    if (line) this._go(line, this._place(event));
  }

  _key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const pen = this.keyboard;
    if (event.key === "Escape") {
      pen.line = null;
      this.clear();
    } else if (event.key === " ") {
      pen.line = pen.line ? null : this._begin([pen.x, pen.y]);
    } else if (steps) {
      const inside = (at) => Math.min(this.canvas.width, Math.max(0, at));
      pen.x = inside(pen.x + (steps[0] * this.canvas.width) / 28);
      pen.y = inside(pen.y + (steps[1] * this.canvas.height) / 28);
      if (pen.line) this._go(pen.line, [pen.x, pen.y]);
    } else {
      return;
    }
    event.preventDefault();
    pen.used = false;
    this._showPen(true);
  }
}
