'use strict';
const element = id => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get('token');
const NAMES = {soundstorm: 'SoundStorm', autoregressive: 'Language models',
  both: 'Both, one after the other'};
const LEAD_SECONDS = 0.15;  // of audio that is scheduled ahead when playback starts
const REDRAW_MS = 500;
const POLL_MS = 300;  // between two reports of a job
let about, context;

// Requests

async function request(path, options = {}) {
  const headers = {...options.headers, ...(token ? {Authorization: `Bearer ${token}`} : {})};
  const response = await fetch(path, {...options, headers});
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try { message = JSON.parse(text).error; } catch (error) { /* no JSON: the text itself */ }
  throw new Error(message || `the server answers ${response.status}`);
}

const json = async (path, options) => (await request(path, options)).json();
const objectUrl = async path => URL.createObjectURL(await (await request(path)).blob());

function fail(error) {
  element('failure').textContent = error ? error.message : '';
  element('failure').hidden = !error;
}

// Recordings: an example, a file, or the microphone

function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, value) => [...value].forEach((c, n) => view.setUint8(at + n, c.charCodeAt(0)));
  text(0, 'RIFF'); view.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, 'data'); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, n) => view.setInt16(44 + 2 * n, Math.round(32767 * Math.max(-1, Math.min(1, x))), true));
  return new Blob([view.buffer], {type: 'audio/wav'});
}

async function toWav(blob) {  // what a browser recorded, at the models' rate
  const decoder = new AudioContext();
  const heard = await decoder.decodeAudioData(await blob.arrayBuffer());
  decoder.close();
  const seconds = Math.min(heard.duration, about.max_recording_seconds);
  const offline = new OfflineAudioContext(1, Math.floor(seconds * about.sample_rate), about.sample_rate);
  const source = offline.createBufferSource();
  source.buffer = heard;
  source.connect(offline.destination);
  source.start();
  return wav((await offline.startRendering()).getChannelData(0), about.sample_rate);
}

function makeSource(field) {
  field.append(element('source').content.cloneNode(true));
  const select = field.querySelector('select'), file = field.querySelector('input');
  const record = field.querySelector('.record'), player = field.querySelector('audio');
  const status = field.querySelector('[role=status]');
  let recorder = null;
  field.clip = null;

  async function use(id, text, seconds = 0) {
    Object.assign(field, {clip: id, seconds});
    status.textContent = text;
    player.hidden = !id;
    if (id) player.src = await objectUrl(`/api/clips/${id}/wav`);
  }
  async function send(blob, text) {
    fail();
    status.textContent = 'Sending …';
    try {
      const found = await json('/api/clips', {method: 'POST', body: blob});
      select.value = '';
      await use(found.id, `${text}, ${found.seconds.toFixed(1)} s`, found.seconds);
    } catch (error) { use(null, ''); fail(error); }
  }
  for (const example of about.examples) select.append(new Option(example.name, example.id));
  const choose = () => {
    const example = about.examples.find(({id}) => id === select.value);
    return example ? use(example.id, 'Example', example.seconds) : use(null, '');
  };
  select.addEventListener('change', choose);
  file.addEventListener('change', () => { if (file.files.length) send(file.files[0], 'Your file'); });

  const level = document.createElement('span');
  async function begin() {
    const media = await navigator.mediaDevices.getUserMedia({audio: true});
    const chunks = [], started = performance.now();
    recorder = new MediaRecorder(media);
    recorder.ondataavailable = event => chunks.push(event.data);
    recorder.onstop = async () => {
      clearInterval(clock);
      media.getTracks().forEach(track => track.stop());
      record.textContent = 'Record';
      record.setAttribute('aria-pressed', 'false');
      recorder = null;
      try { await send(await toWav(new Blob(chunks)), 'Your recording'); } catch (error) { fail(error); }
    };
    recorder.start();
    record.textContent = 'Stop recording';
    record.setAttribute('aria-pressed', 'true');
    status.textContent = 'Recording …';
    const clock = setInterval(() => {
      const seconds = (performance.now() - started) / 1000;
      level.textContent = ` ${seconds.toFixed(0)} s`;
      if (seconds >= about.max_recording_seconds && recorder) recorder.stop();
    }, 250);
    record.append(level);
  }
  record.addEventListener('click', async () => {
    if (recorder) return recorder.stop();
    fail();
    if (!navigator.mediaDevices) return fail(new Error('Browsers record only on localhost or over HTTPS: choose a file'));
    try { await begin(); } catch (error) { fail(new Error(`The microphone cannot be used: ${error.message}`)); }
  });
  if (about.examples.length) { select.value = about.examples[0].id; choose(); }
}

