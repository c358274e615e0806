"use strict";
// The page of `fmcnet serve`: asks the service that it came from, and nobody else.

const PAGE_SIZE = 12;
const MOST_HITS = 120;
const $ = (id) => document.getElementById(id);

const state = { files: [], hits: [], page: 0, gallery: null, key: "", asking: null, said: "" };

// ---- the service ----

class Refused extends Error {
  constructor(status, error) {
    super(error.do ? `${error.what} (${error.where}): ${error.do}.` : error.what);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  let reply;
  try {
    reply = await fetch(`.${path}`, { ...options, headers, cache: "no-store" }); // wherever a proxy puts the page
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { what: "The service does not answer. Is it running?" });
  }
  if (reply.ok) return reply;
  let said = { what: `The service answered ${reply.status}.` };
  try {
    said = (await reply.json()).error ?? said;
  } catch { /* not from the service itself */ }
  if (reply.status === 401) showKey(state.key ? "This API key is not known." : "");
  throw new Refused(reply.status, said);
}

async function connect() {
  try {
    state.gallery = await (await call("/v1/gallery")).json();
  } catch (error) {
    $("about").textContent = error.status === 401 ? "An API key is needed." : error.message;
    $("about").classList.toggle("bad", error.status !== 401);
    return;
  }
  const { entries, calibrated, cameras, key } = state.gallery;
  const who = key ? ` Key: ${key}.` : "";
  $("about").classList.remove("bad");
  $("about").textContent =
    `${entries.toLocaleString()} ${entries === 1 ? "crop" : "crops"} to search.` +
    (calibrated ? "" : " The model is not calibrated: similarities, no probabilities.") + who;
  $("least-label").hidden = !calibrated;
  $("key-form").hidden = true;
  cameras.forEach((name) => addCamera(name, false));
  ready();
}

function showKey(said) {
  $("key-form").hidden = false;
  if (said) {
    $("about").textContent = said;
    $("about").classList.add("bad");
  }
  $("key").focus();
}

// ---- the query ----

function take(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (!images.length) {
    if (files.length) say("That is no image: choose a JPEG or PNG of one person.", true);
    return;
  }
  const most = state.gallery ? state.gallery.images_at_once : 64;
  state.files = [...state.files, ...images].slice(0, most);
  drawPreviews();
  say("");
}

function drawPreviews() {
  const box = $("previews");
  box.querySelectorAll("img").forEach((image) => URL.revokeObjectURL(image.src));
  box.replaceChildren(
    ...state.files.map((file, at) => {
      const item = document.createElement("div");
      item.setAttribute("role", "listitem");
      const image = document.createElement("img");
      image.src = URL.createObjectURL(file);
      image.alt = `Query image ${at + 1}`;
      const away = document.createElement("button");
      away.type = "button";
      away.textContent = "×";
      away.setAttribute("aria-label", `Take query image ${at + 1} away`);
      away.addEventListener("click", () => {
        state.files.splice(at, 1);
        drawPreviews();
        $("file").focus();
      });
      item.append(image, away);
      return item;
    }),
  );
  const some = state.files.length > 0;
  $("drop").classList.toggle("has", some);
  $("file-label").textContent = some ? "Add another image of this person" : "Choose images";
  ready();
}

function ready() {
  $("go").disabled = !state.files.length || !state.gallery;
}

// ---- filters ----

function addCamera(name, checked) {
  const there = [...$("camera-list").querySelectorAll("input")].find((box) => box.value === name);
  if (there) {
    there.checked = there.checked || checked;
    return;
  }
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = name;
  box.checked = checked;
  const text = document.createElement("span");
  text.textContent = name;
  label.append(box, text);
  $("camera-list").append(label);
}

const chosenCameras = () => [...$("camera-list").querySelectorAll("input:checked")].map((box) => box.value);

function countFilters() {
  const set = [chosenCameras().length, $("since").value, $("until").value, $("entry-modality").value,
    $("group").value, Number($("least").value)].filter(Boolean).length;
  $("filter-count").textContent = set ? `(${set} set)` : "";
  $("least-out").textContent = Number($("least").value) ? `${$("least").value} %` : "none";
}

function clearFilters() {
  $("camera-list").querySelectorAll("input").forEach((box) => { box.checked = false; });
  for (const id of ["since", "until", "entry-modality", "group"]) $(id).value = "";
  $("least").value = 0;
  countFilters();
}

