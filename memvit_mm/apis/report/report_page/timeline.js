// Classes over time, with memory and, beneath, without: as heat maps or lines.

const timeline = $('timeline');
const ROW = { map: 20, lines: 44 }; // pixels
const panels = []; // {group, which, classes, canvas}
const pinned = new Map(); // group -> classes in the timeline
let changed = [];

const css = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const share = (time) => (time - data.start) / (data.end - data.start);

function peakOf(group) {
  const best = group.ranking()[0];
  return best && best.peak > group.low ? best.peak : group.low + group.step * 10000;
}

function buildTimeline() {
  panels.length = 0;
  const parts = [];
  for (const group of groups) {
    const classes = pinned.get(group);
    const both = state.view === 'map' && group.hasWithout && state.without;
    for (const which of both ? ['scores', 'without'] : ['scores']) {
      const title = make('h3', {}, group.title);
      if (state.view === 'lines' && group.hasWithout && state.without)
        title.append(make('small', {}, ' with memory (filled) and without (dashed)'));
      else if (group.hasWithout)
        title.append(
          make('small', {}, which === 'scores' ? ' with memory' : ' without memory'),
        );
      const labels = make('div', { class: 'labels' });
      for (const c of classes)
        labels.append(
          make(
            'div',
            {
              title: group.names[c],
              style: {
                height: `${ROW[state.view]}px`,
                'line-height': `${ROW[state.view]}px`,
              },
            },
            group.names[c],
          ),
        );
      const canvas = make('canvas', { 'data-group': group.title, 'data-which': which });
      canvas.style.height = `${ROW[state.view] * classes.length}px`;
      parts.push(
        make(
          'div',
          { class: 'track' },
          title,
          labels,
          make('div', { class: 'plot' }, canvas),
        ),
      );
      panels.push({ group, which, classes, canvas });
    }
  }
  const axis = make('div', { class: 'axis', 'aria-hidden': 'true' });
  const over = make(
    'div',
    { class: 'over' },
    make('div', { class: 'reach' }),
    make('div', { class: 'clip' }),
    make('div', { class: 'cursor' }),
  );
  timeline.replaceChildren(...parts, axis, over);
  drawLegend();
  drawTimeline();
}

function drawLegend() {
  const parts = [];
  if (state.view === 'map') {
    const top = Math.max(...groups.map(peakOf)),
      [{ low }] = groups;
    parts.push(
      groups.length > 1 ? 'least' : digits(low),
      make('span', { class: 'ramp' }),
      groups.length > 1 ? 'highest score' : digits(top),
    );
  }
  parts.push(
    make('span', { class: 'mark', style: { '--who': 'var(--cursor)' } }),
    `the clip${data.clipSeconds ? ` (${size(data.clipSeconds)})` : ''}`,
  );
  if (data.memorySeconds)
    parts.push(
      make('span', { class: 'mark', style: { '--who': 'var(--other)' } }),
      `what memory adds (${size(data.memorySeconds)} back)`,
    );
  $('legend').replaceChildren(...parts);
}

function drawTimeline() {
  for (const panel of panels) drawPanel(panel);
  drawAxis();
  drawCursor();
}

// ------------------------------------------------------------------ drawing

// Which clips are under each column of pixels: [from, to], none where from > to.
function columns(width) {
  const ranges = new Int32Array(2 * width);
  const length = (data.end - data.start) / width;
  let i = 0;
  for (let x = 0; x < width; x++) {
    const from = data.start + x * length,
      to = from + length;
    while (i < count && clips.right[i] <= from) i++;
    let last = i;
    while (last < count && clips.left[last] < to) last++;
    ranges[2 * x] = i;
    ranges[2 * x + 1] = last - 1;
  }
  return ranges;
}

function drawPanel({ group, which, classes, canvas }) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.parentElement.clientWidth * scale));
  const height = Math.max(1, Math.round(ROW[state.view] * classes.length * scale));
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d');
  if (state.view === 'map')
    drawMap(context, group, which, classes, width, height, scale);
  else drawLines(context, group, classes, width, scale);
}

function ramp() {
  const stops = [0, 1, 2].map((number) =>
    css(`--heat-${number}`).split(' ').map(Number),
  );
  return Array.from({ length: 256 }, (_, level) => {
    const place = level / 127.5,
      stop = Math.min(1, Math.floor(place));
    return stops[stop].map(
      (value, channel) => value + (stops[stop + 1][channel] - value) * (place - stop),
    );
  });
}