// Playback of samples while they arrive

class Player {
  constructor(rate, after = 0) {  // `after`: when the sound before this one ends
    this.rate = rate; this.after = after; this.next = 0; this.gaps = 0; this.gapSeconds = 0; this.sources = new Set();
    context = context || new AudioContext({sampleRate: rate});
    context.resume();
  }
  push(samples) {
    if (!samples.length) return;
    const buffer = context.createBuffer(1, samples.length, this.rate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    const now = context.currentTime;
    if (this.next && this.next < now) { this.gaps += 1; this.gapSeconds += now - this.next; }
    if (this.next < now) this.next = Math.max(now + LEAD_SECONDS, this.next ? 0 : this.after);
    source.start(this.next);
    this.next += buffer.duration;
    this.sources.add(source);
    source.onended = () => this.sources.delete(source);
  }
  stop() { for (const source of this.sources) source.stop(); this.sources.clear(); }
}

// Pictures

function fft(re, im) {  // in place; lengths are powers of two
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let size = 2; size <= n; size *= 2)
    for (let k = 0; k < size / 2; k++) {
      const c = Math.cos(2 * Math.PI * k / size), s = -Math.sin(2 * Math.PI * k / size);
      for (let a = k; a < n; a += size) {
        const b = a + size / 2, x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
        re[b] = re[a] - x; im[b] = im[a] - y; re[a] += x; im[a] += y;
      }
    }
}

function drawWave(canvas, samples, total, mark) {
  const {width, height} = canvas, paint = canvas.getContext('2d');
  paint.clearRect(0, 0, width, height);
  paint.fillStyle = getComputedStyle(canvas).color;
  for (let x = 0; x < width; x++) {
    let low = 0, high = 0;
    const from = Math.floor(x * total / width), to = Math.min(samples.length, Math.floor((x + 1) * total / width));
    for (let n = from; n < to; n++) { low = Math.min(low, samples[n]); high = Math.max(high, samples[n]); }
    if (from < samples.length) paint.fillRect(x, (1 - high) * height / 2, 1, Math.max(1, (high - low) * height / 2));
  }
  if (mark) { paint.fillStyle = getComputedStyle(document.body).color; paint.fillRect(mark / total * width, 0, 2, height); }
}

function drawSpectrogram(canvas, samples, total) {
  const {width, height} = canvas, size = 512, paint = canvas.getContext('2d');
  const image = paint.createImageData(width, height), re = new Float64Array(size), im = new Float64Array(size);
  for (let x = 0; x < width; x++) {
    const from = Math.floor((x + 0.5) * total / width) - size / 2;
    if (from + size > samples.length) break;
    for (let n = 0; n < size; n++) {
      re[n] = (samples[from + n] || 0) * (0.5 - 0.5 * Math.cos(2 * Math.PI * n / size));
      im[n] = 0;
    }
    fft(re, im);
    for (let y = 0; y < height; y++) {
      const bin = Math.floor((height - 1 - y) / height * size / 2);
      const decibel = 10 * Math.log10(re[bin] ** 2 + im[bin] ** 2 + 1e-9);
      const share = Math.max(0, Math.min(1, (decibel + 50) / 80)), at = 4 * (y * width + x);
      image.data[at] = 255 * Math.min(1, 1.6 * share); image.data[at + 1] = 255 * share ** 1.5;
      image.data[at + 2] = 255 * (share < 0.4 ? share : Math.max(0, 0.8 - share)); image.data[at + 3] = 255;
    }
  }
  paint.putImageData(image, 0, 0);
}

