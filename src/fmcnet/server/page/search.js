// Search: the query's images, the filters, the answer.

import { instant } from "./cards.js";
import { askForModality, contentOf, imagesOf, sentName, watchModality } from "./images.js";
import { CropList, listOf, showList } from "./list.js";
import { $, call, count, isolated, isPhone, make, say, state, toAnswer } from "./service.js";

const MOST_HITS = 120;

let files = [];
let asking = null;
let list = null;
const checkModality = watchModality($("ask"), $("modality-hint"), () => files);

export const searchView = { name: "search", form: $("ask"), take, enter: () => showList(list), ready };

// ---- the query ----

function take(given) {
  const { images, said } = imagesOf(given, (state.gallery?.images_at_once ?? 64) - files.length);
  files = [...files, ...images];
  drawPreviews();
  say(said, Boolean(said));
}

function drawPreviews() {
  const box = $("previews");
  box.querySelectorAll("img").forEach((image) => URL.revokeObjectURL(image.src));
  box.replaceChildren(
    ...files.map((file, at) => {
      const image = make("img", { src: URL.createObjectURL(file), alt: `Query image ${at + 1}: ${isolated(file.name || "pasted")}` });
      const away = make("button", { type: "button", textContent: "×" });
      away.setAttribute("aria-label", `Take query image ${at + 1} away`);
      away.addEventListener("click", () => {
        files.splice(at, 1);
        drawPreviews();
        $("file").focus();
      });
      const item = make("div", {}, image, away);
      item.setAttribute("role", "listitem");
      return item;
    }),
  );
  $("drop").classList.toggle("has", files.length > 0);
  $("file-label").textContent = files.length ? "Add another image of this person" : "Choose images";
  ready();
  checkModality();
}

function ready() {
  $("go").disabled = !files.length || !state.gallery;
  $("least-label").hidden = !state.gallery?.calibrated;
}

// ---- filters ----

export function addCamera(name, checked = false) {
  const there = [...$("camera-list").querySelectorAll("input")].find((box) => box.value === name);
  if (there) {
    there.checked = there.checked || checked;
    return;
  }
  const box = make("input", { type: "checkbox", value: name, checked });
  $("camera-list").append(make("label", {}, box, make("span", { textContent: name })));
  $("camera-names").append(make("option", { value: name }));
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

async function question() {
  const form = new FormData();
  form.append("modality", $("ask").elements.modality.value);
  form.append("top", Math.min(MOST_HITS, state.gallery.top_at_most));
  chosenCameras().forEach((name) => form.append("camera", name));
  for (const id of ["since", "until"]) {
    if ($(id).value) form.append(id, instant($(id)));
  }
  if ($("entry-modality").value) form.append("entry_modality", $("entry-modality").value);
  if ($("group").value) form.append("group", $("group").value);
  if (Number($("least").value)) form.append("min_probability", Number($("least").value) / 100);
  for (const file of [...files]) form.append("images", await contentOf(file), sentName(file)); // last: fields may change meanwhile
  return form;
}

// ---- the answer ----

async function search() {
  if ($("go").disabled) return;
  if (!$("ask").elements.modality.value) {
    askForModality($("ask"), $("modality-hint"));
    return;
  }
  asking?.abort();
  const mine = (asking = new AbortController());
  say("Searching…");
  document.body.classList.add("busy");
  const asked = { group: $("group").value, least: $("least").value };
  const isShown = () => document.body.dataset.view === searchView.name; // another view keeps its own list
  try {
    const reply = await call("v1/search", { method: "POST", body: await question(), signal: mine.signal });
    list = answerList(await reply.json(), asked);
    if (!isShown()) return;
    if (isPhone()) $("filters").open = false;
    await showList(list);
    toAnswer();
  } catch (error) {
    if (mine.signal.aborted) return;
    list = new CropList({ said: error.message, bad: true });
    if (isShown()) await showList(list);
  } finally {
    if (asking === mine) document.body.classList.remove("busy");
  }
}

function answerList(answer, { group, least }) {
  const hits = answer.groups.length ? answer.groups.map(ofGroup) : answer.hits;
  hits.forEach((hit) => hit.camera && addCamera(hit.camera));
  const words = { track: ["track"], pid: ["person"] }[group] ?? ["crop"];
  const nearest = hits.length === 1 ? `The nearest ${words[0]}` : `The ${hits.length} nearest ${words[0]}s`;
  const said = hits.length ? `${nearest}, of ${answer.compared.toLocaleString()} compared, most similar first.`
    : answer.compared ? `No match: none of ${count(answer.compared, "crop")} reaches the least probability of ${least} %.`
      : "No crop of the gallery passes the filters.";
  return listOf(hits, { said, notes: answer.notes, ranked: true });
}

/** The best crop of a track or person, with what ranks the group. */
const ofGroup = ({ matches, similarity, probability, pooled }) => ({ ...matches[0], similarity, probability, pooled });

// ---- what the visitor does ----

$("ask").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
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
countFilters();
