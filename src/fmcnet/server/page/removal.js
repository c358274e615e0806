// Removing crops: counted by the service, confirmed once, for good.

import { nameOf, show, when } from "./cards.js";
import { $, call, count, isolated, make, state } from "./service.js";

const LONGEST = 12_000;
const SHOWN = 8;

/** What removes these entries. */
export function ofEntries(entries) {
  const queries = [];
  let query = new URLSearchParams();
  for (const { id } of entries) { // an address has a greatest length, so many ids take several requests
    if (query.toString().length + encodeURIComponent(id).length > LONGEST) {
      queries.push(query);
      query = new URLSearchParams();
    }
    query.append("id", id);
  }
  const ids = new Set(entries.map((entry) => entry.id));
  return { queries: [...queries, query], entries, gone: (entry) => ids.has(entry.id), note: "" };
}

/** What removes a whole track; `entries` are some of it, to show. */
export async function ofTrack(track, entries) {
  const { days } = await (await call(`v1/days?${new URLSearchParams({ track, limit: 1000 })}`)).json();
  const cameras = [...new Set(days.map((one) => isolated(one.camera ?? "unknown")))];
  const dates = new Set(days.map((one) => one.day));
  return {
    queries: [new URLSearchParams({ track })],
    entries,
    gone: (entry) => entry.track === track,
    note: `These are all crops of track ${isolated(track)}. `
      + `${cameras.length === 1 ? "Camera" : "Cameras"}: ${cameras.join(", ")}. ${count(dates.size, "day")}.`,
  };
}

const ask = async (query, more) =>
  (await call(`v1/entries?${new URLSearchParams([...query, ...Object.entries(more)])}`, { method: "DELETE" })).json();

/**
 * Count, ask, and remove; then call done(gone, said). Nothing goes without the answer "yes", and only what was counted.
 */
export async function askRemoval({ queries, entries, gone, note }, done) {
  let counts;
  try {
    counts = [];
    for (const query of queries) counts.push((await ask(query, { dry_run: true })).matched);
  } catch (error) {
    await done(() => false, error.message);
    return;
  }
  const total = counts.reduce((sum, n) => sum + n, 0);
  if (!total) {
    await done(gone, "Somebody else has removed these crops already.");
    return;
  }
  if (!(await confirmed(total, entries, note))) return;
  const notes = [];
  let removed = 0, said = "";
  try {
    for (const [at, query] of queries.entries()) {
      if (!counts[at]) continue;
      const told = await ask(query, { expect: counts[at] });
      removed += told.removed;
      notes.push(...told.notes);
    }
  } catch (error) {
    said = error.status === 409 ? " The gallery has changed meanwhile. Look again, then remove the rest." : ` ${error.message}`;
  }
  const texts = [`${count(removed, "crop is", "crops are")} removed.${said}`, ...notes];
  await done(said ? () => false : gone, texts.join(" "));
  document.dispatchEvent(new CustomEvent("changed"));
}

function confirmed(total, entries, note) {
  const box = $("remove-box");
  const items = entries.slice(0, SHOWN).map((entry) => {
    const image = make("img", { alt: "", hidden: true });
    const frame = make("div", { className: "frame" }, image, make("span", { className: "none", textContent: "no image" }));
    if (state.gallery?.pictures) show(entry, image, nameOf(entry));
    const facts = `${nameOf(entry)}, camera ${isolated(entry.camera ?? "unknown")}, ${when(entry.time)}`;
    return make("li", { title: entry.id }, frame, make("span", { textContent: facts }));
  });
  const more = total - items.length;
  $("remove-title").textContent = total === 1 ? "Remove this crop?" : `Remove ${total.toLocaleString()} crops?`;
  $("remove-what").replaceChildren(...items);
  $("remove-note").textContent = [
    more > 0 ? `And ${more.toLocaleString()} more.` : "",
    note,
    total === state.gallery?.entries ? "This is everything in the gallery." : "",
  ].filter(Boolean).join(" ");
  $("remove-yes").textContent = total === 1 ? "Remove for good" : `Remove ${total.toLocaleString()} for good`;
  box.returnValue = "no";
  box.showModal();
  return new Promise((resolve) => {
    box.addEventListener("close", () => {
      box.querySelectorAll("img").forEach((image) => image.src && URL.revokeObjectURL(image.src));
      resolve(box.returnValue === "yes");
    }, { once: true });
  });
}
