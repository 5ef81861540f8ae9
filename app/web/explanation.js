// The activation map of an answer. On demand it replaces the picture.

import { explain } from "./api.js";
import { freshId, html } from "./elements.js";
import { explainFailure } from "./faults.js";
import { explainQuery } from "./settings.js";

/** A toggle for the map, and options with the choice of a class. The map replaces the content of `figure`. */
export function explanation({ file, predictions, figure, signal, announce }) {
  const map = html("img", { class: "map", alt: "", hidden: true });
  figure.append(map);
  const choiceId = freshId("class");
  const choice = html(
    "select",
    { id: choiceId, change: () => show() },
    predictions.map(({ label, class_id }) => html("option", { value: class_id }, label)),
  );
  const note = html("p", { class: "fault", hidden: true });
  const options = html(
    "div",
    { class: "map-options", hidden: true },
    html("label", { for: choiceId }, "Evidence for"),
    choice,
    html("span", { class: "scale", "aria-hidden": "true" }),
    html(
      "p",
      { class: "hint" },
      "Yellow marks the strongest evidence, dark blue none. The map is coarse: it shows regions, not outlines.",
    ),
    note,
  );
  const toggle = html(
    "button",
    { type: "button", class: "quiet", "aria-pressed": "false", click: () => switchTo(!on()) },
    "Where it looks",
  );
  const on = () => toggle.getAttribute("aria-pressed") === "true";
  let address = null;
  let lastRequest = 0;

  function switchTo(wanted) {
    toggle.setAttribute("aria-pressed", String(wanted));
    options.hidden = !wanted;
    showMap(wanted && address !== null);
    if (wanted) show();
  }

  // Beside the map, the figure holds the picture, or a question mark if the browser cannot show the picture.
  function showMap(visible) {
    for (const child of figure.children) child.hidden = (child === map) !== visible;
  }

  async function show() {
    const label = choice.selectedOptions[0].text;
    lastRequest += 1;
    const request = lastRequest;
    note.hidden = true;
    toggle.setAttribute("aria-busy", "true");
    try {
      const drawn = await explain(file, explainQuery(choice.value), { signal });
      if (request !== lastRequest) return;
      release();
      address = URL.createObjectURL(drawn);
      map.src = address;
      await map.decode();
      map.alt = `Activation map: where the model sees ${label} in ${file.name}`;
      if (on()) showMap(true);
      announce(`The activation map for ${label} is shown.`);
    } catch (failure) {
      if (signal.aborted || request !== lastRequest) return;
      const { title } = explainFailure(failure, file);
      note.textContent = title;
      note.hidden = false;
      announce(title);
    } finally {
      toggle.removeAttribute("aria-busy");
    }
  }

  function release() {
    if (address !== null) URL.revokeObjectURL(address);
  }
  signal.addEventListener("abort", () => {
    release();
    showMap(false);
    map.remove();
  });
  return { toggle, options };
}
