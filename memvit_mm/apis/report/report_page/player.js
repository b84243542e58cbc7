// The video or its pictures, boxes over it, and what is seen in it now.

const video = $('video');
const picture = $('picture');
let moving = false; // whether the video itself is shown

function showVideo() {
  video.src = URL.createObjectURL(
    new Blob([bytesOf(data.clip.data)], { type: data.clip.type }),
  );
  video.addEventListener('error', () => {
    // then pictures are better than nothing
    moving = false;
    video.hidden = true;
    showPictures();
    update({ time: state.time, playing: false });
  });
  video.addEventListener('ended', () => update({ playing: false, time: data.end }));
  video.addEventListener('loadedmetadata', () => {
    ratio(video.videoWidth, video.videoHeight);
    video.currentTime = state.time;
  });
  moving = true;
  video.hidden = false;
}

function showPictures() {
  const some = data.frames.times.length > 0;
  picture.hidden = !some;
  $('viewer').classList.toggle('blind', !some && !people);
  if (!some) return;
  picture.addEventListener(
    'load',
    () => ratio(picture.naturalWidth, picture.naturalHeight),
    { once: true },
  );
}

function ratio(width, height) {
  const [wide, high] = data.size || [width, height];
  if (wide && high) $('stage').style.setProperty('--ratio', wide / high);
}

let shown = -1;
function drawPicture() {
  if (moving) {
    const wanted = Math.min(
      state.time,
      Math.max(0, (video.duration || Infinity) - 0.04),
    );
    if (!state.playing && Math.abs(video.currentTime - wanted) > 0.02)
      video.currentTime = wanted;
    return;
  }
  const place = pictureAt(state.time);
  if (place < 0 || place === shown) return;
  shown = place;
  const time = data.frames.times[place];
  picture.src = `data:image/jpeg;base64,${data.frames.jpegs[place]}`;
  picture.alt = `The video at ${clock(time)}`;
  $('caption').textContent = `Picture at ${clock(time)}`;
}

// ------------------------------------------------------------------ boxes

function describe(row, k) {
  return groups[0]
    .best(row, k)
    .map(({ c, score }) => `${groups[0].names[c]} ${score.toFixed(2)}`);
}

function drawBoxes() {
  const boxes = $('boxes');
  if (boxes.matches(':hover')) tip(null);
  boxes.replaceChildren();
  if (!people || !$('show-boxes').checked) return;
  const [width, height] = data.size;
  for (let row = first[state.clip]; row < first[state.clip + 1]; row++) {
    const [x1, y1, x2, y2] = people.boxes.subarray(4 * row, 4 * row + 4);
    const chosen = tracks && state.person === whose(row);
    const [one, ...others] = describe(row, 2);
    const text = [one, ...others].join(', ');
    const label = make('span', {}, `${whose(row)} ${one}`);
    for (const other of others) label.append(make('i', {}, `, ${other}`));
    const box = make(
      'button',
      {
        class: ['box', chosen && 'chosen', y1 / height > 0.1 && 'above']
          .filter(Boolean)
          .join(' '),
        'aria-label': `${nameOf(row)}: ${text}`,
        style: {
          left: `${(100 * x1) / width}%`,
          top: `${(100 * y1) / height}%`,
          width: `${(100 * (x2 - x1)) / width}%`,
          height: `${(100 * (y2 - y1)) / height}%`,
          '--who': colourOf(row),
        },
        onclick: () =>
          tracks && update({ person: state.person === whose(row) ? null : whose(row) }),
        onpointermove: (event) => tip(event, personTip(row)),
        onpointerleave: () => tip(null),
      },
      label,
    );
    boxes.append(box);
  }
}

function personTip(row) {
  const lines = [
    make('strong', {}, `${nameOf(row)} at ${clock(clips.time[clipOf[row]])}`),
  ];
  for (const { c, score } of groups[0].best(row, 6))
    lines.push(pair(groups[0].names[c], digits(score)));
  lines.push(pair('a person, surely', (people.sure[row] / 1000).toFixed(2)));
  return lines;
}

// ---------------------------------------------------------- what is seen now