// Jobs

function addLink(place, text, url, name) {
  const link = document.createElement('a');
  Object.assign(link, {textContent: text, href: url, download: name, className: 'button'});
  place.append(link);
}

function describe(list, report, player) {
  const {request} = report, facts = {};
  if (request.kind !== 'codec') Object.assign(facts, {
    Seed: request.seed, Models: NAMES[request.acoustic], Temperature: request.temperature,
    'Seconds heard': request.prompt_seconds,
  });
  Object.assign(facts, {
    'Seconds of audio': report.seconds.toFixed(2), 'Seconds of computing': report.computing_seconds.toFixed(2),
    'Real-time factor': report.real_time_factor === null ? '' : report.real_time_factor.toFixed(2),
    'First new sound after': report.first_sound_seconds === null ? '' : `${report.first_sound_seconds.toFixed(2)} s`,
    'Gaps in playback': `${player.gaps} (${player.gapSeconds.toFixed(2)} s)`,
    'Bit rate': `${report.kbit_per_second.toFixed(2)} kbit/s`,
  });
  list.replaceChildren();
  for (const [name, value] of Object.entries(facts)) {
    const term = document.createElement('dt'), text = document.createElement('dd');
    term.textContent = name; text.textContent = value;
    list.append(term, text);
  }
}

const submit = content => json('/api/jobs', {
  method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(content)});

async function follow(id, show) {  // shows each report of a job until it ends; returns the last
  while (true) {
    const report = await json(`/api/jobs/${id}`);
    show(report);
    if (['done', 'stopped', 'failed'].includes(report.state)) return report;
    await new Promise(done => setTimeout(done, POLL_MS));
  }
}

async function run(content, title, after) {
  fail();
  const player = new Player(about.sample_rate, after);  // within the click, which lets it sound
  const {id} = await submit(content);
  const card = element('result').content.cloneNode(true).firstElementChild;
  const find = selector => card.querySelector(selector);
  find('h3').textContent = title;
  element('results').prepend(card);
  find('.stop').addEventListener('click', async () => {
    player.stop();
    try { await request(`/api/jobs/${id}`, {method: 'DELETE'}); } catch (error) { fail(error); }
  });
  let report = {seconds: 0, total_seconds: 0, prompt_seconds: 0};  // until the first one arrives
  let samples = new Float32Array(0), drawn = 0;  // `drawn`: when the pictures were drawn
  const total = () => Math.max(samples.length, report.total_seconds * about.sample_rate, 1);
  const draw = () => {
    drawn = performance.now();
    drawWave(find('.wave'), samples, total(), report.prompt_seconds * about.sample_rate);
    drawSpectrogram(find('.spectrogram'), samples, total());
  };
  const ended = follow(id, newest => {
    report = newest;
    find('progress').value = report.total_seconds ? report.seconds / report.total_seconds : 0;
    find('.state').textContent = {
      waiting: `Waiting, ${report.place} before this one`,
      running: `${report.seconds.toFixed(1)} of ${report.total_seconds.toFixed(1)} s`,
      done: 'Done', stopped: 'Stopped', failed: report.error,
    }[report.state];
    if (report.state === 'failed') find('.state').classList.add('warning');
  });
  const reader = (await request(`/api/jobs/${id}/pcm`)).body.getReader();
  let odd = new Uint8Array(0);
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const bytes = new Uint8Array(odd.length + part.value.length);
    bytes.set(odd); bytes.set(part.value, odd.length);
    const even = bytes.length & ~1, view = new DataView(bytes.buffer);
    odd = bytes.slice(even);
    const fresh = Float32Array.from({length: even / 2}, (_, n) => view.getInt16(2 * n, true) / 32767);
    player.push(fresh);
    const longer = new Float32Array(samples.length + fresh.length);
    longer.set(samples); longer.set(fresh, samples.length);
    samples = longer;
    if (performance.now() - drawn > REDRAW_MS) draw();
  }
  await ended;
  find('.stop').disabled = true;
  card.dataset.state = report.state;
  if (!samples.length) return null;
  draw();
  describe(find('dl'), report, player);
  const audio = find('audio'), url = await objectUrl(`/api/jobs/${id}/wav`);
  audio.src = url;
  audio.hidden = false;
  addLink(find('.links'), 'Download WAV', url, `${content.kind}-${content.seed ?? content.levels}.wav`);
  if (report.file_bytes) addLink(
    find('.links'), `Download .alm (${report.file_bytes.toLocaleString()} bytes)`,
    await objectUrl(`/api/jobs/${id}/alm`), 'recording.alm');
  card.dataset.samples = samples.length;
  card.dataset.gaps = player.gaps;
  card.dataset.peak = samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  return {url, report, end: player.next};
}

