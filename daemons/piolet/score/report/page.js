'use strict';
// Draws the figures of a report with values under the pointer, and zooms. Without it the page has them as pictures.
const root = document.documentElement;
const data = JSON.parse(document.getElementById('data').textContent);
const tip = document.getElementById('tip');
const view = { from: 0, to: data.seconds, at: null, drag: null };
const plots = [];
const LEFT = 44, RIGHT = 18, TOP = 20, BOTTOM = 20, MEAN_PX = 4, DRAG = 8;

const css = name => getComputedStyle(root).getPropertyValue(name).trim();
const two = number => String(Math.floor(number)).padStart(2, '0');
function clock(seconds, fine) {
  const whole = fine ? Math.round(seconds * 10) / 10 : Math.round(seconds);
  const rest = fine ? (whole % 60).toFixed(1).padStart(4, '0') : two(whole % 60);
  return whole >= 3600 ? `${Math.floor(whole / 3600)}:${two(whole / 60 % 60)}:${rest}` : `${Math.floor(whole / 60)}:${rest}`;
}
// Blue is too dark on a dark page.
const tone = colour => colour === '#0072B2' ? css('--line') : colour;
const said = value => value === null ? 'no data' : Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(1);

// The bins that lie under the pixels from x0 to x1.
function bins(plot, x0, x1) {
  const scale = (view.to - view.from) / plot.inner;
  const first = Math.floor((view.from + x0 * scale - data.origin) / data.width);
  const end = Math.ceil((view.from + x1 * scale - data.origin) / data.width);
  return [Math.max(0, first), Math.min(data.bins, Math.max(end, first + 1))];
}
function pooled(values, first, end, how) {
  let sum = 0, count = 0, least = Infinity, most = -Infinity;
  for (let i = first; i < end; i++) {
    const value = values[i];
    if (value === null || value === undefined) continue;
    sum += value; count++;
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return !count ? null : how === 'min' ? least : how === 'max' ? most : sum / count;
}
// Points of a series: one every MEAN_PX pixels, and none narrower than a bin; between two of them the mean, and beside a
// gap the value up to the edge. Series of one figure have as many, whatever their gaps.
function points(plot, values, how) {
  const perBin = data.width / (view.to - view.from) * plot.inner;
  const step = Math.max(MEAN_PX, perBin), pieces = [];
  const begin = ((data.origin - view.from) / (view.to - view.from) * plot.inner) % step;
  for (let x = perBin > MEAN_PX ? Math.min(0, begin) : 0; x < plot.inner; x += step) {
    const [first, end] = perBin > MEAN_PX ? bins(plot, x + step * .5, x + step * .5) : bins(plot, x, x + step);
    pieces.push([x, pooled(values, first, end, how)]);
  }
  const inside = x => Math.min(plot.inner, Math.max(0, x));
  const edge = (own, next) => own === null || next === null || next === undefined ? own : (own + next) / 2;
  return pieces.flatMap(([x, value], i) => [
    [inside(x), edge(value, pieces[i - 1]?.[1])], [inside(x + step / 2), value], [inside(x + step), edge(value, pieces[i + 1]?.[1])],
  ]);
}

function line(plot, values, colour, width, dash, alpha) {
  const g = plot.g;
  g.save(); g.globalAlpha = alpha; g.strokeStyle = tone(colour); g.lineWidth = width; g.setLineDash(dash); g.lineJoin = 'round';
  g.beginPath();
  let open = false;
  for (const [x, value] of points(plot, values, 'mean')) {
    if (value === null) { open = false; continue; }
    open ? g.lineTo(plot.left + x, plot.y(value)) : g.moveTo(plot.left + x, plot.y(value));
    open = true;
  }
  g.stroke(); g.restore();
}
function area(plot, low, high, colour, alpha) {
  const g = plot.g;
  g.save(); g.globalAlpha = alpha; g.fillStyle = alpha < 1 ? tone(colour) : colour;
  let run = [];
  const fill = () => {
    if (run.length > 1) {
      g.beginPath();
      run.forEach(([x, , top], i) => i ? g.lineTo(plot.left + x, plot.y(top)) : g.moveTo(plot.left + x, plot.y(top)));
      for (let i = run.length - 1; i >= 0; i--) g.lineTo(plot.left + run[i][0], plot.y(run[i][1]));
      g.fill();
    }
    run = [];
  };
  for (let i = 0; i < low.length; i++)
    low[i][1] === null || high[i][1] === null ? fill() : run.push([low[i][0], low[i][1], high[i][1]]);
  fill(); g.restore();
}

function ticks(span, most) {
  const steps = [.1, .2, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
  return steps.find(step => span / step <= most) || 86400 * Math.ceil(span / 86400 / most);
}
function frame(plot, title, top) {
  const g = plot.g, ink = css('--ink'), faint = css('--faint'), soft = css('--soft');
  g.font = `12px ${css('--font')}`; g.textBaseline = 'middle'; g.lineWidth = 1;
  g.fillStyle = ink; g.textAlign = 'left'; g.fillText(title, plot.left, 9);
  g.font = `11px ${css('--font')}`; g.fillStyle = soft; g.strokeStyle = faint;
  const rough = top / 4, power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 2.5, 5, 10].map(n => n * power).find(n => n >= rough) || power;
  g.textAlign = 'right';
  for (let value = 0; value <= top * 1.001; value += step) {
    g.beginPath(); g.moveTo(plot.left, plot.y(value)); g.lineTo(plot.left + plot.inner, plot.y(value)); g.stroke();
    g.fillText(String(Number(value.toPrecision(3))), plot.left - 5, plot.y(value));
  }
  const every = ticks(view.to - view.from, Math.max(2, plot.inner / 85));
  g.textAlign = 'center';
  for (let time = Math.ceil(view.from / every) * every; time <= view.to; time += every) {
    const x = plot.left + (time - view.from) / (view.to - view.from) * plot.inner;
    g.beginPath(); g.moveTo(x, plot.bottom); g.lineTo(x, plot.bottom + 4); g.stroke();
    const label = clock(time, every < 1), half = g.measureText(label).width / 2;
    g.fillText(label, Math.min(x, plot.left + plot.inner + RIGHT - half), plot.bottom + 12);
  }
}

class Plot {
  constructor(parent, height) {
    this.canvas = parent.appendChild(document.createElement('canvas'));
    this.g = this.canvas.getContext('2d');
    this.height = height;
    plots.push(this);
    const on = (name, act) => this.canvas.addEventListener(name, act);
    on('pointermove', event => this.move(event));
    on('pointerdown', event => {
      view.drag = { plot: this, x: this.x(event), to: this.x(event), y: this.down(event), below: this.down(event) };
    });
    on('pointerleave', () => { if (!view.drag) { view.at = null; tip.style.display = 'none'; paint(); } });
    on('dblclick', reset);
  }
  x(event) { return Math.min(this.inner, Math.max(0, event.clientX - this.canvas.getBoundingClientRect().left - this.left)); }
  down(event) {
    return Math.min(this.bottom, Math.max(TOP, event.clientY - this.canvas.getBoundingClientRect().top));
  }
  margin() { return LEFT; }
  time(x) { return view.from + x / this.inner * (view.to - view.from); }
  move(event) {
    const x = this.x(event);
    view.at = this.time(x);
    if (view.drag && view.drag.plot === this) { view.drag.to = x; view.drag.below = this.down(event); }
    const y = event.clientY - this.canvas.getBoundingClientRect().top;
    tip.textContent = `${clock(view.at, data.width < 1)}\n${this.values(x, y).join('\n')}`;
    tip.style.display = 'block';
    const beside = event.clientX + 16 + tip.offsetWidth < innerWidth ? event.clientX + 16 : event.clientX - 16 - tip.offsetWidth;
    tip.style.left = `${Math.max(4, beside)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4))}px`;
    paint();
  }
  paint() {
    const width = this.canvas.clientWidth, ratio = devicePixelRatio || 1;
    if (!width) return;
    this.canvas.width = width * ratio; this.canvas.height = this.height * ratio;
    this.canvas.style.height = `${this.height}px`;
    this.g.scale(ratio, ratio);
    this.left = this.margin(width); this.inner = width - this.left - RIGHT; this.bottom = this.height - BOTTOM - (this.below || 0);
    this.draw();
    const g = this.g, at = time => this.left + (time - view.from) / (view.to - view.from) * this.inner;
    if (view.drag && view.drag.plot === this) {
      g.fillStyle = css('--accent'); g.globalAlpha = .18;
      const { x, to, y, below } = view.drag, across = this.rows && Math.abs(below - y) > DRAG;
      const wide = Math.abs(to - x) > DRAG ? [this.left + Math.min(x, to), Math.abs(to - x)] : [this.left, across ? this.inner : 0];
      const high = across ? [Math.min(y, below), Math.abs(below - y)] : [TOP, this.bottom - TOP];
      g.fillRect(wide[0], high[0], wide[1], high[1]);
      g.globalAlpha = 1;
    }
    if (view.at !== null && view.at >= view.from && view.at <= view.to) {
      g.strokeStyle = css('--ink'); g.lineWidth = 1; g.globalAlpha = .5;
      g.beginPath(); g.moveTo(at(view.at), TOP); g.lineTo(at(view.at), this.bottom); g.stroke(); g.globalAlpha = 1;
    }
  }
  bin(x) { return bins(this, Math.max(0, x - MEAN_PX / 2), x + MEAN_PX / 2); }
}

class Lines extends Plot {
  constructor(parent, panel) { super(parent, 168); this.panel = panel; }
  y(value) { return this.bottom - Math.min(1.03, value / this.top) * (this.bottom - TOP - 2); }
  draw() {
    const panel = this.panel;
    this.top = panel.top;
    frame(this, panel.title, panel.top);
    if (panel.more.length) {
      let x = this.left + this.inner;
      this.g.textAlign = 'right';
      for (const { label, colour } of [...panel.more, panel].reverse()) {
        this.g.fillStyle = colour; this.g.fillText(label, x, 9);
        x -= this.g.measureText(label).width + 12;
      }
    }
    if (panel.mean.every(value => value === null)) {
      this.g.textAlign = 'center'; this.g.fillStyle = css('--soft');
      this.g.fillText('no data', this.left + this.inner / 2, (TOP + this.bottom) / 2);
    }
    const alphas = [.13, .2, .3];
    panel.bands.forEach((band, i) =>
      area(this, points(this, band.low, 'min'), points(this, band.high, 'max'), panel.colour, alphas[i]));
    panel.rows.forEach(row => line(this, row, panel.colour, 1, [], .45));
    for (const more of panel.more) line(this, more.mean, more.colour, 1.5, [5, 3], 1);
    line(this, panel.mean, panel.colour, 2, [], 1);
  }
  values(x) {
    const [first, end] = this.bin(x), panel = this.panel, unit = panel.unit;
    const lines = [`${panel.label}: ${said(pooled(panel.mean, first, end))} ${unit}`];
    for (const more of panel.more) lines.push(`${more.label}: ${said(pooled(more.mean, first, end))} ${unit}`);
    for (const band of panel.bands)
      lines.push(`${band.label}: ${said(pooled(band.low, first, end, 'min'))} to ${said(pooled(band.high, first, end, 'max'))}`);
    const rows = panel.rows.map((row, i) => [pooled(row, first, end), panel.names[i]]).filter(([value]) => value !== null);
    rows.sort((a, b) => a[0] - b[0]);
    if (rows.length > 1) lines.push(`lowest ${rows[0][1]}: ${said(rows[0][0])}`, `highest ${rows.at(-1)[1]}: ${said(rows.at(-1)[0])}`);
    return lines;
  }
}

class Stack extends Plot {
  constructor(parent, spec) { super(parent, 300); this.spec = spec; this.below = 26; }
  y(value) { return this.bottom - Math.min(1.03, value / 100) * (this.bottom - TOP - 2); }
  draw() {
    frame(this, '% of the GPUs\u2019 time', 100);
    let done = null;
    for (const part of this.spec.parts) {
      const own = points(this, part.mean, 'mean');
      const top = own.map(([x, value], i) => [x, value === null ? null : value + (done ? done[i][1] : 0)]);
      area(this, done || own.map(([x, value]) => [x, value === null ? null : 0]), top, part.name === 'idle' ? css('--idle') : part.colour, 1);
      done = top;
    }
    line(this, this.spec.saturation, css('--ink'), 1.5, [], 1);
    line(this, this.spec.utilisation, css('--ink'), 1.2, [1, 3], 1);
    if (this.spec.aggregated) line(this, this.spec.aggregated, '#D55E00', 1.5, [5, 3], 1);
    const g = this.g;
    for (const phase of data.phases) {
      const at = time => this.left + (Math.min(view.to, Math.max(view.from, time)) - view.from) / (view.to - view.from) * this.inner;
      const x = at(phase.start), wide = at(phase.end) - x;
      if (wide <= 0) continue;
      g.fillStyle = phase.colour; g.fillRect(x, this.height - 20, Math.max(1, wide - 1), 16);
      g.fillStyle = '#fff'; g.textAlign = 'center'; g.font = `11px ${css('--font')}`;
      if (g.measureText(phase.what).width < wide - 6) g.fillText(phase.what, x + wide / 2, this.height - 11.5);
    }
    g.fillStyle = css('--soft'); g.textAlign = 'right'; g.fillText('phase', this.left - 5, this.height - 11.5);
  }
  values(x) {
    const [first, end] = this.bin(x), time = this.time(x);
    const phase = data.phases.find(one => one.start <= time && time < one.end);
    return [`saturation: ${said(pooled(this.spec.saturation, first, end))} %`,
      ...(this.spec.aggregated ? [`aggregated by ${this.spec.weights}: ${said(pooled(this.spec.aggregated, first, end))} %`] : []),
      ...this.spec.parts.map(part => `${part.name}: ${said(pooled(part.mean, first, end))} %`),
      `utilisation: ${said(pooled(this.spec.utilisation, first, end))} %`, ...(phase ? [`phase: ${phase.what}`] : [])];
  }
}

const CIVIDIS = [[0, 32, 77], [0, 56, 111], [60, 77, 110], [96, 98, 112], [124, 123, 120], [156, 148, 119], [190, 175, 111], [224, 204, 93], [255, 234, 70]];
function cividis(share) {
  const at = Math.min(.9999, Math.max(0, share)) * (CIVIDIS.length - 1), i = Math.floor(at);
  return CIVIDIS[i].map((value, k) => value + (CIVIDIS[i + 1][k] - value) * (at - i));
}
class Heat extends Plot {
  constructor(parent, spec) {
    super(parent, Math.min(560, Math.max(140, 60 + spec.names.length * 18)));
    this.spec = spec; this.which = 'worst'; this.rows = [0, spec.names.length];
    const decode = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
    this.longest = spec.names.reduce((most, name) => name.length > most.length ? name : most, '');
    this.common = spec.names.reduce((same, name) => { while (!name.startsWith(same)) same = same.slice(0, -1); return same; });
    this.matrix = { mean: decode(spec.mean), worst: spec.worst ? decode(spec.worst) : decode(spec.mean) };
  }
  y() { return 0; }
  margin(width) {  // names whole, else without what all begin with (a number stays whole if it can), which stands above
    const most = Math.max(LEFT, width * .2), wide = cut => this.g.measureText(this.label(this.longest, cut)).width + 9;
    this.g.font = `10px ${css('--font')}`;
    const cuts = this.spec.names.length > 1 ? [0, this.common.replace(/\d+$/, '').length, this.common.length] : [0];
    this.cut = cuts.find(cut => wide(cut) <= most) ?? cuts.at(-1);
    return Math.min(most, Math.max(LEFT, wide(this.cut)));
  }
  label(name, cut) { return cut ? `\u2026${name.slice(cut)}` : name; }
  zoom(y0, y1) {
    const row = y => this.rows[0] + (y - TOP) / this.perRow();
    this.rows = [Math.floor(row(y0)), Math.min(this.spec.names.length, Math.ceil(row(y1)))];
  }
  perRow() { return (this.bottom - TOP) / (this.rows[1] - this.rows[0]); }
  cell(which, r0, r1, c0, c1) {
    const values = this.matrix[which], columns = this.spec.columns;
    let sum = 0, count = 0, least = 255;
    for (let r = r0; r < r1; r++) for (let c = c0; c < c1; c++) {
      const value = values[r * columns + c];
      if (value === 255) continue;
      sum += value; count++; if (value < least) least = value;
    }
    return count ? (which === 'worst' && r1 - r0 > 1 ? this.least(r0, r1, c0, c1) : sum / count) / 250 : null;
  }
  least(r0, r1, c0, c1) {  // the worst row, each by its mean over the time of a pixel
    let least = 255;
    for (let r = r0; r < r1; r++) {
      let sum = 0, count = 0;
      for (let c = c0; c < c1; c++) { const v = this.matrix.worst[r * this.spec.columns + c]; if (v !== 255) { sum += v; count++; } }
      if (count) least = Math.min(least, sum / count);
    }
    return least;
  }
  at(px, py) {
    const span = view.to - view.from, columns = this.spec.columns, each = data.seconds / columns;
    const c0 = Math.min(columns - 1, Math.max(0, Math.floor((view.from + px / this.inner * span) / each)));
    const c1 = Math.max(c0 + 1, Math.min(columns, Math.floor((view.from + (px + 1) / this.inner * span) / each)));
    const r0 = Math.min(this.rows[1] - 1, Math.floor(this.rows[0] + py / this.perRow()));
    const r1 = Math.max(r0 + 1, Math.min(this.rows[1], Math.floor(this.rows[0] + (py + 1) / this.perRow())));
    return [r0, r1, c0, c1];
  }
  draw() {
    frame(this, this.cut ? `rows: ${this.common.slice(0, this.cut)}\u2026` : '', -1);
    const wide = Math.max(1, Math.floor(this.inner)), high = Math.max(1, Math.floor(this.bottom - TOP));
    const image = this.g.createImageData(wide, high);
    const rows = Math.min(high, this.rows[1] - this.rows[0]), columns = Math.min(wide, this.spec.columns);
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
      const y0 = Math.floor(row * high / rows), y1 = Math.floor((row + 1) * high / rows);
      const x0 = Math.floor(column * wide / columns), x1 = Math.floor((column + 1) * wide / columns);
      const r0 = Math.floor(this.rows[0] + row * (this.rows[1] - this.rows[0]) / rows);
      const r1 = Math.max(r0 + 1, Math.floor(this.rows[0] + (row + 1) * (this.rows[1] - this.rows[0]) / rows));
      const [, , c0, c1] = this.at((x0 + x1) / 2, 0);
      const value = this.cell(this.which, r0, r1, c0, c1);
      if (value === null) continue;
      const [red, green, blue] = cividis(value);
      for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) {
        const i = 4 * (y * wide + x);
        image.data[i] = red; image.data[i + 1] = green; image.data[i + 2] = blue; image.data[i + 3] = 255;
      }
    }
    const paper = document.createElement('canvas');
    paper.width = wide; paper.height = high;
    paper.getContext('2d').putImageData(image, 0, 0);
    this.g.imageSmoothingEnabled = false;
    this.g.drawImage(paper, this.left, TOP, this.inner, this.bottom - TOP);
    this.g.fillStyle = css('--soft'); this.g.textAlign = 'right'; this.g.font = `10px ${css('--font')}`;
    const shown = Math.min(this.rows[1] - this.rows[0], Math.floor((this.bottom - TOP) / 16));
    for (let i = 0; i < shown; i++) {
      const row = Math.floor(this.rows[0] + (i + .5) * (this.rows[1] - this.rows[0]) / shown);
      let cut = this.cut, short = this.label(this.spec.names[row], cut);
      while (short.length > 2 && this.g.measureText(short).width > this.left - 5) short = this.label(this.spec.names[row], ++cut);
      this.g.fillText(short, this.left - 4, TOP + (row + .5 - this.rows[0]) * this.perRow());
    }
  }
  values(x, y) {
    const [r0, r1, c0, c1] = this.at(x, Math.min(this.bottom - TOP - 1, Math.max(0, y - TOP)));
    const show = value => value === null ? 'no data' : `${(100 * value).toFixed(0)} %`;
    const name = r1 - r0 > 1 ? `${this.spec.names[r0]} to ${this.spec.names[r1 - 1]} (${r1 - r0})` : this.spec.names[r0];
    const mean = `mean: ${show(this.cell('mean', r0, r1, c0, c1))}`;
    return this.spec.worst || r1 - r0 > 1 ? [name, `worst: ${show(this.cell('worst', r0, r1, c0, c1))}`, mean] : [name, mean];
  }
}

