// Phones: tables that do not fit become one block per row, and long names break after punctuation.
const phone = window.matchMedia("(max-width: 600px)");

function labelCells(table) {
  const heads = [...table.querySelectorAll("thead tr:first-child > *")].map((cell) => cell.textContent.trim());
  for (const row of table.tBodies[0].rows)
    [...row.cells].forEach((cell, i) => {
      for (const node of textNodes(cell)) node.data = node.data.replaceAll(" ± ", "\u00a0±\u00a0");
      if (heads[i]) cell.dataset.label = heads[i];
      if (!cell.textContent.trim() && !cell.querySelector("img")) cell.classList.add("empty");
    });
}

function stackIfTooWide(table) {
  table.classList.remove("stacked");
  const folded = table.closest("details");
  if (folded) folded.open = true;
  if (!phone.matches) return;
  const tooWide = table.offsetWidth > table.parentElement.clientWidth + 1;
  const squeezed = [...table.querySelectorAll("td")].some(
    (cell) => cell.offsetHeight > (cell.offsetWidth < 80 ? 75 : 150) && cell.offsetWidth < 130);
  table.classList.toggle("stacked", tooWide || squeezed);
  if (table.classList.contains("stacked") && table.tBodies[0].rows.length > 10 && isNumeric(table)) fold(table);
}

function isNumeric(table) {
  const cells = [...table.querySelectorAll("td:not(.empty)")];
  return cells.filter((cell) => /^[-−±\d.,\s/%–]+$/.test(cell.textContent)).length > cells.length / 3;
}

function fold(table) {
  const box = table.parentElement;
  if (box.parentElement.tagName !== "DETAILS") {
    const details = document.createElement("details");
    details.innerHTML = `<summary>Table of ${table.tBodies[0].rows.length} rows</summary>`;
    box.replaceWith(details);
    details.append(box);
  }
  box.parentElement.open = false;
}

const textNodes = (block) => {
  const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  return nodes;
};

// Runs of `pattern` may break after punctuation inside them.
function addBreaks(block, pattern) {
  const nodes = textNodes(block);
  const text = nodes.map((node) => node.data).join("");
  const breaks = [...text.matchAll(pattern)].flatMap((run) =>
    [...run[0].matchAll(/(?<=\w)[._](?=\w)|[/(\[,=@](?=["'\w])/g)].map((mark) => run.index + mark.index + 1));
  let start = text.length;
  for (const node of nodes.reverse()) {
    start -= node.data.length;
    while (breaks.length && breaks.at(-1) > start) {
      const rest = node.splitText(breaks.pop() - start);
      rest.parentNode.insertBefore(document.createElement("wbr"), rest);
    }
  }
}

// Options such as --out do not break after their hyphens.
function keepOptions(block) {
  for (const node of textNodes(block))
    for (const option of [...node.data.matchAll(/(?<![\w-])--?[a-z][\w-]{0,24}/g)].reverse()) {
      const span = document.createElement("span");
      span.className = "option";
      node.splitText(option.index + option[0].length);
      span.append(node.splitText(option.index));
      node.after(span);
    }
}

document.addEventListener("DOMContentLoaded", () => {
  const page = document.querySelector(".bd-article");
  if (!page) return;
  document.querySelectorAll((phone.matches ? "table code .pre, " : "") + ".sig-name, .prev-next-title, .bd-sidebar-primary a, .bd-sidebar-secondary .pre")
    .forEach((name) => addBreaks(name, /\S+/g));
  page.querySelectorAll("pre, :not(pre) > code .pre").forEach(keepOptions);
  if (phone.matches)
    for (const code of page.querySelectorAll("pre")) {
      addBreaks(code, /\S{36,}/g);
      for (const node of textNodes(code)) node.data = node.data.replace(/(?<=\S) {3,}$/, "  "); // before aligned comments
    }
  const tables = [...page.querySelectorAll("table")].filter((table) => table.tHead && table.tBodies.length);
  tables.forEach(labelCells);
  const fit = () => tables.forEach(stackIfTooWide);
  fit();
  phone.addEventListener("change", fit);
  window.addEventListener("load", () => {
    fit(); // fonts may change widths
    for (const figure of page.querySelectorAll(".cell_output img"))
      figure.classList.toggle("one-panel", figure.naturalWidth < 520);
  });
});
