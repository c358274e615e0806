// Image files that the visitor drops, pastes or chooses, and whether they have colours.

import { count, isolated } from "./service.js";

const COLOURED = 4;
const COLOURLESS = 1.5;
const measured = new WeakMap();

/** The images among some files, at most `most`; and a sentence on those that are left out. */
export function imagesOf(files, most = Infinity) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  const others = files.length - images.length;
  const said = [];
  if (others) said.push(`${count(others, "file is", "files are")} left out, being no image.`);
  if (images.length > most) said.push(`${count(images.length - most, "image is", "images are")} left out: at most ${most} at once.`);
  return { images: images.slice(0, most), said: said.join(" ") };
}

/** The name of a file as it is sent; what was pasted has none. */
export const sentName = (file) => file.name || "pasted.png";

/** A file's content, read before it is sent: a request that cannot read it fails as if the service did not answer. */
export async function contentOf(file) {
  try {
    return new Blob([await file.arrayBuffer()], { type: file.type });
  } catch {
    throw new Error(`${isolated(sentName(file))} cannot be read. It was changed or removed after you chose it. Choose it again.`);
  }
}

/**
 * What differs in colour beyond one tint, in grey levels; NaN where the browser cannot read the image.
 * Red and blue against green, less what follows the brightness: about 0 for grey and for evenly tinted infrared.
 * Visible crops of the generated world have 7 and more.
 */
async function measure(file) {
  const width = 32, height = 64;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height });
  } catch {
    return NaN;
  }
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const light = [], red = [], blue = [];
  for (let at = 0; at < data.length; at += 4) {
    light.push((data[at] + data[at + 1] + data[at + 2]) / 3);
    red.push(data[at] - data[at + 1]);
    blue.push(data[at + 2] - data[at + 1]);
  }
  const rest = (one) => covariance(one, one) - covariance(one, light) ** 2 / Math.max(covariance(light, light), 1e-9);
  return Math.sqrt(Math.max(rest(red) + rest(blue), 0));
}

function covariance(one, other) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const first = mean(one), second = mean(other);
  return mean(one.map((value, at) => (value - first) * (other[at] - second)));
}

async function colours(file) {
  if (!measured.has(file)) measured.set(file, measure(file));
  return measured.get(file);
}

/** A hint where the colours of some files contradict a modality; "" where they do not. */
async function contradiction(files, modality) {
  if (!modality || !files.length) return "";
  const found = await Promise.all(files.map(colours));
  const odd = found.filter((value) => (modality === "infrared" ? value > COLOURED : value < COLOURLESS)).length;
  if (!odd) return "";
  const which = files.length === 1 ? "The image" : `${odd} of ${files.length} images`;
  const has = odd === 1 ? "has" : "have";
  return modality === "infrared"
    ? `${which} ${has} colours. Infrared images are grey. Check what you chose.`
    : `${which} ${has} no colours. Check that ${odd === 1 ? "it was" : "they were"} not taken in infrared.`;
}

/** Keep a hint below a choice of modality up to date; returns the function that checks it again. */
export function watchModality(form, hint, files) {
  let latest = 0;
  const check = async () => {
    const mine = ++latest;
    const said = await contradiction(files(), form.elements.modality.value);
    if (mine === latest && hint.textContent !== said) hint.textContent = said;
  };
  form.addEventListener("change", (event) => event.target.name === "modality" && check());
  return check;
}

/** Say that a modality must be chosen, where it is chosen. */
export function askForModality(form, hint) {
  hint.textContent = "Choose first: infrared or visible light.";
  form.querySelector("input[name=modality]").focus();
}
