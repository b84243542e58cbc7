// Everything is put together.

function keys(event) {
  const { target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.matches('select, textarea, input[type=search]')) return;
  const moves = {
    ArrowLeft: () => goTo(state.clip - 1),
    ArrowRight: () => goTo(state.clip + 1),
    Home: () => update({ time: data.start }),
    End: () => update({ time: data.end }),
  };
  if (event.key === ' ' && !target.matches('button, input[type=checkbox]'))
    moves[' '] = () => play(!state.playing);
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
}

function facts() {
  const { clipSeconds, memorySeconds } = data;
  const more = [
    ['Length', clock(data.end - data.start)],
    [
      'Clips',
      `${count.toLocaleString()}${clipSeconds ? ` of ${size(clipSeconds)}` : ''}`,
    ],
  ];
  if (memorySeconds) more.push(['Memory', `${size(memorySeconds)} back`]);
  if (tracks) more.push(['People', new Set(tracks).size.toLocaleString()]);
  for (const [name, text] of [...data.facts, ...more]) {
    $('facts').append(make('div', {}, make('dt', {}, name), make('dd', {}, text)));
  }
}

async function start() {
  if (
    typeof DecompressionStream === 'undefined' ||
    typeof OffscreenCanvas === 'undefined'
  ) {
    throw new Error(
      'This browser is too old for the report: use one of 2023 or newer.',
    );
  }
  await load();
  facts();
  document.querySelector('main').hidden = false;
  startPlayer();
  startTimeline();
  startTables();
  document.addEventListener('keydown', keys);
  update({ time: Math.max(data.start, clips.time[0]) });
  document.body.dataset.ready = 'true';
}

start().catch((error) => {
  $('problem').hidden = false;
  $('problem').textContent = error.message;
  throw error;
});
