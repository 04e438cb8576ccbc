// Lanes on the axis: spans and points in time with texts, the gravest on top.
class Track extends Plot {
  constructor(parent, spec) {
    super(parent, 41 + spec.lanes.length * LANE, 'findings, events, marks and missing data');
    this.spec = spec;
  }
  y() { return 0; }
  colour(severity) { return css({ error: '--warn', warning: '--amber', finding: '--accent', gap: '--gap' }[severity] || '--soft'); }
  spot([from, to]) { const x = this.place(from); return [x, Math.max(3, this.place(to) - x)]; }
  lanes(act) { this.spec.lanes.forEach((lane, i) => act(lane, TOP + i * LANE)); }
  draw() {
    const g = this.g;
    frame(this, '', -1);
    this.lanes((lane, y) => {
      g.textAlign = 'right'; g.font = `11px ${css('--font')}`; g.fillStyle = css('--soft'); g.fillText(lane.name, this.left - 5, y + LANE / 2);
      g.fillStyle = css('--faint'); g.fillRect(this.left, y + LANE - 1, this.inner, 1);
      let said = -1;
      g.save(); g.beginPath(); g.rect(this.left, y, this.inner, LANE); g.clip(); g.textAlign = 'left';
      for (const item of [...lane.items].sort((a, b) => (a[2] === 'error') - (b[2] === 'error'))) {
        const [x, wide] = this.spot(item);
        g.fillStyle = this.colour(item[2]); g.fillRect(this.left + x - (wide === 3 ? 1 : 0), y + 2, wide, LANE - 5);
      }
      for (const item of lane.items) {  // a text where it fits
        const [x, wide] = this.spot(item), solid = wide > 60;
        const from = solid ? Math.max(x, 0) + 4 : x + wide + 3, room = solid ? Math.min(x + wide, this.inner) - from - 4 : this.next(lane, item) - from - 4;
        if (from < said || room < 40) continue;
        let text = item[3];
        if (g.measureText(text).width > room) { while (text.length > 4 && g.measureText(`${text}\u2026`).width > room) text = text.slice(0, -Math.ceil(text.length / 12)); text += '\u2026'; }
        if (text.length < 6 && text !== item[3]) continue;
        g.fillStyle = solid && item[2] !== 'gap' ? css('--paper') : css('--ink'); g.fillText(text, this.left + from, y + LANE / 2);
        said = from + g.measureText(text).width + 6;
      }
      g.restore();
    });
  }
  next(lane, item) { const after = lane.items.find(other => other[0] > item[0]); return after ? this.place(after[0]) : this.inner; }
  values(x, y) {
    const lane = Math.floor((y - TOP) / LANE), lines = [];
    this.spec.lanes.forEach(({ name, items, count }, i) => {
      if (lane >= 0 && lane < this.spec.lanes.length && i !== lane && !this.keyed) return;
      const here = items.filter(item => { const [at, wide] = this.spot(item); return x >= at - 5 && x <= at + wide + 5; });
      lines.push(...here.slice(0, 5).map(item => item[3]), ...(here.length > 5 ? [`and ${here.length - 5} more`] : []));
      if (count > items.length && i === lane) lines.push(`(${items.length} of ${count} ${name} are here)`);
    });
    return lines.length ? lines : ['nothing here'];
  }
}
const LANE = 20;
KINDS.track = Track;
// What a finding is about, in all plots.
for (const button of document.querySelectorAll('[data-from]')) button.onclick = () => {
  const from = Number(button.dataset.from), to = Number(button.dataset.to), least = Math.max(30 * data.width, 2 * (to - from));
  view.span = [from, to];
  look((from + to - least) / 2, Math.min(data.seconds, least));
  document.querySelector('#lines').scrollIntoView();
};
