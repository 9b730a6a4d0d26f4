"use strict";
// Pages work without this: it copies, and keeps parts of pages up to date.

for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Where there is no clipboard for scripts (plain http), the text is at least marked.
      getSelection().selectAllChildren(source);
      if (!document.execCommand("copy")) return;
      getSelection().removeAllRanges();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}

// A stream that is over for good (the session is, or is in another workspace now): the page says what is so. Not at
// once, and not again and again.
function reloadWhenClosed(source) {
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
  });
}

// What the server sends is what it would have put into the page: made and escaped there.
for (const part of document.querySelectorAll("[data-live]")) {
  const verdict = document.querySelector("[data-verdict]");
  const source = new EventSource(part.dataset.live);
  source.addEventListener("message", (event) => {
    const held = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
    part.innerHTML = event.data;
    // Whoever is on a link by keyboard stays there.
    if (held) part.querySelector(`[href="${CSS.escape(held)}"]`)?.focus();
    const text = part.querySelector("[data-verdict-text] strong")?.textContent ?? "";
    if (verdict && verdict.textContent !== text) verdict.textContent = text;
  });
  source.addEventListener("error", () => part.classList.add("stale"));
  source.addEventListener("open", () => part.classList.remove("stale"));
  source.addEventListener("over", () => { source.close(); location.reload(); });
  reloadWhenClosed(source);
}

// The log as it grows: lines come as the server makes them. What one reads does not jump: it glides.
const MOST_LINES = 200;
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
    // A window that nobody looks at has no frames.
    if (waiting.length > MOST_LINES) waiting.shift();
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
    for (let line = log.firstElementChild; line !== first; line = line.nextElementSibling) line.classList.add("fresh");
    while (log.childElementCount > MOST_LINES) log.lastElementChild.remove();
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const start = `translateY(${-grown}px)`;
    const glide = (part) => {
      part.style.transform = "";
      return part.animate([{ transform: start }, { transform: "none" }], { duration: isStill ? 0 : 250, easing: "ease-out" }).finished;
    };
    // Rows stand where they were until that is painted: on a busy machine an animation may be over before its first frame.
    for (const part of [log, ...below]) part.style.transform = start;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      // New rows wait: inserted during the animation they would make all jump.
      Promise.allSettled([log, ...below].map(glide)).then(() => { isMoving = false; next(); });
    }));
  }
}
