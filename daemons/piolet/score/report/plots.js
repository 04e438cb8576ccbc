// Draws the figures of a report with values under the pointer, and zooms. Without it the page has them as pictures.
const root = document.documentElement;
const data = JSON.parse(document.getElementById('data').textContent);
const tip = document.getElementById('tip');
const view = { from: 0, to: data.seconds, at: null, drag: null, span: null };
const plots = [];
const LEFT = data.left || 44, RIGHT = 18, TOP = 20, BOTTOM = 20, MEAN_PX = 4, DRAG = 8;

const KINDS = {}, LEVELS = 250;  // kinds of plots by name; levels of a share that comes as a byte, 255 is no data
const decode = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const css = name => getComputedStyle(root).getPropertyValue(name).trim();
const two = number => String(Math.floor(number)).padStart(2, '0');
function clock(seconds, fine) {
  const whole = fine ? Math.round(seconds * 10) / 10 : Math.round(seconds);
  const rest = fine ? (whole % 60).toFixed(1).padStart(4, '0') : two(whole % 60);
  return whole >= 3600 ? `${Math.floor(whole / 3600)}:${two(whole / 60 % 60)}:${rest}` : `${Math.floor(whole / 60)}:${rest}`;
}
// Blue is too dark on a dark page.
const tone = colour => colour === '#0072B2' ? css('--line') : colour;
// `step`: how far apart values are that came as bytes.
const said = (value, step) => value === null ? 'no data' : Math.abs(value) >= 100 || step >= .5 ? value.toFixed(0)
  : Math.abs(value) >= 1 || !value ? value.toFixed(1) : String(Number(value.toPrecision(2)));

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
// A text, with less of its middle where it is too wide: its begin says what it is, its end the unit.
function fitted(g, text, room) {
  const wide = shown => g.measureText(shown).width;
  for (let keep = text.length, shown = text; ; shown = `${text.slice(0, Math.ceil(keep / 2))}\u2026${text.slice(-Math.floor(keep / 2))}`, keep--)
    if (wide(shown) <= room || keep < 7) return shown;
}
function frame(plot, title, top, taken = 0) {  // `taken`: of the title's line, at its end
  const g = plot.g, ink = css('--ink'), faint = css('--faint'), soft = css('--soft');
  g.font = `12px ${css('--font')}`; g.textBaseline = 'middle'; g.lineWidth = 1;
  g.fillStyle = ink; g.textAlign = 'left'; g.fillText(fitted(g, title, plot.inner + RIGHT - taken), plot.left, 9);
  g.font = `11px ${css('--font')}`; g.fillStyle = soft; g.strokeStyle = faint;
  const rough = top / 4, power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 2.5, 5, 10].map(n => n * power).find(n => n >= rough) || power;
  g.textAlign = 'right';
  for (let value = 0; value <= top * 1.001; value += step) {
    g.beginPath(); g.moveTo(plot.left, plot.y(value)); g.lineTo(plot.left + plot.inner, plot.y(value)); g.stroke();
    g.fillText(String(Number(value.toPrecision(3))), plot.left - 5, plot.y(value));
  }
  const every = ticks(view.to - view.from, Math.max(2, plot.inner / 85)), bare = plot.bottom + BOTTOM > plot.height;
  g.textAlign = 'center';
  for (let time = Math.ceil(view.from / every) * every; time <= view.to; time += every) {
    const x = plot.left + (time - view.from) / (view.to - view.from) * plot.inner;
    g.beginPath(); g.moveTo(x, bare ? TOP : plot.bottom); g.lineTo(x, plot.bottom + (bare ? 0 : 4)); g.stroke();
    if (bare) continue;  // the axis stands elsewhere
    const label = clock(time, every < 1), half = g.measureText(label).width / 2;
    g.fillText(label, Math.min(x, plot.left + plot.inner + RIGHT - half), plot.bottom + 12);
  }
}

