// plotly.js and the figures travel compressed; they are unpacked here, and every figure is drawn.
const unpack = async (element) => {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};
const drawAll = async () => {
  const library = document.createElement("script");
  library.textContent = await unpack(document.getElementById("plotly"));
  document.head.append(library);
  const figures = JSON.parse(await unpack(document.getElementById("figures")));
  const narrow = window.matchMedia("(max-width: 40rem)").matches;
  for (const [slug, figure] of Object.entries(figures)) {
    // A finger that drags over a figure scrolls the page; a mouse zooms.
    if (narrow) Object.assign(figure.layout, { dragmode: false, font: { ...figure.layout.font, size: 11 } });
    const plot = document.getElementById(`plot-${slug}`);
    plot.style.height = `${figure.layout.height}px`;
    await Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  }
  document.body.dataset.drawn = "yes";
};
drawAll().catch((error) => {
  for (const plot of document.querySelectorAll(".plot")) {
    plot.textContent = "This browser cannot draw the figure; it lies beside this page as SVG and PNG.";
  }
  console.error(error);
});

// A click on a column's head sorts by it: upwards, downwards, and as it was. Numbers sort as numbers, intervals by the
// estimate before them, rungs by size; what is no number comes last.
const numberIn = (text) => {
  if (text.startsWith("never")) return Infinity;
  const found = text.replaceAll(",", "").match(/^[~[]?([+-]?\d+(\.\d+)?(e[+-]?\d+)?)/);
  return found ? Number(found[1]) : NaN;
};
const sortBy = (head) => {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  table.given ??= [...body.rows];
  const next = { null: "ascending", ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  table.toggleAttribute("data-sorted", next !== null);
  if (next === null) return body.append(...table.given);
  head.setAttribute("aria-sort", next);
  const texts = new Map(table.given.map((row) => [row, row.cells[column].textContent]));
  const firsts = [...new Set(texts.values())];
  const sign = next === "ascending" ? 1 : -1;
  const compare = {
    number: (a, b) => (isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : a === b ? 0 : sign * (a < b ? -1 : 1)),
    text: (a, b) => sign * a.localeCompare(b, "en", { numeric: true }),
  };
  const isText = head.classList.contains("left") && !("given" in head.dataset);
  const keyOf = isText ? (text) => text : "given" in head.dataset ? (text) => firsts.indexOf(text) : numberIn;
  const keys = new Map([...texts].map(([row, text]) => [row, keyOf(text)]));
  body.append(...[...table.given].sort((a, b) => compare[isText ? "text" : "number"](keys.get(a), keys.get(b))));
};
document.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (head) sortBy(head);
});
