// Add: crops that are dropped go into the gallery, one request each, each with its own result.

import { askForModality, imagesOf, watchModality } from "./images.js";
import { showList } from "./list.js";
import { $, call, count, make, say, toAnswer } from "./service.js";

const PATIENCE = 5;

/** {file, said, state}: "waiting", "added", "there" or "refused". */
let queue = [];
let working = false;
const waiting = () => queue.filter((one) => one.state === "waiting" || one.state === "refused");
const checkModality = watchModality($("add"), $("add-hint"), () => waiting().map((one) => one.file));

export const addView = { name: "add", form: $("add"), take, enter };

async function enter() {
  await showList(null);
  draw();
}

export function take(given) {
  const { images, said } = imagesOf(given);
  queue = [...queue, ...images.map((file) => ({ file, state: "waiting", said: "not added yet" }))];
  draw();
  checkModality();
  say(said, Boolean(said));
}

function draw() {
  const due = waiting().length;
  $("add-go").disabled = working || !due;
  $("add-go").textContent = working ? `Adding, ${due} to go…` : due ? `Add ${count(due, "crop")}` : "Add crops";
  $("add-clear").hidden = working || !queue.length;
  $("add-files").replaceChildren(...queue.map((one) => {
    const item = make("li", {}, make("span", { className: "name", textContent: nameOf(one.file) }),
      make("span", { textContent: one.said }));
    item.dataset.state = one.state;
    return item;
  }));
}

const nameOf = (file) => file.name || "pasted.png";

/** The same file has the same id, so that it is not there twice. Browsers digest on https and this machine only. */
async function idOf(file) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return `upload-${[...digest.slice(0, 16)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

async function form(file) {
  const data = new FormData();
  data.append("images", file, nameOf(file));
  data.append("modality", $("add").elements.modality.value);
  data.append("source", `upload:${nameOf(file)}`); // no path: another file of that name is never shown for it
  data.append("on_duplicate", "skip");
  const id = await idOf(file);
  if (id) data.append("id", id);
  for (const field of ["camera", "track"]) {
    if ($(`add-${field}`).value.trim()) data.append(field, $(`add-${field}`).value.trim());
  }
  if ($("add-time").value) data.append("time", new Date($("add-time").value).toISOString());
  return data;
}

async function send(one) {
  for (let trial = 1; ; trial++) {
    try {
      const told = await (await call("v1/entries", { method: "POST", body: await form(one.file) })).json();
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
  working = true;
  say(`Adding ${count(due.length, "crop")}…`);
  for (const one of due) {
    draw();
    if (!(await send(one))) break;
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
  queue = [];
  draw();
  checkModality();
  say("");
  $("add-file").focus();
});
