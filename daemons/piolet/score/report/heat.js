// Rows by time: a colour for each, the mean or the worst of what a pixel stands for.
const CIVIDIS = [[0, 32, 77], [0, 56, 111], [60, 77, 110], [96, 98, 112], [124, 123, 120], [156, 148, 119], [190, 175, 111], [224, 204, 93], [255, 234, 70]];
function cividis(share) {
  const at = Math.min(.9999, Math.max(0, share)) * (CIVIDIS.length - 1), i = Math.floor(at);
  return CIVIDIS[i].map((value, k) => value + (CIVIDIS[i + 1][k] - value) * (at - i));
}
class Heat extends Plot {
  constructor(parent, spec) {
    super(parent, Math.min(560, Math.max(140, 60 + spec.names.length * 18)), 'rows by time');
    this.spec = spec; this.which = 'worst'; this.rows = [0, spec.names.length];
    this.longest = spec.names.reduce((most, name) => name.length > most.length ? name : most, '');
    this.common = spec.names.reduce((same, name) => { while (!name.startsWith(same)) same = same.slice(0, -1); return same; });
    this.take(spec);
    this.wire('heat', name => { this.which = name; });
    // Other quantities, which the page has farther below, and are read when they are asked for.
    this.wire('choice', name => this.take(name ? JSON.parse(document.getElementById(name).textContent) : spec));
  }
  wire(name, act) {
    const all = document.querySelectorAll(`[data-${name}]`);
    for (const button of all) button.onclick = () => {
      act(button.dataset[name]);
      for (const other of all) other.setAttribute('aria-pressed', String(other === button));
      paint();
    };
  }
  // Values are shares of from `base` to `top` of a unit; `up`: a high one is what is bad.
  take(own) {
    this.own = { base: 0, top: 100, unit: '%', ...own };
    this.matrix = { mean: decode(own.mean), worst: decode(own.worst || own.mean) };
    this.kept = null;
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
    let sum = 0, count = 0;
    for (let r = r0; r < r1; r++) for (let c = c0; c < c1; c++) {
      const value = values[r * columns + c];
      if (value === 255) continue;
      sum += value; count++;
    }
    return count ? (which === 'worst' && r1 - r0 > 1 ? this.least(r0, r1, c0, c1) : sum / count) / LEVELS : null;
  }
  least(r0, r1, c0, c1) {  // the worst row, each by its mean over the time of a pixel
    const worse = this.own.up ? Math.max : Math.min;
    let least = this.own.up ? -1 : 255;
    for (let r = r0; r < r1; r++) {
      let sum = 0, count = 0;
      for (let c = c0; c < c1; c++) { const v = this.matrix.worst[r * this.spec.columns + c]; if (v !== 255) { sum += v; count++; } }
      if (count) least = worse(least, sum / count);
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
    const { label, base, top, unit } = this.own, scale = label ? `${label}: dark ${base}, bright ${Number(top.toPrecision(3))} ${unit}` : '';
    frame(this, [scale, this.cut ? `rows: ${this.common.slice(0, this.cut)}\u2026` : ''].filter(Boolean).join('; '), -1);
    const now = [this.which, view.from, view.to, ...this.rows, this.inner, this.bottom].join();
    if (this.kept !== now) { this.paper = this.picture(); this.kept = now; }
    const paper = this.paper;
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
  picture() {
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
    return paper;
  }
  values(x, y) {
    const [r0, r1, c0, c1] = this.at(x, Math.min(this.bottom - TOP - 1, Math.max(0, y - TOP)));
    const { base, top, unit } = this.own;
    const show = value => value === null ? 'no data' : `${(base + (top - base) * value).toFixed(0)} ${unit}`;
    const name = r1 - r0 > 1 ? `${this.spec.names[r0]} to ${this.spec.names[r1 - 1]} (${r1 - r0})` : this.spec.names[r0];
    const mean = `mean: ${show(this.cell('mean', r0, r1, c0, c1))}`;
    return this.spec.worst || r1 - r0 > 1 ? [name, `worst: ${show(this.cell('worst', r0, r1, c0, c1))}`, mean] : [name, mean];
  }
}
KINDS.heat = Heat;