class Plot {
  constructor(parent, height, label) {
    this.canvas = parent.appendChild(document.createElement('canvas'));
    this.g = this.canvas.getContext('2d');
    this.height = height; this.down_ = TOP;
    plots.push(this);
    // A place in time that keys move, and that screen readers tell with its values: a slider.
    const about = { role: 'slider', 'aria-label': label, 'aria-valuemin': 0, 'aria-valuemax': Math.round(data.seconds), 'aria-valuenow': 0, 'aria-valuetext': 'arrow keys move in time' };
    for (const [name, value] of Object.entries(about)) this.canvas.setAttribute(name, value);
    this.canvas.tabIndex = 0;
    const on = (name, act) => this.canvas.addEventListener(name, act);
    on('pointermove', event => this.move(event));
    on('pointerdown', event => {
      view.drag = { plot: this, x: this.x(event), to: this.x(event), y: this.down(event), below: this.down(event) };
    });
    const leave = () => { if (!view.drag) { view.at = null; tip.style.display = 'none'; paint(); } };
    on('pointerleave', leave); on('blur', leave);
    on('dblclick', reset);
    on('keydown', event => this.key(event));
  }
  x(event) { return Math.min(this.inner, Math.max(0, event.clientX - this.canvas.getBoundingClientRect().left - this.left)); }
  down(event) {
    return Math.min(this.bottom, Math.max(TOP, event.clientY - this.canvas.getBoundingClientRect().top));
  }
  margin() { return LEFT; }
  time(x) { return view.from + x / this.inner * (view.to - view.from); }
  place(time) { return (time - view.from) / (view.to - view.from) * this.inner; }
  move(event) {
    const x = this.x(event), box = this.canvas.getBoundingClientRect();
    if (view.drag && view.drag.plot === this) { view.drag.to = x; view.drag.below = this.down(event); }
    this.tell(x, event.clientY - box.top, event.clientX, event.clientY);
  }
  tell(x, y, clientX, clientY) {
    view.at = this.time(x);
    const clocked = data.began ? ` (${new Date((data.began + view.at) * 1000).toISOString().slice(0, 19).replace('T', ' ')} UTC)` : '';
    tip.textContent = `${clock(view.at, data.width < 1)}${clocked}\n${this.values(x, y).join('\n')}`;
    this.canvas.setAttribute('aria-valuenow', Math.round(view.at));
    this.canvas.setAttribute('aria-valuetext', tip.textContent);
    tip.style.display = 'block';
    const beside = clientX + 16 + tip.offsetWidth < innerWidth ? clientX + 16 : clientX - 16 - tip.offsetWidth;
    tip.style.left = `${Math.max(4, beside)}px`;
    tip.style.top = `${Math.max(4, Math.min(clientY + 14, innerHeight - tip.offsetHeight - 4))}px`;
    paint();
  }
  key(event) {
    const span = view.to - view.from, at = view.at ?? view.from + span / 2, by = Math.max(data.width, span / 100);
    const near = factor => {
      const long = Math.min(data.seconds, Math.max(4 * data.width, span * factor));
      look(at - long * (at - view.from) / span, long);
      return at;
    };
    const rows = by => () => { this.down_ = Math.min(this.bottom - 1, Math.max(TOP, this.down_ + by)); return at; };
    const act = {
      ArrowLeft: () => at - by, ArrowRight: () => at + by, PageUp: () => at - 10 * by, PageDown: () => at + 10 * by,
      Home: () => 0, End: () => data.seconds, '+': () => near(.5), '=': () => near(.5), '-': () => near(2),
      Escape: () => { reset(); return at; }, ArrowUp: this.rows && rows(-this.perRow?.()), ArrowDown: this.rows && rows(this.perRow?.()),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const time = Math.min(data.seconds, Math.max(0, act())), now = view.to - view.from;
    if (time < view.from) look(time, now); else if (time > view.to) look(time - now, now);
    const box = this.canvas.getBoundingClientRect(), x = this.place(time);
    this.tell(x, this.down_ + .5, box.left + this.left + x, box.top + Math.min(this.down_ + 20, this.height));
  }
  paint() {
    const width = this.canvas.clientWidth, ratio = devicePixelRatio || 1;
    if (!width) return;
    this.canvas.width = width * ratio; this.canvas.height = this.height * ratio;
    this.canvas.style.height = `${this.height}px`;
    this.g.scale(ratio, ratio);
    this.left = this.margin(width); this.inner = width - this.left - RIGHT; this.bottom = this.height - (this.spec?.bare ? 4 : BOTTOM) - (this.below || 0);
    if (view.span) {  // what a finding is about
      const [from, to] = view.span.map(time => Math.min(this.inner, Math.max(0, this.place(time))));
      this.g.fillStyle = css('--accent'); this.g.globalAlpha = .13;
      this.g.fillRect(this.left + from, TOP, Math.max(2, to - from), this.bottom - TOP); this.g.globalAlpha = 1;
    }
    this.draw();
    const g = this.g;
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
      g.beginPath(); g.moveTo(this.left + this.place(view.at), TOP); g.lineTo(this.left + this.place(view.at), this.bottom); g.stroke(); g.globalAlpha = 1;
    }
  }
  bin(x) { return bins(this, Math.max(0, x - MEAN_PX / 2), x + MEAN_PX / 2); }
}

