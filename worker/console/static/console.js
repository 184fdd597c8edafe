// Pages work without this. With it, what is marked data-live stays up to date: the page is fetched again every
// data-every seconds while somebody looks at it, and what has changed is put in place of what is there.
"use strict";

(() => {
  const root = document.querySelector("[data-every]");
  if (!root) return;
  const every = Number(root.dataset.every) * 1000;
  let failures = 0;
  let timer;

  // Somebody is about to type there, or has: that is not thrown away.
  const busy = (part) =>
    (part.contains(document.activeElement) && document.activeElement !== part && document.activeElement.matches("input, textarea, select")) ||
    [...part.querySelectorAll("input, textarea")].some((field) => field.value !== field.defaultValue);

  const update = async () => {
    const answer = await fetch(location.href, { headers: { "X-Live": "1" }, credentials: "same-origin" });
    if (answer.redirected || !answer.ok) {
      if (answer.redirected) return location.reload();
      throw new Error(String(answer.status));
    }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const fresh = page.querySelector(`[data-live="${CSS.escape(part.dataset.live)}"]`);
      if (!fresh || busy(part) || fresh.innerHTML === part.innerHTML) continue;
      const open = [...part.querySelectorAll("details")].map((one) => one.open);
      const focused = [...part.querySelectorAll("a, button, summary")].indexOf(document.activeElement);
      part.replaceChildren(...fresh.childNodes);
      part.querySelectorAll("details").forEach((one, n) => { one.open = open[n] ?? one.open; });
      if (focused >= 0) part.querySelectorAll("a, button, summary")[focused]?.focus({ preventScroll: true });
    }
    // A page says by leaving it out that nothing will change any more.
    return page.querySelector("[data-every]") !== null;
  };

  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (document.hidden) return;
      try {
        if ((await update()) === false) return;
        failures = 0;
      } catch {
        failures += 1;
      }
      document.querySelector("[data-stale]").hidden = failures < 2;
      soon();
    }, every * Math.min(2 ** failures, 16));
  };

  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(); });
  soon();
})();