function question() {
  const form = new FormData();
  state.files.forEach((file) => form.append("images", file, file.name || "pasted.png"));
  form.append("modality", document.querySelector("input[name=modality]:checked").value);
  form.append("top", Math.min(MOST_HITS, state.gallery.top_at_most));
  chosenCameras().forEach((name) => form.append("camera", name));
  for (const id of ["since", "until"]) {
    if ($(id).value) form.append(id, new Date($(id).value).toISOString());
  }
  if ($("entry-modality").value) form.append("entry_modality", $("entry-modality").value);
  if ($("group").value) form.append("group", $("group").value);
  if (Number($("least").value)) form.append("min_probability", Number($("least").value) / 100);
  return form;
}

// ---- the answer ----

async function search() {
  if ($("go").disabled) return;
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  say("Searching…");
  $("hint").hidden = true;
  document.body.classList.add("busy");
  try {
    const reply = await call("/v1/search", { method: "POST", body: question(), signal: asking.signal });
    const answer = await reply.json();
    state.hits = answer.groups.length ? answer.groups.map(ofGroup) : answer.hits;
    state.page = 0;
    const n = state.hits.length;
    const what = { track: n === 1 ? "track" : "tracks", pid: n === 1 ? "person" : "persons" }[$("group").value]
      ?? (n === 1 ? "crop" : "crops");
    state.said = answer.nobody && answer.compared ? "Nobody in this gallery reaches what was asked."
      : n ? `The ${n} nearest ${what}, of ${answer.compared.toLocaleString()} compared, most similar first.`
        : "There is nothing to compare with: no entry passes the filters.";
    say(state.said);
    $("notes").replaceChildren(...answer.notes.map((note) => {
      const item = document.createElement("li");
      item.textContent = note;
      return item;
    }));
    answer.hits.forEach((hit) => hit.camera && addCamera(hit.camera, false));
    drawPage();
    $("answer").focus({ preventScroll: true });
    if (matchMedia("(max-width: 800px)").matches) $("answer").scrollIntoView({ block: "start" });
  } catch (error) {
    if (error.name === "AbortError") return;
    state.hits = [];
    drawPage();
    say(error.message, true);
  } finally {
    if (state.asking === asking) document.body.classList.remove("busy");
  }
}

// The best crop of a track or person, with what ranks the group.
function ofGroup({ matches, similarity, probability, pooled }) {
  return { ...matches[0], similarity, probability, pooled };
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
  if (bad) $("notes").replaceChildren();
}

