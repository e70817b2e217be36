// The tree of a prompt, and a response beside the drafts that it saw.
import {agent, count, el, field, get, input, note, number, paint, replace, svg} from "./dom.js";
import {go, link} from "./viewer.js";

const ROOM = 17; // pixels a node takes

export async function showTree(main, context) {
  return context.now.prompt === undefined ? showPrompts(main, context) : showPrompt(main, context);
}

async function showPrompts(main, {run, now, is_current}) {
  const {prompts, next} = await get("prompts", {run: run.run, words: now.words, after: now.after});
  if (!is_current()) return;
  const own = {run: run.run, view: "tree"};
  const items = prompts.map((each) => el("li", {},
    el("a", {href: link({...own, prompt: each.id})}, each.id), " ", el("span", {class: "about"}, `${count(each.plays)} plays, best ${number(each.best)}`),
    el("div", {class: "excerpt"}, each.text)));
  const pages = el("p", {class: "pages"}, now.after ? el("a", {class: "button", href: link({...own, words: now.words})}, "First page") : null, next === null ? null : el("a", {class: "button", rel: "next", href: link({...own, words: now.words, after: next})}, "Next page"));
  const none = now.words ? `No prompt has the words “${now.words}”.` : "This run has no prompts yet.";
  replace(main, el("h1", {}, "Prompts"), search(run, now), items.length ? el("ul", {class: "prompts"}, items) : note(none), pages);
  main.dataset.view = "prompts";
}

function search(run, now) {
  const words = input("words", now.words, {type: "search"});
  const submit = (event) => { event.preventDefault(); go({run: run.run, view: "tree", words: words.value}); };
  return el("form", {class: "inline", role: "search", onsubmit: submit}, field("find a prompt: id or words", words), el("button", {}, "Find"));
}

async function showPrompt(main, {run, now, is_current}) {
  const tree = await get("tree", {run: run.run, prompt: now.prompt});
  const text = JSON.stringify([run.run, tree]);
  if (!is_current() || main.dataset.view === text && document.getElementById("drawing")) return;
  main.dataset.view = text;
  const asked = tree.messages.map(([role, content]) => el("div", {class: "turn"}, el("b", {}, role), el("div", {class: "text"}, content)));
  const further = tree.metadata.map(([key, value]) => el("div", {class: "turn"}, el("b", {}, key), el("div", {class: "text"}, value)));
  const to = (id, title) => id === null ? null : el("a", {class: "button", href: link({run: run.run, view: "tree", prompt: id})}, title);
  const last = tree.messages.at(-1)?.[1] ?? "";
  const drawing = svg("svg", {id: "drawing", role: "tree", "aria-label": "plays of this prompt"});
  const canvas = el("div", {class: "canvas", id: "canvas"}, drawing), panel = el("section", {class: "panel", id: "panel", "aria-live": "polite"});
  const heading = el("div", {class: "bar"}, search(run, {}), el("div", {class: "buttons"}, to(tree.before, "← Previous"), to(tree.after, "Next →")));
  const prompt = el("details", {class: "asked", open: last.length < 400}, el("summary", {}, "The prompt"), asked, further.length ? el("h3", {}, "Further columns") : null, further);
  replace(main, heading, el("h1", {}, tree.id), prompt, legend(run, tree), canvas, panel);
  if (!tree.plays.length) { canvas.replaceWith(note("This prompt has no plays yet.")); return; }
  draw({run, tree, drawing, canvas, panel, wanted: Number(state_play(now))});
}
const state_play = (now) => now.play ?? NaN;

function legend(run, tree) {
  const names = [...new Set(tree.plays.map((play) => play.agent))];
  const size = el("span", {}, "larger is a higher rank; ringed is the best; ✕ failed; ◇ aggregate; hollow is a fresh answer");
  return el("p", {class: "legend"}, names.map((name) => agent(run.agents ?? [], name)), size);
}

// Leaves side by side, in several rows where there are many, and a node in the middle above its children.
function layout(node, next, rows) {
  for (const child of node.children) {
    const gap = child.children.length ? rows - 1 : 0; // so that no leaf of the top row touches it
    child.level = node.level + 1;
    next = layout(child, next + gap, rows) + gap;
  }
  const [first, last] = [node.children[0], node.children.at(-1)];
  node.x = first ? (first.x + last.x) / 2 : next;
  return first ? next : next + 1;
}

