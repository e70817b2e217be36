// The list of runs, with their totals as they come.
import {link} from "./address.js";
import {agent, ago, count, DASH, el, get, note, number, replace} from "./dom.js";

const known = new Map(); // totals that were shown last, so that a refresh does not blink

export async function showRuns(main, {folder, runs, evaluations, is_current}) {
  const cards = runs.map((run) => card(run, folder));
  replace(main, el("h1", {}, `${runs.length} run${runs.length === 1 ? "" : "s"}`), el("ul", {class: "runs"}, cards.map((each) => each.item)), evaluations.length ? el("h1", {class: "further"}, `${evaluations.length} evaluation${evaluations.length === 1 ? "" : "s"}`) : null,
    evaluations.length ? el("ul", {class: "prompts"}, evaluations.map((name) => el("li", {}, el("a", {href: link({evaluation: name})}, name === "." ? folder.split("/").pop() : name), el("span", {class: "about"}, " responses of its models, side by side")))) : null);
  for (const {run, figures} of cards) { // one after the other: a large run is read for some seconds
    if (run.fault || run.state === "starting") continue;
    try {
      do {
        known.set(run.run, await get("figures", {run: run.run}));
        if (!is_current()) return;
        replace(figures, ...totals(known.get(run.run), run));
      } while (known.get(run.run).share < 1 && run.state !== "running");
    } catch (error) {
      replace(figures, note(error.message, "fault"));
    }
  }
}

function card(run, folder) {
  const name = run.run === "." ? folder.split("/").pop() : run.run;
  const figures = el("div", {class: "figures"}, known.has(run.run) ? totals(known.get(run.run), run) : "");
  const title = run.fault ? el("span", {}, name) : el("a", {href: link({run: run.run, view: "plays"})}, name);
  const about = [run.search, run.budget && `budget ${run.budget}${run.adaptive ? " on average" : ""}`, run.num_prompts !== undefined && `${count(run.num_prompts)} prompts`];
  const facts = el("p", {class: "about"}, about.filter(Boolean).join(" · "));
  const head = el("div", {class: "head"}, el("h2", {}, title), el("span", {class: `state ${run.state}`}, run.state));
  const body = run.fault ? [note(run.fault, "fault")] : [facts, figures];
  return {run, figures, item: el("li", {class: "card"}, head, body)};
}

function totals(all, run) {
  const share = all.total ? Math.min(1, all.scored / all.total) : 0;
  const bar = el("progress", {value: share, max: 1, "aria-label": "scored plays of the budget"});
  const done = run.state === "finished" ? `${count(all.scored)} scored plays` : `${count(all.scored)} of ${count(all.total)} plays (${Math.floor(100 * share)} %)`;
  const facts = [
    ["mean reward", number(all.mean_reward)], ["mean best", number(all.mean_best)],
    ["failed", count(all.failed)], ["tokens", count(all.tokens)], ["cost", all.cost === null ? DASH : number(all.cost, 2)],
    ...(all.rate === null ? [] : [["plays/s", number(all.rate, 1)]]), ...(all.last === null ? [] : [["last play", ago(all.last)]]),
  ];
  const reading = all.share < 1 ? el("p", {class: "note"}, `Reading: these figures are those of the first ${Math.floor(100 * all.share)} % of the plays.`) : null;
  const names = all.agents.map((each) => each.name);
  return [
    el("p", {class: "done"}, bar, done), reading,
    el("dl", {}, facts.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)))),
    el("ul", {class: "agents"}, all.agents.map((each) => el("li", {}, agent(names, each.name), ` ${count(each.scored)} plays, mean ${number(each.mean_reward)}${each.failed ? `, ${count(each.failed)} failed` : ""}`))),
  ];
}