let asked = false;
function paint() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; for (const plot of plots) plot.paint(); });
}
function reset() {
  view.from = 0; view.to = data.seconds;
  for (const plot of plots) if (plot.rows) plot.rows = [0, plot.spec.names.length];
  paint();
}
addEventListener('pointerup', () => {
  if (!view.drag) return;
  const { plot, x, to, y, below } = view.drag;
  view.drag = null;
  if (plot.rows && Math.abs(below - y) > DRAG) plot.zoom(Math.min(y, below), Math.max(y, below));
  if (Math.abs(to - x) > DRAG) {
    const [from, until] = [plot.time(Math.min(x, to)), plot.time(Math.max(x, to))];
    if (until - from > 2 * data.width) { view.from = from; view.to = until; }
  }
  paint();
});
addEventListener('resize', paint);

for (const parent of document.querySelectorAll('.plots')) {
  const spec = data.plots[parent.dataset.plot];
  if (!spec) continue;
  if (spec.parts) new Stack(parent, spec);
  else if (spec.names) {
    const heat = new Heat(parent, spec);
    for (const button of document.querySelectorAll('[data-heat]')) button.onclick = () => {
      heat.which = button.dataset.heat;
      for (const other of document.querySelectorAll('[data-heat]')) other.setAttribute('aria-pressed', String(other === button));
      paint();
    };
  } else for (const panel of spec.panels) new Lines(parent, panel);
}
for (const button of document.querySelectorAll('.reset')) button.onclick = reset;
root.classList.add('live');
for (const plot of plots) plot.paint();

document.getElementById('theme').onclick = () => {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const now = root.dataset.theme || (dark ? 'dark' : 'light');
  root.dataset.theme = now === 'dark' ? 'light' : 'dark';
  paint();
};
for (const table of document.querySelectorAll('.sort'))
  table.tHead.rows[0].querySelectorAll('th').forEach((head, column) => head.onclick = () => {
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const down = table.dataset.by === String(column) && table.dataset.down !== '1';
    const compare = (a, b) => { const x = value(a), y = value(b);
      return isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y; };
    const rows = [...table.tBodies[0].rows].sort((a, b) => down ? compare(b, a) : compare(a, b));
    table.dataset.by = column; table.dataset.down = down ? '1' : '0';
    table.tBodies[0].append(...rows);
  });
