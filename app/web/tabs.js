// Tabs after the ARIA pattern: the arrows, Home and End select a tab, and Tab reaches only the selected one.

/** Connects the tabs with their panels. The URL's fragment names the panel. Calls `opened(id)` when one is shown. */
export function tabs(list, opened) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const idOf = (tab) => tab.getAttribute("aria-controls");

  function show(id) {
    const chosen = all.find((tab) => idOf(tab) === id) ?? all[0];
    for (const tab of all) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      document.getElementById(idOf(tab)).hidden = !selected;
    }
    opened(idOf(chosen));
    return chosen;
  }

  function go(id) {
    if (location.hash.slice(1) !== id) history.pushState(null, "", `#${id}`);
    return show(id);
  }

  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) go(idOf(tab));
  });
  list.addEventListener("keydown", (event) => {
    const now = all.findIndex((tab) => tab.tabIndex === 0);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    go(idOf(all[(next + all.length) % all.length])).focus();
  });
  addEventListener("popstate", () => show(location.hash.slice(1)));
  addEventListener("hashchange", () => show(location.hash.slice(1)));
  show(location.hash.slice(1));
  return go;
}
