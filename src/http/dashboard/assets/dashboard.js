"use strict";
// Copy buttons and live updates. Pages work without this script.

for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Over plain http scripts have no clipboard: select the text instead.
      getSelection().selectAllChildren(source);
      if (!document.execCommand("copy")) return;
      getSelection().removeAllRanges();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}

// The server ends a stream when the session ends or switches to another workspace: reload the page.
// The delay prevents fast reload loops.
function reloadWhenClosed(source) {
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
  });
}

// The server sends HTML, already escaped.
for (const part of document.querySelectorAll("[data-live]")) {
  const verdict = document.querySelector("[data-verdict]");
  const source = new EventSource(part.dataset.live);
  source.addEventListener("message", (event) => {
    const focused = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
    part.innerHTML = event.data;
    // Keep the keyboard focus.
    if (focused) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
    const text = part.querySelector("[data-verdict-text] strong")?.textContent ?? "";
    if (verdict && verdict.textContent !== text) verdict.textContent = text;
  });
  source.addEventListener("error", () => part.classList.add("stale"));
  source.addEventListener("open", () => part.classList.remove("stale"));
  source.addEventListener("over", () => { source.close(); location.reload(); });
  reloadWhenClosed(source);
}

// The live audit log: the server sends rows as HTML. Existing rows glide down instead of jumping.
const MAX_ROWS = 200;
for (const log of document.querySelectorAll("[data-log]")) {
  const state = document.querySelector("[data-live-state]");
  const below = document.querySelectorAll("[data-below-log]");
  const source = new EventSource(log.dataset.log);
  const show = (isLive) => {
    state.classList.remove("waits");
    state.classList.toggle("off", !isLive);
    state.textContent = isLive ? "live" : "reconnecting";
  };
  source.addEventListener("open", () => show(true));
  source.addEventListener("error", () => show(false));
  let [waiting, isMoving] = [[], false];
  const next = () => {
    if (isMoving || !waiting.length) return;
    isMoving = true;
    requestAnimationFrame(insert);
  };
  source.addEventListener("message", (event) => {
    if (event.data) waiting.push(event.data);
    // Hidden windows get no animation frames.
    if (waiting.length > MAX_ROWS) waiting.shift();
    next();
  });
  reloadWhenClosed(source);
  function insert() {
    for (const text of document.querySelectorAll("[data-when-empty]")) text.hidden = true;
    for (const table of document.querySelectorAll("[data-when-filled]")) table.hidden = false;
    const [first, height] = [log.firstElementChild, log.offsetHeight];
    log.insertAdjacentHTML("afterbegin", waiting.reverse().join(""));
    waiting = [];
    const grown = log.offsetHeight - height;
    for (let row = log.firstElementChild; row !== first; row = row.nextElementSibling) row.classList.add("fresh");
    while (log.childElementCount > MAX_ROWS) log.lastElementChild.remove();
    const isReduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const start = `translateY(${-grown}px)`;
    const glide = (part) => {
      part.style.transform = "";
      return part.animate([{ transform: start }, { transform: "none" }], { duration: isReduced ? 0 : 250, easing: "ease-out" }).finished;
    };
    // Hold rows in place until painted: if busy, an animation may end before its first frame.
    for (const part of [log, ...below]) part.style.transform = start;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      // Queue new rows during the animation: inserting them would make all rows jump.
      Promise.allSettled([log, ...below].map(glide)).then(() => { isMoving = false; next(); });
    }));
  }
}
