// Elements, numbers and requests. Texts of a run go in by textContent alone: HTML in them stays text.
import {query} from "./address.js";

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}
const present = (children) => children.flat().filter((child) => child !== null && child !== undefined);

export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

export const replace = (element, ...children) => element.replaceChildren(...present(children));

// Agents have the colours of the report: by their order in the run.
export function paint(element, agents, name) {
  const index = agents.indexOf(name), colors = Number(getComputedStyle(document.documentElement).getPropertyValue("--colors"));
  element.style.setProperty("--c", index < 0 ? "var(--muted)" : `var(--c${index % colors})`);
  return element;
}
export const agent = (agents, name) => paint(el("span", {class: "agent"}, name), agents, name);

export const DASH = "–";
const minus = (text) => text.replaceAll("-", "−");
export function number(value, digits = 3) {
  if (typeof value !== "number") return DASH;
  if (value !== 0 && (Math.abs(value) >= 1e7 || Math.abs(value) < 1e-3)) return minus(value.toExponential(2));
  return minus(value.toLocaleString("en", {maximumFractionDigits: digits, minimumFractionDigits: Number.isInteger(value) ? 0 : digits}));
}
export function count(value) {
  if (typeof value !== "number") return DASH;
  if (value < 1e5) return value.toLocaleString("en");
  const unit = ["", " k", " M", " G", " T", " P"], power = Math.min(5, Math.floor(Math.log10(value) / 3));
  return `${(value / 1000 ** power).toPrecision(3)}${unit[power]}`;
}
export function ago(unix_s) {
  const s = Math.max(0, Date.now() / 1000 - unix_s);
  const [value, unit] = s < 90 ? [s, "s"] : s < 5400 ? [s / 60, "min"] : s < 172800 ? [s / 3600, "h"] : [s / 86400, "days"];
  return `${Math.round(value)} ${unit} ago`;
}

export async function get(path, parameters = {}) {
  return read(await fetch(`/api/${path}?${query(parameters)}`));
}
export async function put(path, body) {
  const token = document.querySelector("meta[name=token]").content;
  const headers = {"content-type": "application/json", "x-toa-trl-token": token};
  return read(await fetch(`/api/${path}`, {method: "PUT", headers, body: JSON.stringify(body)}));
}
async function read(response) {
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ?? `status ${response.status}`);
  return body;
}

export const note = (text, kind = "") => el("p", {class: `note ${kind}`, role: kind ? "alert" : null}, text);
export const field = (label, control) => el("label", {}, el("span", {}, label), control);
export const input = (name, value, attributes = {}) => el("input", {name, value: value ?? "", autocomplete: "off", ...attributes});
export function select(name, value, options) {
  const known = options.some(([key]) => key === (value ?? ""));
  const given = known ? options : [...options, [value, value]];
  return el("select", {name}, given.map(([key, text]) => el("option", {value: key, selected: key === (value ?? "")}, text)));
}

// A text, or one side of a difference: [sign, text] pairs.
export function text(content, kind = "", side = "") {
  const block = el("div", {class: `text ${kind}`, tabindex: 0});
  if (typeof content === "string") block.append(content === "" ? el("i", {}, "(empty)") : content);
  else for (const [sign, piece] of content) if (sign === "=" || sign === side) block.append(sign === "=" ? piece : el(sign === "-" ? "del" : "ins", {}, piece));
  return block;
}
