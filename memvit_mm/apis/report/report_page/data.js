// What the report is about: its data unpacked, and questions about it answered.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($('report-data').textContent);
const clips = data.clips;
const count = clips.time.length;
const people = data.people;
const MISSING = 65535;

// An element with attributes and children; text is never read as HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style')
      for (const [key, text] of Object.entries(value))
        element.style.setProperty(key, text);
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false)
      element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function unpack(text) {
  const bytes = bytesOf(text);
  const stream = new Blob([bytes])
    .stream()
    .pipeThrough(new DecompressionStream('deflate'));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = planes.length / 2; // low bytes, then high bytes
  const values = new Uint16Array(size);
  for (let i = 0; i < size; i++) values[i] = planes[i] | (planes[size + i] << 8);
  return values;
}

// Rows of scores are clips or, of people, their boxes. Those of clip i are first[i] up
// to first[i + 1].
const first = new Uint32Array(count + 1);
for (let i = 0; i < count; i++)
  first[i + 1] = first[i] + (people ? people.counts[i] : 1);
const rows = first[count];
const clipOf = new Uint32Array(rows);
for (let i = 0; i < count; i++) clipOf.fill(i, first[i], first[i + 1]);
const tracks = people && people.tracks;

// Whose a row is: a track's number, else its place among the clip's boxes.
const whose = (row) => (tracks ? tracks[row] : row - first[clipOf[row]] + 1);
const nameOf = (row) => `${tracks ? 'Person' : 'Box'} ${whose(row)}`;
const colours = [
  '#7fd1ff',
  '#ffd166',
  '#9be37f',
  '#ff9fc0',
  '#c7b0ff',
  '#ffb27a',
  '#6fe3cf',
  '#f4f07a',
  '#e0c5a4',
  '#a9c1d9',
];
const colourOf = (row) => colours[Math.abs(whose(row)) % colours.length];

class Group {
  constructor(packed, scores, without) {
    Object.assign(this, {
      title: packed.title,
      names: packed.names,
      low: packed.low,
      step: packed.step,
    });
    this.packed = { scores, without };
    this.hasWithout = without !== null;
    this.cache = new Map();
  }

  // A score of a row and class; null where there is none.
  score(row, c, which = 'scores') {
    const whole = this.packed[which] ? this.packed[which][c * rows + row] : MISSING;
    return whole === MISSING ? null : this.low + whole * this.step;
  }

  // Of each clip the highest score of those (or that person) in it; NaN where nobody is.
  series(c, which, person = null) {
    const key = `${c} ${which} ${person}`;
    if (this.cache.has(key)) return this.cache.get(key);
    const series = new Float32Array(count).fill(NaN);
    for (let row = 0; row < rows; row++) {
      if (person !== null && whose(row) !== person) continue;
      const score = this.score(row, c, which);
      const i = clipOf[row];
      if (score !== null && !(series[i] >= score)) series[i] = score;
    }
    if (this.cache.size > 400) this.cache.clear();
    this.cache.set(key, series);
    return series;
  }

  // The k best classes of a row.
  best(row, k, which = 'scores') {
    const found = [];
    for (let c = 0; c < this.names.length; c++) {
      const score = this.score(row, c, which);
      if (score === null) return [];
      if (found.length < k || score > found[found.length - 1].score) {
        let place = found.length;
        while (place && found[place - 1].score < score) place--;
        found.splice(place, 0, { c, score });
        found.length = Math.min(found.length, k);
      }
    }
    return found;
  }

  // Of each class its peak, where that is, and its means; the highest peak first.
  ranking() {
    if (this.ranked) return this.ranked;
    const summary = (c, which) => {
      const values = this.packed[which];
      let sum = 0,
        number = 0,
        peak = -1,
        at = 0;
      for (let row = 0; row < rows; row++) {
        const whole = values[c * rows + row];
        if (whole === MISSING) continue;
        sum += whole;
        number++;
        if (whole > peak) {
          peak = whole;
          at = row;
        }
      }
      const score = (whole) => (number ? this.low + whole * this.step : NaN);
      return { mean: score(sum / number), peak: score(peak), at: clipOf[at] };
    };
    this.ranked = this.names.map((name, c) => ({
      c,
      name,
      ...summary(c, 'scores'),
      without: this.hasWithout ? summary(c, 'without').mean : null,
    }));
    this.ranked.sort((a, b) => (b.peak || 0) - (a.peak || 0) || a.c - b.c);
    return this.ranked;
  }

