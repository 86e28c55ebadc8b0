// Keys: whatever has data-key="m" is clicked when m is pressed, or focused if it is a field; "g l" is two keys after each other.
// Everything works without this file, by mouse or Tab.
"use strict";
(() => {
  const MOVES = {j: 1, k: -1, ArrowDown: 1, ArrowUp: -1};
  const FIELDS = "input:not([type=file]), textarea, select";
  let prefix = "", timer = 0;

  // a key inside a row counts only while the row has the focus
  const find = (key, row) => [...document.querySelectorAll("[data-key]")]
    .find(each => each.dataset.key === key && (!each.closest("[data-row]") || each.closest("[data-row]") === row));
  const rows = () => [...document.querySelectorAll("[data-row]")];
  const showHelp = show => { const help = document.getElementById("keys"); if (help) help.open = show ?? !help.open; };

  function move(step) {
    const all = rows(), at = all.findIndex(row => row.contains(document.activeElement));
    const row = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step))];
    row?.querySelector("a").focus();
    row?.scrollIntoView({block: "nearest"});
  }

  function press(key) {
    const row = rows().find(each => each.contains(document.activeElement));
    const found = key === "l" && row ? row.querySelector("a") : find(key, row);
    if (!found) return false;
    found.closest("details.who")?.setAttribute("open", "");
    if (found.matches(FIELDS)) { found.focus(); found.select?.(); } else found.click();
    return true;
  }

  document.addEventListener("keydown", event => {
    const key = event.key, target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (target.matches(FIELDS)) {
      const leaves = key === "Escape" || (key === "Enter" && target.matches("textarea") && !event.shiftKey);
      if (leaves) { event.preventDefault(); target.blur(); target.closest("[data-row]")?.querySelector("a").focus(); }
      return;
    }
    if (key === "Escape") { showHelp(false); return; }
    if (key === "Enter" && target !== document.body && target.id !== "main") return;  // the browser opens what has the focus
    if (key in MOVES) {
      if (rows().length && !(key.startsWith("Arrow") && !rows().some(row => row.contains(target)))) { event.preventDefault(); move(MOVES[key]); }
      return;
    }
    if (event.repeat) return;
    clearTimeout(timer);
    const wanted = prefix ? `${prefix} ${key}` : key;
    prefix = "";
    if (wanted === "g") { prefix = "g"; timer = setTimeout(() => { prefix = ""; }, 1500); return; }
    if (wanted === "?") { event.preventDefault(); showHelp(); return; }
    if (press(wanted)) event.preventDefault();
  });

  // a frame that was clicked keeps the keys: take them back when the pointer moves elsewhere
  document.addEventListener("mousemove", event => {
    const holder = document.activeElement;
    if (holder?.matches("iframe") && event.target !== holder) holder.blur();
  });
  document.addEventListener("click", event => { if (event.target.closest(".help")) showHelp(); });

  // a server that is gone must not look like a decision that was made
  function complain() {
    if (document.getElementById("offline")) return;
    const notice = Object.assign(document.createElement("p"), {id: "offline", className: "notice", role: "alert"});
    notice.textContent = "The server does not answer. What you did last may not be recorded: repeat it when the server is back.";
    document.getElementById("main").prepend(notice);
  }
  for (const kind of ["htmx:sendError", "htmx:timeout"]) document.addEventListener(kind, complain);
  document.addEventListener("htmx:afterRequest", event => { if (event.detail.successful) document.getElementById("offline")?.remove(); });

  const ready = () => {
    document.getElementById("keys")?.classList.add("has-keys");
    document.querySelectorAll(".help").forEach(each => { each.hidden = false; });
  };
  document.addEventListener("htmx:afterSettle", event => {
    ready();
    const main = document.getElementById("main");  // unless a key has chosen something on it already
    if (event.detail.target.id === "main" && !main.contains(document.activeElement)) main.focus({preventScroll: true});
  });
  ready();
})();
