// Pairs for a review: chosen and rejected side by side, with marks that are kept beside the run.
import {go, link} from "./address.js";
import {agent, count, el, field, get, note, number, put, replace, select, text} from "./dom.js";

const ORDERS = [["margin", "smallest margin first"], ["margin down", "largest margin first"], ["length down", "longest chosen first"], ["longer down", "chosen is longest against rejected"], ["prompt", "by prompt"]];
const MARKS = [["", "all pairs"], ["none", "without a mark"], ["accept", "accepted"], ["reject", "rejected"], ["edit", "edited"]];
const KEYS = {a: "accept", r: "reject", e: "edit"};

export async function showPairs(main, {run, now, is_current}) {
  if (main.dataset.view === `pairs ${location.search}` && main.querySelector(".pair")) return; // marks in progress
  const page = await get("pairs", {run: run.run, sort: now.sort, descending: now.descending, mark: now.mark, after: now.after});
  if (!is_current()) return;
  main.dataset.view = `pairs ${location.search}`;
  const status = el("p", {class: "count", role: "status"});
  const tell = (marks) => { status.textContent = [page.total === null ? null : `${count(page.total)} pairs`, ...[["accept", "accepted"], ["reject", "rejected"], ["edit", "edited"]].map(([mark, word]) => `${marks[mark] ?? 0} ${word}`)].filter(Boolean).join(" · "); };
  tell(page.marks);
  const to = (changes) => link({run: run.run, view: "pairs", sort: now.sort, descending: now.descending, mark: now.mark, ...changes});
  const pages = el("p", {class: "pages"}, now.after ? el("a", {class: "button", href: to({})}, "First page") : null, page.next ? el("a", {class: "button", rel: "next", href: to({after: page.next})}, "Next page") : null);
  const none = page.total === null && !now.mark ? `This run has no pairs yet: they are written at its end, or by toa-trl data.` : "No pair is marked so.";
  const hint = el("p", {class: "note"}, "A rejected pair is left out, and an edited response is used, by toa-trl data. Keys on a pair: a accept, r reject, e edit, j and k next and previous.");
  const pairs = page.pairs.map((pair) => card(run, pair, tell));
  replace(main, el("h1", {}, "Pairs"), form(run, now), status, pairs.length ? [hint, ...pairs] : note(none), pages);
}

function form(run, now) {
  const order = select("order", `${now.sort ?? "margin"}${now.descending === "true" ? " down" : ""}`, ORDERS), mark = select("mark", now.mark, MARKS);
  const change = () => { const [sort, down] = order.value.split(" "); go({run: run.run, view: "pairs", sort, descending: down ? "true" : "", mark: mark.value}); };
  return el("form", {class: "inline", onchange: change, onsubmit: (event) => event.preventDefault()}, field("order", order), field("marks", mark));
}

function card(run, pair, tell) {
  const last = pair.messages.at(-1)?.[1] ?? "", margin = number(pair.chosen.reward - pair.rejected.reward);
  const buttons = el("div", {class: "buttons"}), columns = el("div", {class: "columns"}), fault = el("div", {role: "alert"});
  const head = el("div", {class: "bar"}, el("h2", {}, el("a", {href: link({run: run.run, view: "tree", prompt: pair.prompt})}, pair.prompt), el("small", {class: "about"}, ` margin ${margin}`)), buttons);
  const item = el("article", {class: "card pair", tabindex: 0, "aria-label": `pair of ${pair.prompt}`}, head, el("details", {class: "asked"}, el("summary", {}, last.length > 140 ? `${last.slice(0, 140)}…` : last), pair.messages.map(([role, content]) => el("div", {class: "turn"}, el("b", {}, role), el("div", {class: "text"}, content)))), fault, columns);

  const save = async (mark, texts = {}) => {
    try {
      const {marks} = await put("mark", {run: run.run, prompt: pair.prompt, chosen: pair.chosen.play, rejected: pair.rejected.play, mark, ...texts});
      pair.mark = mark;
      pair.chosen.edited = texts.chosen_text ?? null;
      pair.rejected.edited = texts.rejected_text ?? null;
      replace(fault);
      tell(marks);
      show();
    } catch (error) {
      replace(fault, note(error.message, "fault"));
    }
  };
  const act = (mark) => (mark === "edit" ? edit() : save(pair.mark === mark ? null : mark));
  const show = () => {
    item.dataset.mark = pair.mark ?? "";
    replace(buttons, [["accept", "Accept"], ["reject", "Reject"], ["edit", "Edit"]].map(([mark, title]) => el("button", {type: "button", "aria-pressed": String(pair.mark === mark), onclick: () => act(mark)}, title)), pair.mark === "edit" ? el("button", {type: "button", onclick: () => save(null)}, "Undo edit") : null);
    replace(columns, side("chosen"), side("rejected"));
  };
  const side = (name) => {
    const it = pair[name], shown = it.edited ?? it.response;
    const facts = el("span", {class: "about"}, `play ${it.play}, reward ${number(it.reward)}, ${count(shown.length)} characters${it.edited === null ? "" : ", edited"}`);
    return el("div", {class: name}, el("h3", {}, el("b", {class: "side"}, name), agent(run.agents ?? [], it.agent), facts), text(shown));
  };
  const edit = () => {
    const areas = ["chosen", "rejected"].map((name) => el("textarea", {name, rows: 12, "aria-label": name}));
    areas.forEach((area) => { area.value = pair[area.name].edited ?? pair[area.name].response; });
    const done = () => {
      const changed = areas.filter((area) => area.value !== pair[area.name].response);
      if (changed.length) save("edit", Object.fromEntries(changed.map((area) => [`${area.name}_text`, area.value])));
      else if (pair.mark === "edit") save(null);
      else show();
      item.focus();
    };
    replace(columns, areas.map((area) => el("div", {}, el("h3", {}, area.name), area)));
    replace(buttons, el("button", {type: "button", onclick: done}, "Save"), el("button", {type: "button", onclick: () => { show(); item.focus(); }}, "Cancel"));
    areas[0].focus();
  };
  item.addEventListener("keydown", (event) => {
    if (event.target !== item || event.ctrlKey || event.metaKey || event.altKey) return;
    const other = {j: item.nextElementSibling, k: item.previousElementSibling}[event.key];
    if (KEYS[event.key] || other) event.preventDefault();
    if (KEYS[event.key]) act(KEYS[event.key]);
    if (other?.matches(".pair")) { other.focus(); other.scrollIntoView({block: "nearest"}); }
  });
  show();
  return item;
}