class Lines extends Plot {
  constructor(parent, panel) {
    super(parent, panel.height || 168, panel.title);
    const own = values => typeof values === 'string' ? Array.from(decode(values), v => v === 255 ? null : v / LEVELS * panel.top) : values;
    this.step = panel.step || 0;
    panel.bands = panel.bands.map(({ label, low, high }) => ({ label, low: own(low), high: own(high) }));
    panel.rows = panel.rows.map(own);
    this.spec = this.panel = panel;
    this.known = panel.mean.some(value => value !== null);
  }
  y(value) { return this.bottom - Math.min(1.03, value / this.top) * (this.bottom - TOP - 2); }
  draw() {
    const panel = this.panel;
    this.top = panel.top;
    const named = panel.more.length ? [...panel.more, panel].reverse() : [];
    this.g.font = `11px ${css('--font')}`;
    frame(this, panel.title, panel.top, named.reduce((sum, { label }) => sum + this.g.measureText(label).width + 12, RIGHT));
    if (named.length) {
      let x = this.left + this.inner;
      this.g.textAlign = 'right';
      for (const { label, colour } of named) {
        this.g.fillStyle = tone(colour); this.g.fillText(label, x, 9);
        x -= this.g.measureText(label).width + 12;
      }
    }
    if (!this.known) {
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
      lines.push(`${band.label}: ${said(pooled(band.low, first, end, 'min'), this.step)} to ${said(pooled(band.high, first, end, 'max'), this.step)}`);
    const rows = panel.rows.map((row, i) => [pooled(row, first, end), panel.names[i]]).filter(([value]) => value !== null);
    rows.sort((a, b) => a[0] - b[0]);
    if (rows.length > 1) lines.push(`lowest ${rows[0][1]}: ${said(rows[0][0], this.step)}`, `highest ${rows.at(-1)[1]}: ${said(rows.at(-1)[0], this.step)}`);
    return lines;
  }
}
KINDS.lines = Lines;

let asked = false;
function paint() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; for (const plot of plots) plot.paint(); });
}
function look(from, span) {  // at a part of the time
  view.from = Math.max(0, Math.min(from, data.seconds - span)); view.to = Math.min(data.seconds, view.from + span);
  paint();
}
function reset() {
  for (const plot of plots) if (plot.rows) plot.rows = [0, plot.spec.names.length];
  view.span = null;
  look(0, data.seconds);
}