// A/B/X

const trial = {sounds: {}, x: 'a', right: 0, count: 0, sounding: null};

function nextTrial() { trial.x = crypto.getRandomValues(new Uint8Array(1))[0] & 1 ? 'a' : 'b'; }

function startTrials(original, coded) {
  Object.assign(trial, {sounds: {a: original, b: coded}, right: 0, count: 0});
  nextTrial();
  element('score').textContent = '';
  element('abx').hidden = false;
}

function makeTrials() {
  for (const button of document.querySelectorAll('[data-play]')) button.addEventListener('click', () => {
    if (trial.sounding) trial.sounding.pause();
    const name = button.dataset.play;
    trial.sounding = new Audio(trial.sounds[name === 'x' ? trial.x : name]);
    trial.sounding.play();
  });
  for (const button of document.querySelectorAll('[data-answer]')) button.addEventListener('click', () => {
    const right = button.dataset.answer === trial.x;
    trial.count += 1;
    trial.right += right ? 1 : 0;
    element('score').textContent = `${right ? 'Right' : 'Wrong'}: ${trial.right} of ${trial.count}. X is drawn again.`;
    nextTrial();
  });
}

// Original or generated

const guess = {right: 0, count: 0, truth: ''};

async function made(content) {  // the address of a sound that is not played yet
  const {id} = await submit(content);
  const report = await follow(id, ({seconds, total_seconds}) => {
    element('guess-state').textContent = `Making both: ${seconds.toFixed(1)} of ${total_seconds.toFixed(1)} s`;
  });
  if (report.state !== 'done') throw new Error(report.error || 'Stopped');
  return objectUrl(`/api/jobs/${id}/wav`);
}

function makeGuess() {
  const panel = element('guess'), state = element('guess-state'), sound = element('guess-sound');
  const form = panel.querySelector('form'), field = panel.querySelector('[data-source]');
  let sounds = {};
  form.addEventListener('submit', async event => {
    event.preventDefault();
    fail();
    element('guess-answers').hidden = sound.hidden = true;
    try {
      const content = contentOf(form, 'continue');
      content.seconds = Math.min(about.max_seconds, field.seconds - content.prompt_seconds);
      if (content.seconds < 0.2) throw new Error('The recording ends before the continuation begins: choose a longer one');
      // Both are made before either is heard, or the wait would tell which it is.
      sounds = {generated: await made(content), original: await made({kind: 'codec', clip: content.clip})};
      guess.truth = crypto.getRandomValues(new Uint8Array(1))[0] & 1 ? 'original' : 'generated';
      sound.src = sounds[guess.truth];
      element('guess-answers').hidden = sound.hidden = false;
      state.textContent = `The recording's first ${content.prompt_seconds} s, and then?`;
      sound.play().catch(() => {});  // a browser may want a click on the player itself
    } catch (error) { state.textContent = ''; fail(error); }
  });
  for (const button of panel.querySelectorAll('[data-guess]')) button.addEventListener('click', () => {
    const right = button.dataset.guess === guess.truth;
    guess.count += 1;
    guess.right += right ? 1 : 0;
    state.textContent = `${right ? 'Right' : 'Wrong'}, it is ${guess.truth}: ${guess.right} of ${guess.count}. Now you hear the other one.`;
    element('guess-answers').hidden = true;
    sound.src = sounds[guess.truth === 'original' ? 'generated' : 'original'];
    sound.play().catch(() => {});
    form.elements.seed.value = (Number(form.elements.seed.value) + 1) % 2 ** 32;
  });
}

