// A request of the page as code to copy, in several languages, and its answer.

import { hasKey } from "./api.js";
import { copyButton } from "./copy.js";
import { freshId, html } from "./elements.js";

const WRITERS = { curl, Python: python, JavaScript: javascript };

/** The code in a details element. `query` is that of the request, `answer` what it brought. */
export function asCode({ fileName, query, answer, announce }) {
  const address = new URL(`predict?${query}`, document.baseURI).href;
  const code = html("code", {});
  const id = freshId("language");
  const languages = [...Object.keys(WRITERS), "JSON"];
  const choice = html(
    "select",
    { id, change: () => show() },
    languages.map((name) => html("option", {}, name)),
  );
  const copy = copyButton("Copy", {
    text: () => code.textContent,
    copied: () => announce("The code is copied."),
    refused: () => {
      getSelection().selectAllChildren(code);
      announce("The code is selected. Copy it with your keyboard.");
    },
  });
  function show() {
    code.textContent = WRITERS[choice.value]?.(fileName, address) ?? JSON.stringify(answer, null, 2);
  }
  show();
  return html(
    "details",
    { class: "code" },
    html("summary", {}, "As code"),
    html("p", { class: "code-choice" }, html("label", { for: id }, "As"), choice, copy),
    html("pre", {}, code),
  );
}

// In each, the environment variable API_KEY has the key.

function curl(fileName, address) {
  const parts = ["curl", "--data-binary", quoted(`@${fileName}`)];
  if (hasKey()) parts.push("-H", '"Authorization: Bearer $API_KEY"');
  return [...parts, quoted(address)].join(" ");
}

function quoted(word) {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

// A JSON string is also a string of Python and of JavaScript.

function python(fileName, address) {
  const key = hasKey() ? `, "Authorization": "Bearer " + os.environ["API_KEY"]` : "";
  return `import json
${hasKey() ? "import os\n" : ""}from pathlib import Path
from urllib.request import Request, urlopen

image = Path(${JSON.stringify(fileName)}).read_bytes()
headers = {"Content-Type": "application/octet-stream"${key}}
with urlopen(Request(${JSON.stringify(address)}, image, headers)) as response:
    print(json.load(response))`;
}

function javascript(fileName, address) {
  const key = hasKey() ? '\n  headers: { Authorization: "Bearer " + process.env.API_KEY },' : "";
  return `import { readFile } from "node:fs/promises";

const response = await fetch(${JSON.stringify(address)}, {
  method: "POST",
  body: await readFile(${JSON.stringify(fileName)}),${key}
});
console.log(await response.json());`;
}
