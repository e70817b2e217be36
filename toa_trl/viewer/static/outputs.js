// Responses of the models of an evaluation to the same prompt, side by side, with what was said about them.
import {go, link} from "./address.js";
import {agent, el, field, get, input, note, number, replace, text} from "./dom.js";

export async function showOutputs(main, {now, is_current}) {
  const page = await get("outputs", {evaluation: now.evaluation, words: now.words, differ: now.differ, after: now.after});
  if (!is_current()) return;
  main.dataset.view = "outputs";
  const to = (changes) => link({evaluation: now.evaluation, words: now.words, differ: now.differ, ...changes});
  const pages = el("p", {class: "pages"}, now.after ? el("a", {class: "button", href: to({})}, "First page") : null, page.next ? el("a", {class: "button", rel: "next", href: to({after: page.next})}, "Next page") : null);
  const status = el("p", {class: "count", role: "status"}, `${page.total.toLocaleString("en")} prompt${page.total === 1 ? "" : "s"}${page.baseline ? `, compared with ${page.baseline}` : ""}`);
  replace(main, el("h1", {}, "Responses side by side"), form(now), status, page.prompts.length ? page.prompts.map((row) => card(page, row)) : note("No prompt matches."), pages);
}

function form(now) {
  const words = input("words", now.words, {type: "search"}), differ = el("input", {type: "checkbox", name: "differ", checked: now.differ === "true"});
  const submit = (event) => { event?.preventDefault(); go({evaluation: now.evaluation, words: words.value, differ: differ.checked ? "true" : ""}); };
  differ.addEventListener("change", () => submit());
  return el("form", {class: "inline", role: "search", onsubmit: submit}, field("prompt or response has", words), el("button", {}, "Find"), el("label", {class: "check"}, differ, el("span", {}, "only where verdicts differ")));
}

function card(page, row) {
  const asked = row.messages.map(([role, content]) => el("div", {class: "turn"}, el("b", {}, role), text(content)));
  const columns = row.responses.map((each) => el("div", {}, el("h3", {}, agent(page.models, each.model), verdicts(page, each)), text(each.text)));
  return el("article", {class: "card pair"}, el("h2", {}, row.id), asked, el("div", {class: "columns"}, columns));
}

function verdicts(page, each) {
  const badge = (content, kind = "") => el("span", {class: `verdict ${kind}`}, content), all = [];
  if (each.model === page.baseline) all.push(badge("baseline"));
  if (each.verifier === 1 || each.verifier === 0) all.push(each.verifier ? badge("✓ right", "good") : badge("✗ wrong", "bad"));
  else if (typeof each.verifier === "number") all.push(badge(`verifier ${number(each.verifier)}`));
  if (typeof each.judge === "number") all.push(each.judge > .5 ? badge("judge: wins", "good") : each.judge < .5 ? badge("judge: loses", "bad") : badge("judge: tie"));
  if (typeof each.reward === "number") all.push(badge(`reward ${number(each.reward)}`));
  if (each.finish_reason === "length") all.push(badge("cut short", "bad"));
  return all;
}
