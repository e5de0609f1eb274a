"use strict";

// It runs in the head, so that the stored theme is there before anything is drawn; the rest waits for the page.
const THEMES = ["system", "light", "dark"];

// Storage may be forbidden (file://, private windows): then a choice lasts as long as the page.
function stored() {
  try { return localStorage.getItem("atent-theme"); } catch { return null; }
}

function store(theme) {
  try { localStorage.setItem("atent-theme", theme); } catch { /* nothing to do */ }
}

function showTheme(theme, button) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  if (button) button.textContent = `Theme: ${theme}`;
}

let theme = THEMES.includes(stored()) ? stored() : "system";
showTheme(theme);

function wireTheme() {
  const button = document.getElementById("theme");
  showTheme(theme, button);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    showTheme(theme, button);
    store(theme);
  });
}

// Numbers by size, texts by the alphabet; what is missing comes last in either direction.
function compare(one, other, direction) {
  if (one === "" || other === "") return (one === "") - (other === "");
  const numbers = [Number(one), Number(other)];
  const order = numbers.some(Number.isNaN) ? one.localeCompare(other) : numbers[0] - numbers[1];
  return direction === "ascending" ? order : -order;
}

function sort(table, column, direction) {
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value ?? "";
  const rows = [...body.rows].sort((one, other) => compare(value(one), value(other), direction));
  body.append(...rows);
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", direction);
}

// It is seen only: aria-sort says the same to those who listen.
function arrow() {
  const span = document.createElement("span");
  span.ariaHidden = "true";
  span.className = "arrow";
  return span;
}

function wireHeads(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const first = head.dataset.first;
    if (!first) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes, arrow());
    head.append(button);
    button.addEventListener("click", () => {
      const again = head.getAttribute("aria-sort") === first;
      sort(table, column, again ? (first === "ascending" ? "descending" : "ascending") : first);
    });
  });
  table.tHead.rows[0].cells[0].setAttribute("aria-sort", "ascending");
}

// Where the heads do not show, on a phone, one list sorts all tables.
function wireOrder(tables) {
  const order = document.getElementById("order");
  const heads = [...tables[0].tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.dataset.first) order.add(new Option(head.textContent, String(column)));
  });
  order.addEventListener("change", () => {
    for (const table of tables) sort(table, Number(order.value), heads[Number(order.value)].dataset.first);
  });
}

function wireFilters(tables) {
  const form = document.getElementById("filters");
  const [text, chosen, extra, warned] = ["text", "table", "extra", "warned"].map((id) => document.getElementById(id));
  const fits = (row) =>
    text.value.toLowerCase().split(/\s+/).every((word) => row.dataset.text.includes(word)) &&
    (!extra.value || row.dataset.extra === extra.value) &&
    (!warned.value || row.dataset.warned === warned.value);
  const filter = () => {
    let [shown, all] = [0, 0];
    for (const table of tables) {
      const section = table.closest("section");
      const here = !chosen.value || section.id === chosen.value;
      let left = 0;
      for (const row of table.tBodies[0].rows) {
        row.hidden = !(here && fits(row));
        left += row.hidden ? 0 : 1;
      }
      section.hidden = left === 0;
      shown += left;
      all += table.tBodies[0].rows.length;
    }
    document.getElementById("count").textContent = `${shown} of ${all} models`;
    document.getElementById("nothing").hidden = shown > 0;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  form.hidden = false;
  filter();
}

document.addEventListener("DOMContentLoaded", () => {
  wireTheme();
  const tables = [...document.querySelectorAll("table.board")];
  if (!tables.length) return;
  tables.forEach(wireHeads);
  wireOrder(tables);
  wireFilters(tables);
});
