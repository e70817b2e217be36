// The page: its frame, and in it the view that the address names.
import {link, state} from "./address.js";
import {el, get, note, replace} from "./dom.js";
import {showOutputs} from "./outputs.js";
import {showPairs} from "./pairs.js";
import {showPlays} from "./plays.js";
import {showRuns} from "./runs.js";
import {showTree} from "./tree.js";

const VIEWS = {plays: ["Plays", showPlays], tree: ["Prompts", showTree], pairs: ["Pairs", showPairs]};
const POLL_MS = 3000;
let turn = 0, timer;

async function render() {
  const now = state(), own = ++turn, main = document.getElementById("main");
  clearTimeout(timer);
  const view = now.evaluation !== undefined ? "outputs" : now.run === undefined ? "runs" : VIEWS[now.view] ? now.view : "plays";
  const is_current = () => own === turn;
  try {
    const {folder, runs, evaluations} = await get("runs");
    if (!is_current()) return;
    const run = runs.find((each) => each.run === now.run);
    frame(now, view, run, folder);
    if (view === "runs") await showRuns(main, {folder, runs, evaluations, is_current});
    else if (view === "outputs") await showOutputs(main, {now, is_current});
    else if (!run) replace(main, note(`There is no run “${now.run}” in ${folder}.`, "fault"));
    else if (run.fault) replace(main, note(run.fault, "fault"));
    else await VIEWS[view][1](main, {run, now, is_current});
    const is_live = view === "runs" ? runs.some((each) => each.state === "running") : run?.state === "running";
    if (is_current() && is_live) timer = setTimeout(() => document.hidden ? again() : refresh(), POLL_MS);
  } catch (error) {
    if (is_current()) replace(main, note(error instanceof TypeError ? "The viewer does not answer: is it still running?" : error.message, "fault"));
  }
}

// A view that shows a running run is read again; one that is being typed in is left alone.
const again = () => { timer = setTimeout(() => document.hidden ? again() : refresh(), POLL_MS); };
const refresh = () => document.activeElement?.matches("input, textarea, select") ? again() : render();

function frame(now, view, run, folder) {
  const named = now.evaluation ?? now.run, name = named === "." ? folder.split("/").pop() : named;
  document.title = name !== undefined ? `${name} · toa_trl viewer` : "toa_trl viewer";
  replace(document.getElementById("where"), name === undefined ? folder : name);
  const tabs = run && !run.fault ? Object.entries(VIEWS) : [];
  replace(document.getElementById("tabs"), ...tabs.map(([key, [title]]) => el("a", {href: link({run: now.run, view: key}), "aria-current": key === view ? "page" : null}, title)));
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href^='/']");
  if (!anchor || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  history.pushState(null, "", anchor.getAttribute("href"));
  render().then(() => scrollTo(0, 0));
});
addEventListener("popstate", render);
render();
