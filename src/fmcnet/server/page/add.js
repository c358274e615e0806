// Add: crops that are dropped go into the gallery, one request each, each with its own result.

import { instant } from "./cards.js";
import { askForModality, contentOf, imagesOf, sentName, watchModality } from "./images.js";
import { showList } from "./list.js";
import { $, call, count, make, say, toAnswer } from "./service.js";

const PATIENCE = 5;

/** {file, shown, item, id, said, state}: shown is the address of its image, state "waiting", "added", "there" or "refused". */
let queue = [];
let working = false;
const waiting = () => queue.filter((one) => one.state === "waiting" || one.state === "refused");
const checkModality = watchModality($("add"), $("add-hint"), () => waiting().map((one) => one.file));

export const addView = { name: "add", form: $("add"), take, enter };

async function enter() {
  await showList(null);
  draw();
}

function take(given) {
  const { images, said } = imagesOf(given);
  for (const file of images) {
    const shown = URL.createObjectURL(file);
    const item = make("li", {}, make("img", { src: shown, alt: "", loading: "lazy", decoding: "async" }),
      make("span", { className: "name", textContent: sentName(file) }), make("span"));
    $("add-files").append(item);
    queue.push({ file, shown, item, state: "waiting", said: "not added yet" });
  }
  draw();
  checkModality();
  say(said, Boolean(said));
}

function draw() {
  const due = waiting().length;
  $("add-go").disabled = working || !due;
  $("add-go").textContent = working ? `Adding, ${due} to go…` : due ? `Add ${count(due, "crop")}` : "Add crops";
  $("add-clear").hidden = working || !queue.length;
  for (const one of queue) {
    one.item.lastChild.textContent = one.said;
    one.item.dataset.state = one.state;
  }
}

/** The same file has the same id, so that it is not there twice. Only https and this machine let pages digest. */
async function idOf(content) {
  const bytes = crypto.subtle
    ? new Uint8Array(await crypto.subtle.digest("SHA-256", await content.arrayBuffer()))
    : crypto.getRandomValues(new Uint8Array(16));
  return `upload-${[...bytes.slice(0, 16)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** What holds for all files, as it was when the adding began. */
function fields() {
  const found = { modality: $("add").elements.modality.value, on_duplicate: "skip" };
  for (const name of ["camera", "track"]) {
    if ($(`add-${name}`).value.trim()) found[name] = $(`add-${name}`).value.trim();
  }
  if ($("add-time").value) found.time = instant($("add-time"));
  return found;
}

async function form(one, shared) {
  const content = await contentOf(one.file);
  one.id ??= await idOf(content);
  const data = new FormData();
  data.append("images", content, sentName(one.file));
  data.append("id", one.id);
  data.append("source", `upload:${sentName(one.file)}`); // no path: another file of that name is never shown for it
  for (const [name, value] of Object.entries(shared)) data.append(name, value);
  return data;
}

async function send(one, shared) {
  for (let trial = 1; ; trial++) {
    try {
      const told = await (await call("v1/entries", { method: "POST", body: await form(one, shared) })).json();
      one.state = told.skipped ? "there" : "added";
      one.said = [told.skipped ? "in the gallery already" : "added", ...told.notes].join("; ");
      return true;
    } catch (error) {
      if (error.status === 503 && trial < PATIENCE) { // busy: it asks to come back
        await new Promise((resolve) => setTimeout(resolve, 1000 * trial));
        continue;
      }
      one.state = "refused";
      one.said = `not added: ${error.message}`;
      return ![0, 401, 403, 507].includes(error.status); // these hold for all others, too
    }
  }
}

async function add() {
  if (working || !waiting().length) return;
  if (!$("add").elements.modality.value) {
    askForModality($("add"), $("add-hint"));
    return;
  }
  const due = waiting();
  let shared;
  try {
    shared = fields();
  } catch (error) {
    say(error.message, true);
    return;
  }
  working = true;
  say(`Adding ${count(due.length, "crop")}…`);
  for (const one of due) {
    draw();
    if (!(await send(one, shared))) break;
  }
  working = false;
  draw();
  const number = (state) => due.filter((one) => one.state === state).length;
  const [there, refused, left] = [number("there"), number("refused"), number("waiting")];
  say(`${count(number("added"), "crop")} added` + (there ? `, ${there} in the gallery already` : "")
    + (refused ? `, ${refused} not added` : "") + (left ? `, ${left} not tried` : "") + ".", refused + left > 0);
  document.dispatchEvent(new CustomEvent("changed"));
  toAnswer();
  checkModality();
}

$("add").addEventListener("submit", (event) => { event.preventDefault(); add(); });
$("add-file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
$("add-clear").addEventListener("click", () => {
  queue.forEach((one) => URL.revokeObjectURL(one.shown));
  queue = [];
  $("add-files").replaceChildren();
  draw();
  checkModality();
  say("");
  $("add-file").focus();
});
