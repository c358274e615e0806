// Cards of crops: thumbnail, how sure, file name, time, camera, track; the rest behind "Details".

import { $, call, isolated, state } from "./service.js";

function percent(p) {
  const value = 100 * p;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value < 10 ? value.toFixed(1) : Math.min(value, 99.9).toFixed(value > 99 ? 1 : 0)} %`;
}

export function when(time) {
  if (!time) return "time unknown";
  return new Date(time).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}

/** The last part of a source; uploads of this page are stored as "upload:NAME". */
const fileName = (source) => (source ?? "").split(/[\\/]/).pop().replace(/^upload:/, "");

/** The moment that a field names, as the service takes it; one that the clocks skip or show twice is refused. */
export function instant({ value }) {
  const named = value.slice(0, 16), time = new Date(value), minutes = 60000;
  const local = (moment) => new Date(moment - new Date(moment).getTimezoneOffset() * minutes).toISOString().slice(0, 16);
  const twice = [-60, -30, 30, 60].some((shift) => local(+time + shift * minutes) === named);
  if (!twice && local(+time) === named) return time.toISOString();
  throw new Error(`${named.replace("T", " ")} ${twice ? "occurs twice" : "does not exist"} where the clocks change: choose another time`);
}

/** What a person would call this crop. */
export function nameOf(entry) {
  const name = fileName(entry.source);
  return name ? isolated(name) : `the crop of ${when(entry.time)}`;
}

/**
 * One card.
 *
 * entry: as the service gives it, with similarity and probability in an answer. rank: its place, or null.
 * act: what its controls do: track(entry), remove(entry), pick(entry, checked); those not given have no control.
 * picked: whether it is selected.
 */
export function card(entry, rank, act = {}, picked = false) {
  const item = $("hit").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  const name = rank === null ? nameOf(entry) : `hit ${rank}`;
  const put = (row, value) => {
    part(row).textContent = value ?? "";
    part(row).parentElement.hidden = value === null || value === "" || value === undefined;
  };
  item.dataset.id = entry.id;
  part("rank").textContent = rank ?? "";
  part("rank").hidden = rank === null;
  put("file-name", fileName(entry.source));
  put("time", entry.time ? when(entry.time) : "unknown");
  put("camera", entry.camera ?? "unknown");
  put("of-track", entry.track);
  put("pid", entry.pid);
  put("kind", entry.modality === "visible" ? "visible light" : "infrared");
  put("tags", entry.tags.join(", "));
  put("source", entry.source);
  put("id", entry.id);
  part("more").querySelector("summary").setAttribute("aria-label", `Details of ${name}`);
  drawCertainty(entry, part);

  const control = (button, allowed, label, onClick) => {
    button.hidden = !allowed;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", onClick);
  };
  const admin = state.may.includes("admin");
  control(part("track"), act.track && entry.track !== null, `Open the track of ${name}`, () => act.track(entry));
  control(part("remove"), act.remove && admin, `Remove ${name}`, () => act.remove(entry));
  part("pick").hidden = !act.pick || !admin;
  const box = part("pick").querySelector("input");
  box.checked = picked;
  box.setAttribute("aria-label", `Select ${name}`);
  box.addEventListener("change", () => act.pick(entry, box.checked));
  if (state.gallery?.pictures) show(entry, item.querySelector("img"), name);
  return item;
}

function drawCertainty(entry, part) {
  part("sure").hidden = part("bar").hidden = entry.similarity === undefined;
  if (entry.similarity === undefined) return;
  const known = typeof entry.probability === "number";
  part("percent").textContent = known ? percent(entry.probability) : entry.similarity.toFixed(3);
  part("meaning").textContent = (known ? `probable, similarity\u00a0${entry.similarity.toFixed(3)}` : "similarity")
    + (entry.pooled > 1 ? ` of ${entry.pooled}\u00a0crops pooled` : "");
  part("bar").classList.toggle("plain", !known);
  part("bar").firstElementChild.style.width = `${100 * Math.max(0, known ? entry.probability : entry.similarity)}%`;
}

/** Load the thumbnail of an entry into an <img>, where there is one. */
export async function show(entry, image, name, trials = 5) {
  try {
    const reply = await call(`v1/images/${encodeURIComponent(entry.id)}`);
    image.src = URL.createObjectURL(await reply.blob());
    image.alt = `${name}: ${entry.modality}, camera ${isolated(entry.camera ?? "unknown")}, ${when(entry.time)}`;
    image.hidden = false;
    image.nextElementSibling.hidden = true;
  } catch (error) { // 503: busy, it asks to come back; 404: there is none of this entry
    if (error.status === 404) image.nextElementSibling.textContent = error.what;
    if (error.status !== 503 || trials === 1) return;
    await new Promise((resolve) => setTimeout(resolve, 500));
    await show(entry, image, name, trials - 1);
  }
}

/** Put cards into a list, and let go of the thumbnails that were there. */
export function fill(list, cards) {
  list.querySelectorAll("img").forEach((image) => image.src && URL.revokeObjectURL(image.src));
  list.replaceChildren(...cards);
}