function drawPage() {
  const pages = Math.max(1, Math.ceil(state.hits.length / PAGE_SIZE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const first = state.page * PAGE_SIZE;
  fill($("hits"), state.hits.slice(first, first + PAGE_SIZE), first + 1);
  $("hits").start = first + 1;
  $("paging").hidden = pages === 1;
  $("page-of").textContent = `Page ${state.page + 1} of ${pages}`;
  $("back").disabled = state.page === 0;
  $("next").disabled = state.page === pages - 1;
}

function turn(by) {
  state.page += by;
  drawPage();
  $("answer").scrollIntoView({ block: "start" });
  say(`${state.said} ${$("page-of").textContent.replaceAll(" ", "\u00a0")}.`);
}

function fill(list, entries, rank) {
  list.querySelectorAll("img").forEach((image) => image.src && URL.revokeObjectURL(image.src));
  list.replaceChildren(...entries.map((entry, at) => card(entry, rank === null ? null : rank + at)));
}

function card(entry, rank) {
  const item = $("hit").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  const name = rank === null ? `Crop of ${when(entry.time)}` : `Hit ${rank}`;
  part("rank").textContent = rank ?? "";
  part("rank").hidden = rank === null;
  part("camera").textContent = entry.camera ?? "unknown";
  part("time").textContent = when(entry.time);
  part("kind").textContent = entry.modality === "visible" ? "visible light" : "infrared";
  part("pid").textContent = entry.pid ?? "";
  part("pid-row").hidden = entry.pid === null;
  part("id").textContent = entry.id;
  part("id").title = entry.id;
  const known = typeof entry.probability === "number";
  if (entry.similarity === undefined) {
    part("sure").hidden = true;
    part("bar").hidden = true;
  } else {
    part("percent").textContent = known ? percent(entry.probability) : entry.similarity.toFixed(3);
    part("meaning").textContent = (known ? `probable, similarity\u00a0${entry.similarity.toFixed(3)}` : "similarity")
      + (entry.pooled > 1 ? ` of ${entry.pooled}\u00a0crops pooled` : "");
    part("bar").classList.toggle("plain", !known);
    part("bar").firstElementChild.style.width =
      `${100 * Math.max(0, known ? entry.probability : entry.similarity)}%`;
  }
  const track = part("track");
  track.hidden = entry.track === null || rank === null;
  track.setAttribute("aria-label", `Open the track of ${name}`);
  track.addEventListener("click", () => openTrack(entry.track));
  const remove = part("remove");
  remove.hidden = !state.gallery.may.includes("admin");
  remove.setAttribute("aria-label", `Remove ${name}`);
  remove.addEventListener("click", () => askRemoval(entry, item, remove));
  if (state.gallery.pictures) show(entry, item.querySelector("img"), name);
  return item;
}

async function show(entry, image, name) {
  try {
    const reply = await call(`/v1/images/${encodeURIComponent(entry.id)}`);
    image.src = URL.createObjectURL(await reply.blob());
    image.alt = `${name}: ${entry.modality}, camera ${entry.camera ?? "unknown"}, ${when(entry.time)}`;
    image.hidden = false;
    image.parentElement.querySelector(".none").hidden = true;
  } catch { /* no picture of this one */ }
}

function percent(p) {
  const value = 100 * p;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value < 10 ? value.toFixed(1) : Math.min(value, 99.9).toFixed(value > 99 ? 1 : 0)} %`;
}

function when(time) {
  if (!time) return "time unknown";
  return new Date(time).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}

// ---- a track, and removal ----

async function openTrack(track) {
  $("track-title").textContent = `Track ${track}`;
  $("track-about").textContent = "Looking…";
  $("track-hits").replaceChildren();
  $("track-box").showModal();
  try {
    const reply = await call(`/v1/entries?track=${encodeURIComponent(track)}&limit=200`);
    const { total, entries } = await reply.json();
    entries.sort((a, b) => (a.time ?? "").localeCompare(b.time ?? "") || a.id.localeCompare(b.id));
    fill($("track-hits"), entries, null);
    $("track-about").textContent =
      `${total} ${total === 1 ? "crop" : "crops"}, by time` + (total > entries.length ? `; ${entries.length} shown.` : ".");
  } catch (error) {
    $("track-about").textContent = error.message;
  }
}

function askRemoval(entry, item, button) {
  const box = $("remove-box");
  const picture = item.querySelector(".frame").cloneNode(true);
  const facts = document.createElement("p");
  facts.textContent = `${entry.id}, camera ${entry.camera ?? "unknown"}, ${when(entry.time)}`;
  $("remove-what").replaceChildren(picture, facts);
  box.returnValue = "no";
  box.addEventListener("close", () => {
    if (box.returnValue === "yes") remove(entry, item);
    else button.focus();
  }, { once: true });
  box.showModal();
}

async function remove(entry, item) {
  try {
    await call(`/v1/entries/${encodeURIComponent(entry.id)}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) {
      say(error.message, true);
      return;
    }
  }
  state.hits = state.hits.filter((hit) => hit.id !== entry.id);
  state.gallery.entries -= 1;
  if ($("track-box").open) item.remove();
  drawPage();
  say(`The entry ${entry.id} is removed.`);
  $("answer").focus({ preventScroll: true });
  connect();
}

// ---- what the visitor does ----

$("ask").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  $("key").value = "";
  connect();
});
for (const kind of ["dragover", "dragenter"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    take(event.clipboardData.files);
  }
});
$("camera-add").addEventListener("click", () => {
  const name = $("camera-name").value.trim();
  if (name) addCamera(name, true);
  $("camera-name").value = "";
  countFilters();
});
$("camera-name").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); $("camera-add").click(); }
});
$("filters").addEventListener("input", countFilters);
$("clear").addEventListener("click", clearFilters);
$("back").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
$("track-close").addEventListener("click", () => $("track-box").close());

$("zone").textContent = `Times are in the zone ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`;
countFilters();
connect();
