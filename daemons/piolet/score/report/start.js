// Makes the plots of the page, and wires its buttons and tables.
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
  for (const one of spec ? spec.panels || [spec] : []) new KINDS[one.kind](parent, one);
}
for (const button of document.querySelectorAll('.reset')) button.onclick = reset;
for (const plot of plots) if (!plot.rows) plot.paint();
performance.mark('lines');
for (const plot of plots) if (plot.rows) plot.paint();
performance.mark('heat');

document.getElementById('theme').onclick = () => {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const now = root.dataset.theme || (dark ? 'dark' : 'light');
  root.dataset.theme = now === 'dark' ? 'light' : 'dark';
  paint();
};
for (const table of document.querySelectorAll('.sort'))
  table.tHead.rows[0].querySelectorAll('th').forEach((head, column, heads) => {
    head.tabIndex = 0;
    head.onclick = () => {
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const down = head.getAttribute('aria-sort') === 'ascending';
      const compare = (a, b) => { const x = value(a), y = value(b);
        return isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y; };
      const rows = [...table.tBodies[0].rows].sort((a, b) => down ? compare(b, a) : compare(a, b));
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      table.tBodies[0].append(...rows);
    };
    head.onkeydown = event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); head.onclick(); } };
  });