  // Of each row its best class; -1 where there is none.
  winners(which) {
    const best = new Int32Array(rows).fill(-1),
      top = new Int32Array(rows).fill(-1);
    const values = this.packed[which];
    for (let c = 0; c < this.names.length; c++) {
      for (let row = 0; row < rows; row++) {
        const whole = values[c * rows + row];
        if (whole > top[row] && whole !== MISSING) {
          top[row] = whole;
          best[row] = c;
        }
      }
    }
    return best;
  }
}

let groups = [];
async function load() {
  const packed = data.groups.map(
    async (group) =>
      new Group(
        group,
        await unpack(group.scores),
        group.without === null ? null : await unpack(group.without),
      ),
  );
  groups = await Promise.all(packed);
  if (people) {
    people.boxes = await unpack(people.boxes);
    people.sure = await unpack(people.sure);
  }
}
const comparing = () => groups.some((group) => group.hasWithout);

// Which clip a moment belongs to.
function clipAt(time) {
  let low = 0,
    high = count - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (clips.left[middle] < time) low = middle;
    else high = middle - 1;
  }
  const next = low + 1;
  const gap = next < count && time > clips.right[low];
  return gap && clips.left[next] - time < time - clips.right[low] ? next : low;
}

// The picture nearest to a moment; -1 if there is none.
function pictureAt(time) {
  const times = data.frames.times;
  let low = 0,
    high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < time) low = middle + 1;
    else high = middle;
  }
  return low && (low === times.length || time - times[low - 1] <= times[low] - time)
    ? low - 1
    : Math.min(low, times.length - 1);
}

// Whether memory changes the best class of a clip, or of anybody in it.
function changes() {
  const changed = new Array(count).fill(false);
  for (const group of groups) {
    if (!group.hasWithout) continue;
    const one = group.winners('scores'),
      other = group.winners('without');
    one.forEach((c, row) => {
      if (c >= 0 && other[row] >= 0 && c !== other[row]) changed[clipOf[row]] = true;
    });
  }
  return changed;
}

const digits = (score) =>
  score === null || Number.isNaN(score) ? '–' : score.toFixed(3);

// 1:02.5, 1:00:02.5; cameras whose clock counts since 1970 get the time of day.
function clock(time, decimals = 1) {
  if (data.start > 1e8) return new Date(time * 1000).toLocaleTimeString();
  const sign = time < 0 ? '-' : '';
  const unit = 10 ** decimals;
  const whole = Math.round(Math.abs(time) * unit);
  const seconds = Math.floor(whole / unit);
  const two = (number) => String(number).padStart(2, '0');
  const hours = Math.floor(seconds / 3600),
    minutes = Math.floor(seconds / 60) % 60;
  const rest = decimals ? '.' + String(whole % unit).padStart(decimals, '0') : '';
  return (
    sign +
    (hours ? `${hours}:${two(minutes)}` : minutes) +
    ':' +
    two(seconds % 60) +
    rest
  );
}

function size(seconds) {
  return seconds < 90
    ? `${Number(seconds.toFixed(1))} s`
    : `${Number((seconds / 60).toFixed(1))} min`;
}

// What all parts share; whoever wants to know of a change is told.
const state = {
  time: data.start,
  clip: 0,
  playing: false,
  person: null,
  view: 'map',
  without: true,
  told: [],
};
function update(change) {
  Object.assign(state, change);
  if ('time' in change) {
    state.time = Math.min(data.end, Math.max(data.start, state.time));
    state.clip = clipAt(state.time);
  }
  for (const tell of state.told) tell(change);
}
const goTo = (clip) =>
  update({ time: clips.time[Math.min(count - 1, Math.max(0, clip))] });
