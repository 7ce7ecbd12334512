// Appended to a page by browser_test.py: looks at what was rendered and posts it to the frame's page.
(() => {
  const errors = [];
  addEventListener("error", (event) => errors.push(String(event.message)));

  // A mark that shows data: in the legend, too, but a figure has marks beyond its legend's.
  const shows = (mark) => {
    const box = mark.getBBox();
    return box.width + box.height > 0;
  };
  const marksOf = (svg) => [...svg.querySelectorAll("[data-tip], path.line, rect.cell")].filter(shows);

  const name = (svg) => svg.getAttribute("aria-label");

  const outside = (svg) => {
    const view = svg.viewBox.baseVal;
    return [...svg.querySelectorAll("text, [data-tip]")].filter((element) => {
      const box = element.getBoundingClientRect();
      const all = svg.getBoundingClientRect();
      const slack = all.width / view.width;
      return box.left < all.left - slack || box.right > all.right + slack ||
        box.top < all.top - slack || box.bottom > all.bottom + slack;
    }).map((element) => `${name(svg)}: ${element.textContent || element.dataset.tip}`);
  };

  // Boxes of text are higher than its letters.
  const overlapping = (svg) => {
    const texts = [...svg.querySelectorAll("text")].filter((text) => !text.hasAttribute("transform"));
    const boxes = texts.map((text) => text.getBBox());
    const found = [];
    for (let i = 0; i < boxes.length; ++i) {
      for (let j = i + 1; j < boxes.length; ++j) {
        const [a, b] = [boxes[i], boxes[j]];
        const across = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
        const down = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
        if (across > 1 && down > 5) {
          found.push(`${name(svg)}: ${texts[i].textContent} | ${texts[j].textContent}`);
        }
      }
    }
    return found;
  };

  const channels = (color) => color.match(/[\d.]+/g).slice(0, 3).map(Number);
  const luminance = (color) => channels(color).map((value) => {
    const part = value / 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const style = (selector) => getComputedStyle(document.querySelector(selector));
  const contrast = () => {
    const [ink, paper] = [luminance(style("body").color), luminance(style("body").backgroundColor)];
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const theme = () => (luminance(style("body").backgroundColor) > 0.5 ? "light" : "dark");

  addEventListener("load", () => {
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
    const drawings = [...document.querySelectorAll("figure svg")];
    const figures = [...document.querySelectorAll("figure")];
    const empty = drawings.filter((svg) => marksOf(svg).length < 3).map(name);
    figures.forEach((figure) => {
      if (!figure.querySelector("svg") || !figure.querySelector("tbody tr")) empty.push(figure.id);
    });
    const seen = {
      figures: figures.length,
      empty,
      outside: drawings.flatMap(outside),
      overlapping: drawings.flatMap(overlapping),
      pageWidth: document.documentElement.scrollWidth,
      theme: theme(),
      contrast: contrast(),
      steps: [0, 1, 2, 3, 4, 5, 6, 7, 8].map((step) => style(`rect.h${step}`).fill),
    };
    const mark = document.querySelector("[data-tip]");
    mark.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 50, clientY: 50 }));
    const tip = document.getElementById("tip");
    seen.tip = tip.hidden ? "" : tip.textContent;
    document.getElementById("theme").click();
    seen.themeAfterClick = theme();
    seen.contrastAfterClick = contrast();
    document.getElementById("theme").click();
    parent.postMessage(JSON.stringify({ ...seen, errors }), "*");
  });
})();
