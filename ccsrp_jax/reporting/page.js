"use strict";
// Tables that are wider than their place say so.
const scrolling = document.querySelectorAll(".scroll");
const mark = (box) => box.classList.toggle("overflows", box.scrollWidth > box.clientWidth + 1);
const watcher = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
scrolling.forEach((box) => watcher.observe(box));

// Columns of tables sort: numbers by value, the largest first; what was not measured comes last.
const NUMBER = /^[+-]?(\d[\d,]*\.?\d*(e[+-]?\d+)?|inf)/i;
function valueOf(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.sort ?? cell.textContent).trim();
  const found = NUMBER.exec(text);
  if (!found) return text === "–" || text === "nan" || text === "" ? null : text.toLowerCase();
  return found[0].toLowerCase().endsWith("inf") ? Infinity : parseFloat(found[0].replace(/,/g, ""));
}
function sort(table, head) {
  const body = table.tBodies[0], column = head.cellIndex;
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  const known = rows.filter(([value]) => value !== null);
  const numeric = known.every(([value]) => typeof value === "number");
  const now = head.getAttribute("aria-sort");
  const up = now ? now === "descending" : !numeric;
  const compare = numeric ? (a, b) => a - b : (a, b) => String(a).localeCompare(String(b));
  known.sort(([a], [b]) => (up ? 1 : -1) * compare(a, b));
  body.append(...[...known, ...rows.filter(([value]) => value === null)].map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button"), arrow = document.createElement("span");
    button.type = "button";
    button.append(...head.childNodes);
    arrow.className = "arrow";
    button.insertBefore(arrow, button.querySelector("small"));
    head.append(button);
    button.addEventListener("click", () => sort(table, head));
  }
}

// Methods of the comparison stand out while they are pointed at, and as long as they are pressed.
for (const figure of document.querySelectorAll(".compared")) {
  const buttons = [...figure.querySelectorAll("[data-method]")];
  let pointed = null;
  const show = () => {
    const on = new Set(buttons.filter((b) => b.ariaPressed === "true").map((b) => b.dataset.method));
    if (pointed !== null) on.add(pointed);
    figure.classList.toggle("focus", on.size > 0);
    for (const line of figure.querySelectorAll(".m")) {
      line.classList.toggle("on", on.has(line.getAttribute("data-m")));
    }
    for (const button of buttons) button.classList.toggle("on", on.has(button.dataset.method));
  };
  const point = (method) => () => { pointed = method; show(); };
  for (const button of buttons) {
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, point(button.dataset.method));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, point(null));
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
      show();
    });
  }
  for (const line of figure.querySelectorAll(".m")) {
    line.addEventListener("pointerenter", point(line.getAttribute("data-m")));
    line.addEventListener("pointerleave", point(null));
  }
}
