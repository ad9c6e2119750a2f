"use strict";
const byId = (id) => document.getElementById(id);
const read = (id) => byId(id) ? JSON.parse(byId(id).textContent) : null;
const tip = byId("tip");
function say(event, text) {
  tip.textContent = text;
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, window.innerWidth - box.width - 4)) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + 14, window.innerHeight - box.height - 4)) + "px";
}
function hush() { tip.style.display = "none"; if (byId("cursor")) byId("cursor").style.display = "none"; }

const bases = read("bases-data");
if (bases) {
  const frame = byId("figure"), picture = frame.querySelector("svg"), cursor = byId("cursor");
  frame.addEventListener("mousemove", (event) => {
    const box = picture.getBoundingClientRect(), size = bases.texts.length;
    const share = (event.clientX - box.left) / box.width;
    const cell = (bases.right - bases.left) / bases.columns;
    const at = Math.floor((share - bases.left) / cell);
    if (Math.min(at, size - 1) !== Math.max(at, 0)) { hush(); return; }
    cursor.style.left = (bases.left + at * cell) * box.width + "px";
    cursor.style.width = cell * box.width + "px";
    cursor.style.height = box.height + "px";
    cursor.style.display = "block";
    say(event, bases.texts[at]);
  });
  frame.addEventListener("mouseleave", hush);
}

const stored = read("map-data");
if (stored) {
  const size = stored.bases.length, canvas = byId("map"), pen = canvas.getContext("2d");
  const bytes = Uint8Array.from(atob(stored.values), (c) => c.charCodeAt(0));
  const values = new Uint16Array(bytes.buffer), missing = 65535;
  const value = (i, j) => values[i * size + j] === missing ? NaN : values[i * size + j] / 65534 * stored.highest;
  const stops = stored.colours, margin = 64, side = 720;
  const picture = document.createElement("canvas");
  picture.width = picture.height = size;
  let view = { i: 0, j: 0, size: size }, drag = null;
  function paint() {
    const image = pen.createImageData(size, size), top = Number(byId("top").value);
    values.forEach((v, at) => {
      const share = Math.min(1, v / 65534 * stored.highest / top);
      const colour = v === missing ? stored.missing : stops[Math.round(share * (stops.length - 1))];
      image.data.set([colour[0], colour[1], colour[2], 255], 4 * at);
    });
    picture.getContext("2d").putImageData(image, 0, 0);
    byId("shown").textContent = top.toPrecision(3);
    draw();
  }
  function draw() {
    const cell = side / view.size;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, view.j, view.i, view.size, view.size, margin, margin, side, side);
    pen.fillStyle = "#1d2129";
    const letters = cell - 8 > 0, tens = Math.pow(10, Math.floor(Math.log10(view.size / 8)));
    const every = letters ? 1 : tens * [1, 2, 5, 10].find((times) => times * tens - view.size / 12 > 0);
    const write = (first, put) => {
      for (let at = 0; view.size - at > 0; at += 1) {
        const position = stored.first + stored.step * (first + at);
        const text = letters ? stored.bases[first + at] : position.toLocaleString("en");
        if (position % every === 0) put(text, margin + (at + 0.5) * cell);
      }
    };
    write(view.j, (text, middle) => label(text, middle, margin - 6, "center"));
    write(view.i, (text, middle) => label(text, margin - 6, middle + 4, "right"));
    const range = (first) => place(first) + " to " + place(first + view.size - 1);
    label("affected base j: " + range(view.j), margin + side / 2, 30, "center");
    pen.save(); pen.translate(12, margin + side / 2); pen.rotate(-Math.PI / 2);
    label("mutated base i: " + range(view.i), 0, 0, "center");
    pen.restore();
    if (byId("runs").checked) stored.runs.forEach((run) => outline(run, cell));
    if (drag) {
      pen.strokeStyle = "#0072B2";
      pen.strokeRect(drag.x, drag.y, drag.to, drag.to);
    }
  }
  function label(text, x, y, align) { pen.font = "11px sans-serif"; pen.textAlign = align; pen.fillText(text, x, y); }
  function place(at) { return (stored.first + at * stored.step).toLocaleString("en"); }
  function outline(run, cell) {
    pen.save(); pen.beginPath(); pen.rect(margin, margin, side, side); pen.clip();
    pen.strokeStyle = "#0072B2"; pen.lineWidth = 1.5;
    [[run[0], run[1], run[2], run[3]], [run[2], run[3], run[0], run[1]]].forEach((box) => pen.strokeRect(
      margin + (box[2] - view.j) * cell, margin + (box[0] - view.i) * cell,
      (box[3] - box[2]) * cell, (box[1] - box[0]) * cell));
    pen.restore();
  }
  function cellAt(event) {
    const box = canvas.getBoundingClientRect(), cell = side / view.size;
    const x = event.clientX - box.left, y = event.clientY - box.top;
    const j = Math.floor((x - margin) / cell), i = Math.floor((y - margin) / cell);
    const inside = [i, j].every((at) => at === Math.min(Math.max(at, 0), view.size - 1));
    return { x: x, y: y, i: i + view.i, j: j + view.j, inside: inside };
  }
  canvas.addEventListener("mousemove", (event) => {
    const at = cellAt(event);
    if (drag) { drag.to = Math.max(0, Math.max(at.x - drag.x, at.y - drag.y)); draw(); }
    if (!at.inside) { hush(); return; }
    const here = value(at.i, at.j), back = value(at.j, at.i);
    const words = (v) => Number.isNaN(v) ? "no value" : v.toPrecision(4);
    say(event, "i " + place(at.i) + " " + stored.bases[at.i] + " mutated\nj " + place(at.j) + " " + stored.bases[at.j] +
      " affected\nvalue  " + words(here) + "\n(j, i) " + words(back));
  });
  canvas.addEventListener("mouseleave", () => { drag = null; hush(); draw(); });
  canvas.addEventListener("mousedown", (event) => {
    const at = cellAt(event);
    if (at.inside) drag = { x: at.x, y: at.y, i: at.i, j: at.j, to: 0 };
  });
  canvas.addEventListener("mouseup", () => {
    const cells = drag ? Math.ceil(drag.to / side * view.size) : 0;
    if (cells - 3 > 0) {
      const fits = Math.min(cells, size);
      view = { i: Math.min(drag.i, size - fits), j: Math.min(drag.j, size - fits), size: fits };
    }
    drag = null;
    draw();
  });
  canvas.addEventListener("dblclick", () => { view = { i: 0, j: 0, size: size }; draw(); });
  byId("top").addEventListener("input", paint);
  byId("runs").addEventListener("change", draw);
  paint();
}
