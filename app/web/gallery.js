// All answers: their cards, a summary that filters them, and files to keep.

import { answerCard } from "./answer.js";
import { html } from "./elements.js";
import { csv, json, save } from "./export.js";
import { inWords, stateOf } from "./outcome.js";

const MAX_LARGE_CARDS = 6; // more are shown compactly

/**
 * Fills `list` with cards, the newest first, and `summary` if there are several; `head` is shown with any card.
 * `options` are those of a card. Returns {add(files), again(), clear()}.
 */
export function gallery({ list, head, summary }, { announce, ...options }) {
  let cards = [];
  let chosen = "All";
  const buttons = new Map(); // by the name of what they show
  const filters = html("div", { class: "filters", role: "group", "aria-label": "Show" });
  const coming = html("p", { class: "hint" });
  const keep = html(
    "div",
    { class: "keep" },
    html("button", { type: "button", class: "quiet", click: () => save("answers.csv", csv(ended())) }, "Save as CSV"),
    html(
      "button",
      { type: "button", class: "quiet", click: () => save("answers.json", json(ended())) },
      "Save as JSON",
    ),
  );
  summary.append(filters, keep, coming);

  const outcomes = () => cards.map((card) => card.outcome());
  const ended = () => outcomes().filter(({ state }) => state !== "busy");

  function add(files) {
    const changed = () => {
      update();
      tell(added);
    };
    const added = files.map((file) => {
      const removed = () => {
        cards = cards.filter((each) => each !== card);
        update();
      };
      const card = answerCard(file, { ...options, announce, changed, removed });
      return card;
    });
    cards = [...added, ...cards];
    chosen = "All";
    list.prepend(...added.map(({ item }) => item));
    update();
    for (const card of added) card.run();
    added[0].item.scrollIntoView({ block: "nearest" });
  }

  /** Tells screen readers what several images brought, once all have ended. */
  function tell(added) {
    if (added.length > 1 && added.every((card) => card.outcome().state !== "busy")) announce(inWords(outcomes()));
  }

  /** Classifies the images again, with other settings. What is no image stays none. */
  function again() {
    for (const card of cards) {
      const { state, failure } = card.outcome();
      if (state !== "failed" || failure.code === "invalid_parameter") card.run();
    }
  }

  function clear() {
    for (const card of [...cards]) card.dismiss();
  }

  function update() {
    const all = outcomes();
    const groups = grouped(all);
    const busy = all.filter(({ state }) => state === "busy").length;
    if (!groups.has(chosen) && busy === 0) chosen = "All"; // what is classified again may come back
    const shown = groups.get(chosen) ?? all;
    for (const card of cards) card.item.hidden = !shown.includes(card.outcome());
    head.hidden = all.length === 0;
    summary.hidden = all.length < 2;
    list.classList.toggle("compact", all.length > MAX_LARGE_CARDS);
    keep.hidden = busy === all.length;
    coming.textContent = busy ? `${busy} of ${all.length} are still to come.` : "";
    const focused = document.activeElement;
    filters.replaceChildren(...[...groups].map(([name, members]) => filter(name, members.length)));
    if (filters.contains(focused)) focused.focus(); // what is moved loses the focus
  }

  function filter(name, number) {
    if (!buttons.has(name))
      buttons.set(name, html("button", { type: "button", class: "quiet", click: () => choose(name) }));
    const button = buttons.get(name);
    button.setAttribute("aria-pressed", String(name === chosen));
    button.textContent = `${name} ${number}`;
    return button;
  }

  function choose(name) {
    chosen = name === chosen ? "All" : name;
    update();
  }

  return { add, again, clear };
}

/** What can be shown, by name: all, what needs a look, and each class, the most frequent first. */
function grouped(outcomes) {
  const groups = new Map([["All", outcomes]]);
  for (const state of ["unsure", "abstained", "failed"]) {
    const members = outcomes.filter((outcome) => stateOf(outcome) === state);
    if (members.length) groups.set(state[0].toUpperCase() + state.slice(1), members);
  }
  const classes = Map.groupBy(
    outcomes.filter(({ state }) => state === "answered"),
    ({ answer }) => answer.predictions[0].label,
  );
  const byNumber = [...classes].sort(([one, a], [two, b]) => b.length - a.length || one.localeCompare(two));
  return new Map([...groups, ...byNumber]);
}
