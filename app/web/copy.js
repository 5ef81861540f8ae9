import { html } from "./elements.js";

/**
 * A button that copies `text()`. Calls `copied()`, or `refused()` where the browser does not allow it: access to the
 * clipboard needs HTTPS or localhost.
 */
export function copyButton(name, { text, copied, refused }) {
  const button = html("button", { type: "button", class: "quiet", click: () => copy() }, name);
  async function copy() {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
      copied();
    } catch {
      refused();
    }
  }
  button.addEventListener("blur", () => {
    button.textContent = name;
  });
  return button;
}
