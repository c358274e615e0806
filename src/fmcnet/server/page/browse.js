// Browse: what the gallery holds, by camera and day.

import { CropList, showList } from "./list.js";
import { $, call, count, isolated, make, state, toAnswer } from "./service.js";

const FARTHEST = 100_000;
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

let list = null;
let loaded = null;
let chosen = "";

export const browseView = { name: "browse", form: $("browse"), enter };

async function enter() {
  await showList(list);
  if (loaded !== state.gallery) await load();
}

/** The filters, as the service takes them. */
function filters() {
  const asked = new URLSearchParams();
  if ($("days-modality").value) asked.set("modality", $("days-modality").value);
  if ($("days-since").value) asked.set("since", midnight($("days-since").value));
  if ($("days-until").value) asked.set("until", midnight($("days-until").value, 1));
  return asked;
}

/** The start of a day in the browser's timezone, or of one some days later. */
function midnight(day, later = 0) {
  const date = new Date(`${day}T00:00`);
  date.setDate(date.getDate() + later);
  return date.toISOString();
}

const dayName = (day) =>
  day === null ? "time unknown" : new Date(`${day}T00:00`).toLocaleDateString([], { dateStyle: "medium" });

async function load() {
  $("days-about").textContent = "Counting…";
  let told;
  try {
    told = await (await call(`v1/days?${new URLSearchParams([...filters(), ["timezone", zone]])}`)).json();
  } catch (error) {
    $("days-about").textContent = error.message;
    return;
  }
  loaded = state.gallery;
  const cameras = groupByCamera(told.days);
  const known = new Set(told.days.map((one) => one.day));
  known.delete(null);
  $("days-about").textContent = told.total
    ? `${count(told.total, "crop")}, ${count(cameras.size - cameras.has(null), "camera")}, ${count(known.size, "day")}.`
      + (told.left_out ? ` ${count(told.left_out, "crop")} of earlier days not listed: set the dates.` : "")
      + (known.size && (cameras.has(null) || told.days.some((one) => one.day === null))
        ? " Find those without a camera or a time in All crops." : "")
    : "No crop passes these filters.";
  const opened = new Set([...$("days").querySelectorAll("details[open]")].map((box) => box.dataset.camera));
  const all = told.total ? [choice("All crops", told.total, {})] : [];
  const names = [...cameras.keys()].sort((a, b) => (a === null) - (b === null) || a.localeCompare(b, [], { numeric: true }));
  $("days").replaceChildren(...all, ...names.map((name) => cameraBox(name, cameras.get(name), names.length === 1 || opened.has(name ?? ""))));
}

function groupByCamera(days) {
  const groups = new Map();
  for (const one of days) groups.set(one.camera, [...(groups.get(one.camera) ?? []), one]);
  return groups;
}

function cameraBox(name, days, open) {
  const total = days.reduce((sum, one) => sum + one.entries, 0);
  const shown = name ?? "camera unknown";
  const items = days.map((one) => choice(dayName(one.day), one.entries, { camera: one.camera, day: one.day }, shown));
  if (name !== null && days.length > 1) items.unshift(choice("Every day", total, { camera: name }, shown));
  const summary = make("summary", {}, make("span", { textContent: shown }), make("span", { className: "count", textContent: total.toLocaleString() }));
  const box = make("details", { className: "camera-days", open }, summary,
    make("ul", {}, ...items.map((item) => make("li", {}, item))));
  box.dataset.camera = name ?? "";
  return box;
}

/** A button that lists its crops; plain text where no filter can say which they are. */
function choice(label, entries, which, camera) {
  const parts = [make("span", { textContent: label }), make("span", { className: "count", textContent: entries.toLocaleString() })];
  if (which.camera === null || which.day === null) {
    return make("p", { className: "choice" }, ...parts);
  }
  const button = make("button", { type: "button", className: "choice" }, ...parts);
  button.setAttribute("aria-pressed", String(JSON.stringify(which) === chosen));
  button.addEventListener("click", () => choose(button, which, camera ? `${label}, ${isolated(camera)}` : label));
  return button;
}

async function choose(button, which, label) {
  $("days").querySelectorAll("button[aria-pressed=true]").forEach((one) => one.setAttribute("aria-pressed", "false"));
  button.setAttribute("aria-pressed", "true");
  chosen = JSON.stringify(which);
  const asked = filters();
  if (which.camera) asked.append("camera", which.camera);
  if (which.day) {
    asked.set("since", midnight(which.day));
    asked.set("until", midnight(which.day, 1));
  }
  list = entryList(asked, label);
  await list.reload();
  if (document.body.dataset.view !== browseView.name) return;
  await showList(list);
  toAnswer();
}

/** Entries that match, fetched page by page, in the order of their adding. */
function entryList(asked, label) {
  const part = async (first, n) => {
    const query = new URLSearchParams([...asked, ["limit", n], ["offset", first]]);
    const told = await (await call(`v1/entries?${query}`)).json();
    describe(told.total);
    return told.entries;
  };
  const describe = (total) => {
    made.total = Math.min(total, FARTHEST);
    made.said = `${label}: ${count(total, "crop")}, in the order of their adding`
      + (total > FARTHEST ? `; the first ${FARTHEST.toLocaleString()} can be shown.` : ".");
  };
  const made = new CropList({
    part,
    reload: async (gone) => {
      try {
        await part(0, 1);
      } catch (error) {
        Object.assign(made, { said: error.message, bad: true });
      }
      if (gone) await load();
    },
  });
  return made;
}

$("browse").addEventListener("submit", (event) => event.preventDefault());
$("browse").addEventListener("change", async () => { // what was listed passed other filters
  chosen = "";
  list = null;
  await showList(null);
  await load();
});