function bars(group, row, k) {
  const list = make('div', { class: 'bars' });
  const scale = (score) => `${(100 * (score - group.low)) / (group.step * 10000)}%`;
  for (const { c, score } of group.best(row, k)) {
    const alone = state.without ? group.score(row, c, 'without') : null;
    const bar = make(
      'div',
      { class: 'bar' },
      make('i', { style: { width: scale(score) } }),
    );
    if (alone !== null) bar.append(make('b', { style: { left: scale(alone) } }));
    const text =
      alone === null
        ? digits(score)
        : `${digits(score)}, without memory ${digits(alone)}`;
    bar.title = text;
    list.append(
      make('div', { class: 'name', title: group.names[c] }, group.names[c]),
      bar,
      make('div', { class: 'value', 'aria-label': text }, digits(score)),
    );
  }
  return list;
}

function drawNow() {
  const i = state.clip;
  $('now-time').textContent = clock(clips.time[i]);
  const frames = `frames of ${clock(clips.first[i])} to ${clock(clips.last[i])}`;
  $('now-clip').textContent = `Clip ${i + 1} of ${count.toLocaleString()}, ${frames}`;
  const parts = [];
  for (const group of groups) {
    if (!people) {
      if (groups.length > 1) parts.push(make('h3', {}, group.title));
      parts.push(bars(group, first[i], groups.length > 1 ? 5 : 8));
      continue;
    }
    if (first[i] === first[i + 1])
      parts.push(make('p', { class: 'note' }, 'Nobody is seen.'));
    for (let row = first[i]; row < first[i + 1]; row++) {
      parts.push(
        make(
          'h3',
          { style: { '--who': colourOf(row) } },
          make('span', { class: 'chip' }),
          nameOf(row),
        ),
        bars(group, row, 4),
      );
    }
  }
  if (comparing() && state.without && first[i] < first[i + 1]) {
    parts.push(
      make('p', { class: 'note key' }, make('i'), 'with memory', make('b'), 'without'),
    );
  }
  $('now-list').replaceChildren(...parts);
}

// ---------------------------------------------------------------- controls

let before = 0;
function step(now) {
  if (!state.playing) return;
  const speed = Number($('speed').value);
  const time = moving
    ? video.currentTime
    : state.time + Math.min(0.25, (now - before) / 1000) * speed;
  before = now;
  update({ time });
  if (state.time >= data.end) update({ playing: false });
  else requestAnimationFrame(step);
}

function play(playing) {
  if (playing && state.time >= data.end - 0.05) update({ time: data.start });
  update({ playing });
  if (moving) {
    video.playbackRate = Math.min(16, Number($('speed').value)); // no browser is faster
    if (playing) video.play().catch(() => update({ playing: false }));
    else video.pause();
  }
  if (playing) {
    before = performance.now();
    requestAnimationFrame(step);
  }
}

function startPlayer() {
  if (data.size) ratio(...data.size);
  if (data.clip) showVideo();
  else showPictures();
  const scrubber = $('scrubber');
  scrubber.min = data.start;
  scrubber.max = data.end;
  scrubber.addEventListener('input', () => update({ time: Number(scrubber.value) }));
  $('back').addEventListener('click', () => goTo(state.clip - 1));
  $('forth').addEventListener('click', () => goTo(state.clip + 1));
  $('play').addEventListener('click', () => play(!state.playing));
  $('speed').addEventListener('change', () => {
    video.playbackRate = Math.min(16, Number($('speed').value));
  });
  $('boxes-choice').hidden = !people;
  $('show-boxes').addEventListener('change', drawBoxes);
  let drawn = null;
  state.told.push((change) => {
    if ('time' in change) {
      scrubber.value = state.time;
      scrubber.setAttribute('aria-valuetext', clock(state.time));
      $('clock').textContent = `${clock(state.time)} / ${clock(data.end)}`;
      if (moving && state.playing && Math.abs(video.currentTime - state.time) > 0.3)
        video.currentTime = state.time;
      drawPicture();
    }
    if (drawn !== state.clip || 'person' in change || 'without' in change) {
      drawn = state.clip;
      drawBoxes();
      drawNow();
    }
    if ('playing' in change) {
      $('play').classList.toggle('playing', state.playing);
      $('play').setAttribute('aria-label', state.playing ? 'Pause' : 'Play');
    }
  });
}
