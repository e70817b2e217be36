// Plays in a table that sorts and filters; every page is one query.
import {go, link} from "./address.js";
import {agent, count, DASH, el, field, get, input, note, number, replace, select} from "./dom.js";

const FILTERS = ["prompt", "agent", "kind", "depth", "finish", "state", "error", "min_reward", "max_reward", "min_tokens", "max_tokens"];
const COLUMNS = [["prompt", "prompt"], ["", "play"], ["agent", "agent"], ["kind", "kind"], ["depth", "depth"], ["reward", "reward"], ["tokens", "tokens"], ["finish", "finish"], ["", "response"]];
const DOWN_FIRST = ["reward", "tokens", "depth", "written"];
let counted = {};

export async function showPlays(main, {run, now, is_current}) {
  const asked = Object.fromEntries(FILTERS.filter((name) => now[name]).map((name) => [name, now[name]]));
  const sort = now.sort ?? (run.state === "running" ? "written" : "prompt");
  const descending = now.descending ? now.descending === "true" : sort === "written";
  if (main.dataset.view !== `plays ${JSON.stringify({...now, after: ""})}`) {
    replace(main, el("h1", {}, "Plays"), form(run, now), el("p", {class: "count", role: "status"}), el("div", {class: "results"}, note("Loading …")));
    main.dataset.view = `plays ${JSON.stringify({...now, after: ""})}`;
  }
  const [status, results] = main.querySelectorAll(".count, .results");
  results.setAttribute("aria-busy", "true");
  let page;
  try {
    page = await get("plays", {run: run.run, ...asked, sort, descending, after: now.after});
  } catch (error) {
    if (is_current()) replace(results, note(error.message, "fault"));
    return;
  } finally {
    results.removeAttribute("aria-busy");
  }
  if (!is_current()) return;
  const text = JSON.stringify(page);
  if (results.dataset.shown !== text) replace(results, ...table(run, now, page, sort, descending));
  results.dataset.shown = text;
  tell(status, run, asked);
}

async function tell(status, run, asked) {
  const key = JSON.stringify([run.run, asked]);
  if (counted.key === key) status.textContent = counted.text;
  if (counted.key === key && run.state !== "running") return;
  try {
    const {count: plays} = await get("count", {run: run.run, ...asked});
    counted = {key, text: `${plays.toLocaleString("en")} play${plays === 1 ? "" : "s"}${Object.keys(asked).length ? " match" : ""}${run.state === "running" ? ", live" : ""}`};
  } catch {
    counted = {key, text: "too many plays to count"};
  }
  status.textContent = counted.text;
}

function form(run, now) {
  const options = (names, all) => [["", all], ...names.map((name) => [name, name])];
  const range = (name, step) => ["min", "max"].map((end) => field(`${name} ${end === "min" ? "from" : "to"}`, input(`${end}_${name}`, now[`${end}_${name}`], {type: "number", step})));
  const controls = [
    field("prompt: id or words", input("prompt", now.prompt, {type: "search"})),
    field("agent", select("agent", now.agent, options(run.agents ?? [], "all agents"))),
    field("kind", select("kind", now.kind, options(["answer", "refine", "aggregate"], "all kinds"))),
    field("depth", input("depth", now.depth, {type: "number", min: 0})),
    field("result", select("state", now.state, [["", "scored and failed"], ["scored", "scored"], ["failed", "failed"]])),
    field("finish", select("finish", now.finish, options(["stop", "length"], "any reason"))),
    field("error has", input("error", now.error, {type: "search"})),
    ...range("reward", "any"), ...range("tokens", 1),
  ];
  const submit = (event) => {
    event?.preventDefault();
    const given = Object.fromEntries(new FormData(filters));
    go({run: run.run, view: "plays", ...given, sort: now.sort, descending: now.descending});
  };
  const clear = el("a", {class: "button", href: link({run: run.run, view: "plays", sort: now.sort, descending: now.descending})}, "Clear");
  const filters = el("form", {class: "filters", role: "search", onsubmit: submit}, controls, el("div", {class: "buttons"}, el("button", {}, "Filter"), clear));
  filters.addEventListener("change", (event) => event.target.matches("select") && submit());
  const used = FILTERS.filter((name) => now[name]).length;
  return el("details", {class: "filter-box", open: used > 0 || matchMedia("(min-width: 60rem)").matches}, el("summary", {}, used ? `Filters (${used})` : "Filters"), filters);
}

function table(run, now, page, sort, descending) {
  if (!page.plays.length) return [note("No play matches these filters.")];
  const heads = COLUMNS.map(([key, title]) => {
    if (!key) return el("th", {scope: "col"}, title);
    const is_on = key === sort, down = is_on ? !descending : DOWN_FIRST.includes(key);
    const anchor = el("a", {href: link({...now, sort: key, descending: down, after: ""})}, title, is_on ? el("span", {class: "way", "aria-hidden": true}, descending ? " ↓" : " ↑") : null);
    return el("th", {scope: "col", "aria-sort": is_on ? (descending ? "descending" : "ascending") : null}, anchor);
  });
  const rows = page.plays.map((play) => {
    const to = link({run: run.run, view: "tree", prompt: play.prompt_id, play: play.play});
    const is_scored = play.reward !== null;
    const cells = {
      prompt: el("a", {href: to}, play.prompt_id), play: play.play, agent: agent(run.agents ?? [], play.agent), kind: play.kind, depth: play.depth,
      reward: is_scored ? number(play.reward) : "failed", tokens: count(play.completion_tokens), finish: play.finish_reason ?? DASH, response: el("div", {class: "excerpt"}, play.text || "(empty)"),
    };
    return el("tr", {class: is_scored ? null : "failed"}, COLUMNS.map(([, title]) => el("td", {class: `c-${title}`, "data-label": title}, cells[title])));
  });
  const orders = [["prompt", "prompt order", false], ["written", "newest first", true], ["reward", "best first", true]];
  const shortcuts = el("p", {class: "orders"}, "Order: ", orders.map(([key, title, down]) => el("a", {href: link({...now, sort: key, descending: down, after: ""}), "aria-current": key === sort && down === descending ? "true" : null}, title)));
  const pages = el("p", {class: "pages"}, now.after ? el("a", {class: "button", href: link({...now, after: ""})}, "First page") : null, page.next ? el("a", {class: "button", rel: "next", href: link({...now, sort, descending, after: page.next})}, "Next page") : null);
  return [shortcuts, el("div", {class: "scroll"}, el("table", {class: "plays"}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows))), pages];
}