// The page

function makeTabs() {
  const tabs = [...document.querySelectorAll('[role=tab]')];
  const choose = tab => {
    for (const other of tabs) {
      other.setAttribute('aria-selected', String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      element(other.getAttribute('aria-controls')).hidden = other !== tab;
    }
    tab.focus();
  };
  tabs.forEach((tab, n) => {
    tab.addEventListener('click', () => choose(tab));
    tab.addEventListener('keydown', event => {
      const to = {ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: tabs.length - 1}[event.key];
      if (to !== undefined) { event.preventDefault(); choose(tabs[(to + tabs.length) % tabs.length]); }
    });
  });
}

function contentOf(form, kind) {
  const content = {kind};
  for (const input of form.querySelectorAll('input[name]'))
    if (input.type !== 'radio') content[input.name] = Number(input.value);
    else if (input.checked) content.acoustic = input.value;
  for (const field of form.querySelectorAll('[data-source]')) {
    content[field.dataset.source] = field.clip;
    if (!field.clip) throw new Error(`${field.querySelector('legend').textContent}: choose an example or a file, or record`);
  }
  return content;
}

function makeForm(panel) {
  const form = panel.querySelector('form'), kind = panel.id;
  form.addEventListener('submit', async event => {
    event.preventDefault();
    try {
      const content = contentOf(form, kind);
      const title = kind === 'codec' ? `Codec, ${content.levels} levels`
        : `${kind === 'voice' ? 'New voice' : 'Continuation'}, seed ${content.seed}`;
      let found = null;
      for (const acoustic of content.acoustic === 'both' ? about.acoustic : [content.acoustic])
        found = await run({...content, acoustic}, title, found?.end);
      if (found && kind === 'codec') startTrials(await objectUrl(`/api/clips/${content.clip}/wav`), found.url);
    } catch (error) { fail(error); }
  });
}

async function start() {
  about = await json('/api/about');
  document.querySelectorAll('[data-source]').forEach(makeSource);
  const offered = field => about.acoustic.length > 1 && !field.closest('#guess') ? [...about.acoustic, 'both'] : about.acoustic;
  document.querySelectorAll('[data-paths]').forEach((field, n) => offered(field).forEach((name, k) => {
    const label = document.createElement('label'), input = document.createElement('input');
    Object.assign(input, {type: 'radio', name: `acoustic${n}`, value: name, checked: k === 0});
    label.append(input, NAMES[name]);
    field.append(label);
  }));
  const levels = document.querySelector('[name=levels]');
  Object.assign(levels, {max: about.levels, value: about.levels});
  const show = () => {
    const kbit = levels.value * about.kbit_per_second_and_level;
    element('kbit').textContent = `${levels.value} of ${about.levels} levels, ${kbit.toFixed(2)} kbit/s`;
  };
  levels.addEventListener('input', show);
  show();
  makeTabs();
  makeTrials();
  document.querySelectorAll('[role=tabpanel]:not(#guess)').forEach(makeForm);
  makeGuess();
  document.body.dataset.ready = 'yes';
}

start().catch(fail);
