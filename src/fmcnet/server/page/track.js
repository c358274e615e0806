// A track as a strip of crops, by time.

import { card, fill, when } from "./cards.js";
import { askRemoval, ofEntries, ofTrack } from "./removal.js";
import { $, call, count, isolated, state } from "./service.js";

const MOST = 200;

let open = null;

/** Show a track; removed(gone, said) is called after a removal. */
export async function openTrack(track, removed) {
  open = { track, removed, entries: [] };
  $("track-title").textContent = `Track ${isolated(track)}`;
  $("track-about").textContent = "Looking…";
  fill($("track-hits"), []);
  $("track-remove").hidden = true;
  if (!$("track-box").open) $("track-box").showModal();
  try {
    const asked = new URLSearchParams({ track, limit: MOST });
    const { total, entries } = await (await call(`v1/entries?${asked}`)).json();
    if (open.track !== track) return;
    entries.sort((a, b) => (Date.parse(a.time) || 0) - (Date.parse(b.time) || 0) || a.id.localeCompare(b.id));
    open.entries = entries;
    fill($("track-hits"), entries.map((entry) => card(entry, null, { remove })));
    $("track-about").textContent = describe(total, entries);
    $("track-remove").hidden = !total || !state.may.includes("admin");
    $("track-remove").textContent = total === 1 ? "Remove this track…" : `Remove all ${total.toLocaleString()} of this track…`;
  } catch (error) {
    $("track-about").textContent = error.message;
  }
}

function describe(total, entries) {
  const times = entries.map((entry) => entry.time).filter(Boolean);
  const cameras = [...new Set(entries.map((entry) => isolated(entry.camera ?? "unknown")))];
  return [
    `${count(total, "crop")} by time${total > entries.length ? `; the first ${entries.length} added are shown` : ""}.`,
    times.length ? `${when(times[0])} to ${when(times.at(-1))}.` : "",
    cameras.length ? `${cameras.length === 1 ? "Camera" : "Cameras"}: ${cameras.join(", ")}.` : "",
  ].filter(Boolean).join(" ");
}

const remove = (entry) => askRemoval(ofEntries([entry]), async (gone, said) => {
  const { track, removed } = open;
  await removed(gone, said);
  await openTrack(track, removed);
  $("track-close").focus();
});

$("track-remove").addEventListener("click", async () => {
  try {
    await askRemoval(await ofTrack(open.track, open.entries), async (gone, said) => {
      $("track-box").close();
      await open.removed(gone, said);
    });
  } catch (error) {
    $("track-about").textContent = error.message;
  }
});
$("track-close").addEventListener("click", () => $("track-box").close());
