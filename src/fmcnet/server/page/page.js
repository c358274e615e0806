// The page of `fmcnet serve`: asks the service that it came from, and nobody else.

import { addView } from "./add.js";
import { browseView } from "./browse.js";
import { addCamera, searchView } from "./search.js";
import { $, call, count, isolated, say, state } from "./service.js";

const VIEWS = [searchView, browseView, addView];
const NEEDS = { search: "read", browse: "read", add: "write" };
let current = searchView;

// ---- the service and the key ----

async function look() {
  state.gallery = await (await call("v1/gallery")).json();
  $("about").textContent = describe(state.gallery);
  state.gallery.cameras.forEach((name) => addCamera(name));
}

async function connect() {
  try {
    await look();
    state.may = state.gallery.may;
  } catch (error) {
    state.gallery = null;
    state.may = error.status === 403 && state.key ? ["write"] : []; // a key that is known, and may not read
    $("about").textContent = state.may.length ? "This key may add crops only. A search needs the scope read." : error.message;
    $("about").classList.toggle("bad", error.status !== 401 || Boolean(state.key));
    if (!state.may.length) return;
  }
  $("about").classList.remove("bad");
  const asked = !$("key-form").hidden;
  $("key-form").hidden = true;
  $("key-change").hidden = !state.key;
  for (const { name } of VIEWS) {
    document.querySelector(`nav a[href="#${name}"]`).hidden = !state.may.includes(NEEDS[name]);
  }
  searchView.ready();
  await enter();
  if (asked) current.form.querySelector("input, summary").focus(); // the key's field, which had it, is gone
}

function describe({ entries, calibrated, key }) {
  return `${count(entries, "crop")} to search.`
    + (calibrated ? "" : " The model is not calibrated: similarities, no probabilities.")
    + (key ? ` Key: ${isolated(key)}.` : "");
}

function askForKey() {
  $("key-form").hidden = false;
  $("key-change").hidden = true;
  $("key").focus();
}

document.addEventListener("locked", (event) => {
  $("about").textContent = event.detail;
  $("about").classList.toggle("bad", Boolean(state.key));
  askForKey();
});
document.addEventListener("changed", () => {
  if (state.gallery) look().catch(() => {}); // what was done is said already
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("key").value = "";
  if (/^[ -~]*$/.test(key)) { // no other can be sent
    state.key = key;
    connect();
    return;
  }
  $("about").textContent = "A key has only ASCII letters, digits and signs. Copy it again, without hidden characters.";
  $("about").classList.add("bad");
});
$("key-change").addEventListener("click", askForKey);

// ---- views ----

/** Show the view that the address names, as far as the key may. */
async function enter() {
  const allowed = VIEWS.filter(({ name }) => !state.may.length || state.may.includes(NEEDS[name]));
  current = allowed.find(({ name }) => location.hash === `#${name}`)
    ?? (location.hash && allowed.includes(current) ? current : allowed[0]);
  for (const { name, form } of VIEWS) {
    form.hidden = name !== current.name;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === current.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = current.name;
  await current.enter();
}

addEventListener("hashchange", () => {
  if (location.hash && !VIEWS.some(({ name }) => location.hash === `#${name}`)) return;
  enter();
  scrollTo({ top: 0, behavior: "instant" }); // a long answer was scrolled to: the views stay in sight
});

// ---- dropping and pasting, anywhere on the page ----

function take(files) {
  if (document.querySelector("dialog[open]")) return;
  if (current.take) current.take(files);
  else say("Go to Search or Add to drop images.", true);
}

const zone = () => current.form.querySelector(".drop");
for (const kind of ["dragover", "dragenter"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); zone()?.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) zone()?.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  zone()?.classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    take(event.clipboardData.files);
  }
});

document.querySelectorAll(".zone").forEach((element) => {
  element.textContent = `Times are in the zone ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`;
});
connect();