function drawMap(context, group, which, classes, width, height, scale) {
  const colours = ramp(),
    gap = css('--gap').split(' ').map(Number);
  const top = peakOf(group),
    ranges = columns(width);
  const image = new ImageData(width, Math.max(1, classes.length));
  classes.forEach((c, y) => {
    const series = group.series(c, which, state.person);
    for (let x = 0; x < width; x++) {
      let value = NaN;
      for (let i = ranges[2 * x]; i <= ranges[2 * x + 1]; i++)
        if (!(value >= series[i])) value = Number.isNaN(series[i]) ? value : series[i];
      const level = Math.round(
        255 * Math.min(1, Math.max(0, (value - group.low) / (top - group.low))),
      );
      image.data.set(Number.isNaN(value) ? gap : colours[level], 4 * (y * width + x));
      image.data[4 * (y * width + x) + 3] = 255;
    }
  });
  const small = new OffscreenCanvas(width, image.height);
  small.getContext('2d').putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
  context.fillStyle = css('--card');
  for (let y = 1; y < classes.length; y++)
    context.fillRect(0, Math.round(y * ROW.map * scale) - 1, width, 1);
}

function drawLines(context, group, classes, width, scale) {
  const ranges = columns(width),
    top = peakOf(group),
    high = ROW.lines * scale;
  const line = (series, y, fill) => {
    const place = (value) =>
      y +
      high -
      scale -
      (high - 6 * scale) * Math.max(0, (value - group.low) / (top - group.low));
    let path = null;
    const end = (x) => {
      if (!path) return;
      if (fill) {
        const area = new Path2D(path.path);
        area.lineTo(x, y + high - scale);
        area.lineTo(path.from, y + high - scale);
        context.globalAlpha = 0.25;
        context.fill(area);
        context.globalAlpha = 1;
      }
      context.stroke(path.path);
      path = null;
    };
    for (let x = 0; x < width; x++) {
      let value = NaN;
      for (let i = ranges[2 * x]; i <= ranges[2 * x + 1]; i++)
        if (!(value >= series[i])) value = Number.isNaN(series[i]) ? value : series[i];
      if (Number.isNaN(value)) {
        end(x);
        continue;
      }
      if (!path) {
        path = { path: new Path2D(), from: x };
        path.path.moveTo(x, place(value));
      }
      path.path.lineTo(x, place(value));
      path.path.lineTo(x + 1, place(value));
    }
    end(width);
  };
  context.lineWidth = 1.5 * scale;
  classes.forEach((c, number) => {
    const y = number * high;
    context.fillStyle = css('--line');
    context.fillRect(0, y + high - scale, width, scale);
    context.fillStyle = context.strokeStyle = css('--accent');
    line(group.series(c, 'scores', state.person), y, true);
    if (group.hasWithout && state.without) {
      context.strokeStyle = css('--other');
      context.setLineDash([4 * scale, 3 * scale]);
      line(group.series(c, 'without', state.person), y, false);
      context.setLineDash([]);
    }
  });
}

function drawAxis() {
  const axis = timeline.querySelector('.axis');
  const length = data.end - data.start;
  const most = Math.max(2, Math.floor(axis.clientWidth / 80));
  const steps = [
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400,
    28800, 86400,
  ];
  const every = steps.find((one) => length / one <= most) || length / most;
  const marks = [];
  for (
    let tick = Math.ceil(data.start / every - 1e-6);
    tick * every <= data.end + 1e-6;
    tick++
  ) {
    const at = share(tick * every);
    const side = at < 0.03 ? 'first' : at > 0.97 ? 'last' : '';
    marks.push(
      make(
        'span',
        { class: side, style: { left: `${100 * at}%` } },
        clock(tick * every, every < 1 ? 1 : 0),
      ),
    );
  }
  axis.replaceChildren(...marks);
}

function drawCursor() {
  const place = (name, from, to) => {
    const element = timeline.querySelector(`.over .${name}`);
    const [left, right] = [
      share(Math.max(data.start, from)),
      share(Math.min(data.end, to)),
    ];
    element.hidden = right < left;
    element.style.left = `${100 * left}%`;
    if (name !== 'cursor') element.style.width = `${100 * (right - left)}%`;
  };
  const i = state.clip;
  place('cursor', state.time, state.time);
  place('clip', clips.first[i], clips.last[i]);
  if (data.memorySeconds)
    place('reach', clips.first[i] - data.memorySeconds, clips.first[i]);
  else timeline.querySelector('.reach').hidden = true;
  timeline.setAttribute('aria-valuenow', state.time.toFixed(1));
  timeline.setAttribute('aria-valuetext', [clock(state.time), ...spoken()].join(', '));
}

function spoken() {
  if (people) return [`${first[state.clip + 1] - first[state.clip]} people`];
  return groups.flatMap((group) =>
    group
      .best(first[state.clip], 1)
      .map(({ c, score }) => `${group.names[c]} ${score.toFixed(2)}`),
  );
}

