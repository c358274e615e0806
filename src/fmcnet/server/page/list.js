// The list of crops beside a view: an answer that is here, or entries that are fetched page by page.

import { card, fill } from "./cards.js";
import { askRemoval, ofEntries } from "./removal.js";
import { $, make, say, state } from "./service.js";
import { openTrack } from "./track.js";

const PAGE_SIZE = 12;

let shown;

/** Crops and what is known of their display; `part(first, n)` gives some of them, at once or by a promise. */
export class CropList {
  constructor({ total = 0, part = () => [], said = "", bad = false, notes = [], ranked = false, reload = () => {} } = {}) {
    Object.assign(this, { total, part, said, bad, notes, ranked, reload, page: 0, entries: [], chosen: new Map() });
  }

  get pages() {
    return Math.max(1, Math.ceil(this.total / PAGE_SIZE));
  }
}

/** Show a list; null: the hint. */
export async function showList(list) {
  shown = list ?? new CropList();
  $("hint").hidden = list !== null;
  $("notes").replaceChildren(...shown.notes.map((note) => make("li", { textContent: note })));
  if (await draw()) say(shown.said, shown.bad);
}

/** Whether the list was drawn, and is still the one to show. */
async function draw() {
  const list = shown;
  list.page = Math.min(Math.max(list.page, 0), list.pages - 1);
  const first = list.page * PAGE_SIZE;
  try {
    list.entries = await list.part(first, PAGE_SIZE);
  } catch (error) {
    if (list === shown) say(error.message, true);
    return false;
  }
  if (list !== shown) return false;
  const act = { track: (entry) => openTrack(entry.track, afterRemoval), remove: (entry) => remove([entry]), pick };
  fill($("hits"), list.entries.map((entry, at) =>
    card(entry, list.ranked ? first + at + 1 : null, act, list.chosen.has(entry.id))));
  $("hits").start = first + 1;
  $("paging").hidden = list.pages === 1;
  $("page-of").textContent = `Page ${list.page + 1} of ${list.pages}`;
  $("back").disabled = list.page === 0;
  $("next").disabled = list.page === list.pages - 1;
  document.querySelectorAll(".bulk").forEach((bar) => { bar.hidden = !list.entries.length || !state.may.includes("admin"); });
  drawChosen();
  return true;
}

async function turn(by) {
  shown.page += by;
  if (!(await draw())) return;
  $("answer").scrollIntoView({ block: "start" });
  say(`${shown.said} ${$("page-of").textContent.replaceAll(" ", "\u00a0")}.`);
}

// ---- selecting and removing ----

function pick(entry, checked) {
  if (checked) shown.chosen.set(entry.id, entry);
  else shown.chosen.delete(entry.id);
  drawChosen();
}

function drawChosen() {
  const { chosen, entries } = shown;
  const picked = entries.filter((entry) => chosen.has(entry.id)).length;
  document.querySelectorAll(".bulk").forEach((bar) => {
    const all = bar.querySelector("input");
    all.checked = picked > 0 && picked === entries.length;
    all.indeterminate = picked > 0 && picked < entries.length;
    bar.querySelector(".picked").textContent = chosen.size ? `${chosen.size} selected` : "";
    bar.querySelector("button").hidden = !chosen.size;
  });
}

function pickAll(checked) {
  shown.entries.forEach((entry) => pick(entry, checked));
  $("hits").querySelectorAll(".pick input").forEach((box) => { box.checked = checked; });
}

const remove = (entries) => askRemoval(ofEntries(entries), afterRemoval);

/** Forget removed entries; gone(entry) tells which. */
async function afterRemoval(gone, said) {
  const list = shown;
  list.chosen.forEach((entry, id) => gone(entry) && list.chosen.delete(id));
  await list.reload(gone);
  if (list === shown) await draw();
  say(said);
  $("answer").focus({ preventScroll: true });
}

for (const place of ["before", "after"]) {
  const bar = $("bulk").content.firstElementChild.cloneNode(true);
  $("hits")[place](bar);
  if (place === "before") bar.querySelector(".picked").setAttribute("role", "status"); // read out once
  bar.querySelector("input").addEventListener("change", (event) => pickAll(event.target.checked));
  bar.querySelector("button").addEventListener("click", () => remove([...shown.chosen.values()]));
}
$("back").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));

/** An answer that is here in whole. */
export function listOf(items, options) {
  const list = new CropList({
    ...options,
    total: items.length,
    part: (first, n) => items.slice(first, first + n),
    reload: (gone) => {
      items.splice(0, items.length, ...items.filter((entry) => !gone(entry)));
      list.total = items.length;
    },
  });
  return list;
}

