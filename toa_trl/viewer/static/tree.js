// The tree of a prompt, and a response beside the drafts that it saw.
import {go, link} from "./address.js";
import {agent, count, el, field, get, input, note, number, paint, replace, svg, text} from "./dom.js";
import {drawTree} from "./drawing.js";

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
  const context = {run, tree, panel, agents: run.agents ?? []};
  const show = (n, drafts, by_hand) => showPlay(context, n, by_hand);
  const view = context.view = drawTree({plays: tree.plays, drawing, canvas, paint: (it, name) => paint(it, context.agents, name), number, show});
  view.select(view.nodes.get(Number(now.play ?? NaN)) ?? view.first, false);
}

function legend(run, tree) {
  const names = [...new Set(tree.plays.map((play) => play.agent))];
  const size = el("span", {}, "larger is a higher rank; ringed is the best; ✕ failed; ◇ aggregate; hollow is a fresh answer");
  return el("p", {class: "legend"}, names.map((name) => agent(run.agents ?? [], name)), size);
}

async function showPlay(context, n, by_hand) {
  const {run, tree, panel, view} = context;
  if (by_hand) history.replaceState(null, "", link({run: run.run, view: "tree", prompt: tree.id, play: n.play}));
  try {
    const play = await get("play", {run: run.run, prompt: tree.id, play: n.play});
    if (view.is_chosen(n)) fill(context, n, play);
  } catch (error) {
    replace(panel, note(error.message, "fault"));
  }
}

function fill({view, panel, agents}, n, play) {
  const kinds = {answer: n.fresh ? "a fresh answer" : "an answer", refine: "a refinement", aggregate: "an aggregate"};
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
const jump = (view, draft) => el("button", {type: "button", class: "plain", onclick: () => view.nodes.has(draft.play) && view.select(view.nodes.get(draft.play), true)}, `play ${draft.play} by ${draft.agent}, reward ${number(draft.reward)}`);
