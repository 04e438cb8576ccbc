// A stack of shares over time, with the phases below it.
class Stack extends Plot {
  constructor(parent, spec) { super(parent, spec.height || 300, 'what the GPUs did'); this.spec = spec; this.below = data.phases.length ? 26 : 0; }
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
    g.fillStyle = css('--soft'); g.textAlign = 'right'; if (this.below) g.fillText('phase', this.left - 5, this.height - 11.5);
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
KINDS.stack = Stack;
