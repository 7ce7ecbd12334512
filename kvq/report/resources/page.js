(() => {
  "use strict";
  const root = document.documentElement;

  // The theme follows the system until the button says otherwise.
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("kvq-theme"); } catch { return null; } };
  const show = (theme) => {
    if (theme) root.dataset.theme = theme;
    const isDark = (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
    button.textContent = isDark ? "Light theme" : "Dark theme";
    button.dataset.next = isDark ? "light" : "dark";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    show(button.dataset.next);
    try { localStorage.setItem("kvq-theme", root.dataset.theme); } catch { /* not kept */ }
  });
  dark.addEventListener("change", () => show());
  show(stored());

  // What a mark stands for, beside the pointer or the finger.
  const tip = document.getElementById("tip");
  const place = (event) => {
    const mark = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const gap = 12;
    const left = Math.min(event.clientX + gap, innerWidth - tip.offsetWidth - 8);
    const above = event.clientY - tip.offsetHeight - gap;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 8 ? above : event.clientY + gap}px`;
  };
  document.addEventListener("pointermove", place);
  document.addEventListener("pointerdown", place);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