function draw(view) {
  const {run, tree, drawing, canvas} = view, root = {children: [], level: -1};
  const nodes = view.nodes = new Map(tree.plays.map((play) => [play.play, {...play, children: [], fresh: play.kind === "answer" && play.parent !== null}]));
  for (const n of nodes.values()) (n.up = nodes.get(n.parent) ?? root).children.push(n);
  const all = [...nodes.values()], room = canvas.clientWidth - 60, leaves = all.filter((n) => !n.children.length).length;
  const rows = Math.max(1, Math.min(6, Math.ceil(leaves * ROOM / room))), slots = Math.max(1, layout(root, 0, rows));
  const step = Math.max(ROOM / rows, Math.min(44, room / slots)), scored = view.scored = all.filter((n) => n.rank).length;
  const level = 48 + rows * 15, y = (d) => 20 + (d + 1) * level;
  for (const n of [root, ...all]) { n.px = 48 + (n.x + .5) * step; n.py = y(n.level) + (n.children.length ? 0 : n.x % rows) * 15; }
  const depth = Math.max(0, ...all.map((n) => n.level)), width = slots * step + 60, height = 20 + Math.max(root.py, ...all.map((n) => n.py));
  for (const [key, value] of Object.entries({width, height, viewBox: `0 0 ${width} ${height}`})) drawing.setAttribute(key, value);
  const winner = all.find((n) => n.rank === 1), best = new Set();
  for (let n = winner; n && n !== root; n = n.up) best.add(n);
  const edges = all.sort((a, b) => best.has(a) - best.has(b)).map((n) => edge(n.up, n, `edge${n.fresh ? " fresh" : ""}${best.has(n) ? " best" : ""}`));
  const axis = Array.from({length: depth + 1}, (_, d) => svg("text", {class: "axis", x: 0, y: y(d) + 4}, d ? String(d) : "depth 0"));
  view.seen = svg("g");
  replace(drawing, ...axis, ...edges, view.seen, svg("circle", {class: "root", cx: root.px, cy: root.py, r: 3.5}), ...all.sort((a, b) => a.play - b.play).map((n) => shape(view, n)));
  drawing.addEventListener("keydown", (event) => walk(view, event));
  select(view, nodes.get(view.wanted) ?? winner ?? all[0], false);
}

const edge = (from, to, kind) => svg("path", {class: kind, d: `M${from.px} ${from.py}C${from.px} ${(from.py + to.py) / 2} ${to.px} ${(from.py + to.py) / 2} ${to.px} ${to.py}`});

function shape(view, n) {
  const label = `play ${n.play}, ${n.kind} by ${n.agent}, ${n.rank ? `reward ${number(n.reward)}` : "failed"}`;
  const r = n.rank ? 3.2 + 4 * (view.scored > 1 ? (view.scored - n.rank) / (view.scored - 1) : 1) : 3.5;
  const body = !n.rank ? svg("path", {class: "failed", d: "M-4-4 4 4M4-4-4 4"})
    : n.kind === "aggregate" ? svg("path", {class: "shape", d: `M0 ${-r - 1}L${r + 1} 0 0 ${r + 1} ${-r - 1} 0z`})
    : svg("circle", {class: n.fresh ? "shape fresh" : "shape", r});
  n.el = svg("g", {class: "node", role: "treeitem", tabindex: -1, "aria-level": n.level + 1, "aria-label": label, "data-play": n.play, transform: `translate(${n.px} ${n.py})`},
    svg("circle", {class: "halo", r: r + 5}), svg("title", {}, label), body, n.rank === 1 ? svg("circle", {class: "ring", r: r + 3}) : null);
  n.el.addEventListener("click", () => select(view, n, true));
  return paint(n.el, view.run.agents ?? [], n.agent);
}

function walk(view, event) {
  const {chosen, nodes} = view, row = [...nodes.values()].filter((n) => n.level === chosen.level).sort((a, b) => a.px - b.px), at = row.indexOf(chosen);
  const to = {ArrowLeft: row[at - 1], ArrowRight: row[at + 1], ArrowUp: chosen.up, ArrowDown: chosen.children[0]}[event.key];
  if (event.key.startsWith("Arrow")) event.preventDefault();
  if (to?.el) select(view, to, true);
}