// ------------------------------------------------------------------ pointer

function pair(name, value) {
  return make('div', {}, make('span', {}, name), make('span', {}, value));
}

function tip(event, lines) {
  const box = $('tip');
  box.hidden = !event;
  if (!event) return;
  box.replaceChildren(...lines);
  const wide = box.offsetWidth,
    high = box.offsetHeight;
  const left = Math.min(event.clientX + 14, window.innerWidth - wide - 4);
  const below = event.clientY + 18;
  const top = below + high < window.innerHeight ? below : event.clientY - high - 12;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, top)}px`;
}

function timeUnder(event) {
  const area = panels[0].canvas.getBoundingClientRect();
  return (
    data.start +
    (data.end - data.start) *
      Math.min(1, Math.max(0, (event.clientX - area.left) / area.width))
  );
}

function hover(event) {
  const panel = panels.find(({ canvas }) => canvas === event.target);
  if (!panel) {
    tip(null);
    return;
  }
  const { group, classes, canvas, which } = panel;
  const area = canvas.getBoundingClientRect();
  const c =
    classes[
      Math.min(
        classes.length - 1,
        Math.max(
          0,
          Math.floor(((event.clientY - area.top) / area.height) * classes.length),
        ),
      )
    ];
  const i = clipAt(timeUnder(event));
  const lines = [
    make('strong', {}, group.names[c]),
    pair(`${clock(clips.left[i])} to ${clock(clips.right[i])}`, `clip ${i + 1}`),
  ];
  const names = {
    scores: group.hasWithout ? 'with memory' : 'score',
    without: 'without memory',
  };
  for (const one of group.hasWithout ? ['scores', 'without'] : ['scores']) {
    const line = pair(names[one], digits(group.series(c, one, state.person)[i]));
    line.dataset.which = one;
    if (group.hasWithout && one === which) line.style.fontWeight = 600;
    lines.push(line);
  }
  if (people && state.person === null) {
    let best = -1;
    for (let row = first[i]; row < first[i + 1]; row++)
      if (best < 0 || group.score(row, c) > group.score(best, c)) best = row;
    if (best >= 0) lines.push(pair('most of all', nameOf(best)));
  }
  tip(event, lines);
}

function startTimeline() {
  for (const group of groups) {
    // The best ones, as far as there is something to see.
    const least = group.low + (peakOf(group) - group.low) / 20;
    const best = group.ranking().slice(0, groups.length > 1 ? 6 : 10);
    pinned.set(
      group,
      best.filter(({ peak }, place) => place < 3 || peak >= least).map(({ c }) => c),
    );
  }
  timeline.setAttribute('aria-valuemin', data.start);
  timeline.setAttribute('aria-valuemax', data.end);
  let dragging = false;
  timeline.addEventListener('pointerdown', (event) => {
    if (event.button || event.clientX < panels[0].canvas.getBoundingClientRect().left)
      return;
    dragging = event.pointerType !== 'touch';
    update({ time: timeUnder(event) });
  });
  timeline.addEventListener('pointermove', (event) => {
    hover(event);
    if (dragging && event.buttons) update({ time: timeUnder(event) });
  });
  window.addEventListener('pointerup', () => {
    dragging = false;
  });
  timeline.addEventListener('pointerleave', () => tip(null));
  window.addEventListener('scroll', () => tip(null), { passive: true });

  $('view').addEventListener('change', () => update({ view: $('view').value }));
  $('show-without').addEventListener('change', () =>
    update({ without: $('show-without').checked }),
  );
  $('without-choice').hidden = !comparing();
  if (comparing()) {
    changed = changes();
    const number = changed.filter(Boolean).length;
    const what = people ? 'somebody’s best action' : 'the best class';
    const part = `${number.toLocaleString()} of ${count.toLocaleString()} clips`;
    $('effect').hidden = false;
    $('effect').textContent = `Memory changes ${what} in ${part}.`;
    $('next-change').hidden = !number;
    $('next-change').addEventListener('click', () => {
      const later = changed.indexOf(true, state.clip + 1);
      goTo(later < 0 ? changed.indexOf(true) : later);
    });
  }
  new ResizeObserver(drawTimeline).observe(timeline);
  window
    .matchMedia('(prefers-color-scheme: dark)')
    .addEventListener('change', drawTimeline);
  state.told.push((change) => {
    if ('view' in change || 'without' in change || 'pinned' in change) buildTimeline();
    else if ('person' in change) drawTimeline();
    else drawCursor();
  });
  buildTimeline();
}
