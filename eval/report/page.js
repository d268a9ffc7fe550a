"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (tag, text, name) => Object.assign(document.createElement(tag), {textContent: text, className: name ?? ""});

  // --- figures, one after the other, so that the page can be used meanwhile
  const NARROW = 460;
  const fits = (place) => {
    const legend = place.querySelector(".role-legend");
    return !legend || legend.getBoundingClientRect().right <= place.getBoundingClientRect().right + 1;
  };
  const draw = async () => {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const columns = place.clientWidth < NARROW ? 2 : 3; // of the legend; Vega follows the width by itself
      if (place.dataset.columns === String(columns)) continue;
      place.dataset.columns = columns;
      const spec = data.figures[Number(place.dataset.figure)];
      for (spec.config.legend.columns = columns; ; spec.config.legend.columns -= 1) {
        await vegaEmbed(place, spec, {actions: false, renderer: "svg"});
        if (fits(place) || spec.config.legend.columns === 1) break; // with long names, fewer next to each other
      }
      await new Promise((resume) => setTimeout(resume));
    }
    document.documentElement.dataset.drawn = Math.round(performance.now()); // milliseconds since the page began to load
  };

  // --- tables: sorted by a click on a heading, or by Enter or the space bar on it
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number.parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    if ((a === "–") !== (b === "–")) return a === "–" ? 1 : -1; // missing values come last
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b);
  };
  const sort = (table, column) => {
    const heads = table.tHead.rows[0].cells;
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => (ascending || a === "–" || b === "–" ? compare(a, b) : compare(b, a)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = element("button", head.textContent);
      button.type = "button";
      button.addEventListener("click", () => sort(table, column));
      head.replaceChildren(button);
    });
  }

  // --- sliders over checkpoints
  for (const panel of document.querySelectorAll("[data-slider]")) {
    const checkpoints = data.sections[Number(panel.dataset.slider)];
    const [slider, [back, next]] = [panel.querySelector("input"), panel.querySelectorAll("button")];
    const show = () => {
      const place = Number(slider.value);
      const {step, facts, texts} = checkpoints[place];
      const title = `step ${step.toLocaleString("en-US")}`;
      panel.querySelector("output").textContent = title;
      slider.setAttribute("aria-valuetext", title);
      [back.disabled, next.disabled] = [place === 0, place === checkpoints.length - 1];
      const counts = facts.map(([name, value]) => {
        const entry = element("div", "");
        entry.append(element("dt", name), element("dd", value));
        return entry;
      });
      panel.querySelector("dl").replaceChildren(...counts);
      const items = texts.map(({about, text}) => {
        const item = element("li", "");
        item.append(element("p", about, "about"), element("p", text, "text"));
        return item;
      });
      panel.querySelector("ol").replaceChildren(...items);
    };
    const move = (by) => {
      slider.value = Number(slider.value) + by;
      show();
    };
    slider.addEventListener("input", show);
    back.addEventListener("click", () => move(-1));
    next.addEventListener("click", () => move(1));
    panel.hidden = false;
    show();
  }

  draw();
  addEventListener("resize", draw);
}