async function select(view, n, by_hand) {
  const {run, tree, nodes, canvas, panel, seen} = view;
  for (const other of nodes.values()) { other.el.classList.toggle("on", other === n); other.el.setAttribute("tabindex", other === n ? 0 : -1); }
  view.chosen = n;
  if (by_hand) {
    n.el.focus({preventScroll: true});
    history.replaceState(null, "", link({run: run.run, view: "tree", prompt: tree.id, play: n.play}));
  }
  if (n.px < canvas.scrollLeft + 20 || n.px > canvas.scrollLeft + canvas.clientWidth - 20) canvas.scrollLeft = n.px - canvas.clientWidth / 2;
  const drafts = n.refs.map((ref) => nodes.get(ref)).filter(Boolean);
  replace(seen, ...drafts.filter((draft) => draft !== n.up).map((draft) => edge(draft, n, "edge seen")));
  try {
    const play = await get("play", {run: run.run, prompt: tree.id, play: n.play});
    if (view.chosen === n) fill(view, panel, n, play);
  } catch (error) {
    replace(panel, note(error.message, "fault"));
  }
}

function fill(view, panel, n, play) {
  const agents = view.run.agents ?? [], kinds = {answer: n.fresh ? "a fresh answer" : "an answer", refine: "a refinement", aggregate: "an aggregate"};
  const facts = [
    ["reward", n.rank ? number(n.reward) : "none: the play failed"], ...(n.rank ? [["rank", `${n.rank} of ${view.scored}`]] : []),
    ...(n.second_reward === null ? [] : [["held-out reward", number(n.second_reward)]]), ["depth", n.depth],
    ...(n.completion_tokens === null ? [] : [["tokens", `${count(n.prompt_tokens)} read, ${count(n.completion_tokens)} written`]]), ...(n.finish ? [["finish", n.finish]] : []),
  ];
  const own = play.response === null ? text(play.error ?? "no response", "failed-play") : play.error ? [text(play.error, "failed-play"), text(play.response)] : text(play.response);
  const reasoning = play.reasoning ? el("details", {}, el("summary", {}, "Reasoning"), text(play.reasoning)) : null;
  const columns = el("div", {class: "columns"});
  const compare = (draft) => {
    const title = el("h3", {}, play.drafts.length > 1 ? choose(play.drafts, draft, compare) : null, "Draft: ", jump(view, draft));
    const before = draft.diff ? text(draft.diff, "", "-") : text(draft.response), after = draft.diff ? text(draft.diff, "", "+") : own;
    replace(columns, el("div", {}, title, before), el("div", {}, el("h3", {}, "Response"), after, play.error && draft.diff ? text(play.error, "failed-play") : null));
  };
  if (play.drafts.length) compare(play.drafts[0]);
  else replace(columns, el("div", {id: "response"}, el("h3", {}, play.response === null ? "Reason of the failure" : "Response"), own));
  replace(panel, el("h2", {}, `Play ${n.play}: ${kinds[n.kind] ?? n.kind} by `, agent(agents, n.agent)), el("dl", {}, facts.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)))), reasoning, columns);
}

const choose = (drafts, chosen, compare) => el("span", {class: "drafts"}, drafts.map((draft, i) => el("button", {type: "button", "aria-pressed": String(draft === chosen), "aria-label": `draft ${i + 1}`, onclick: () => compare(draft)}, String(i + 1))));
const jump = (view, draft) => el("button", {type: "button", class: "plain", onclick: () => view.nodes.has(draft.play) && select(view, view.nodes.get(draft.play), true)}, `play ${draft.play} by ${draft.agent}, reward ${number(draft.reward)}`);

// A text, or one side of a difference: [sign, text] pairs.
export function text(content, kind = "", side = "") {
  const block = el("div", {class: `text ${kind}`, tabindex: 0});
  if (typeof content === "string") block.append(content === "" ? el("i", {}, "(empty)") : content);
  else for (const [sign, piece] of content) if (sign === "=" || sign === side) block.append(sign === "=" ? piece : el(sign === "-" ? "del" : "ins", {}, piece));
  return block;
}
