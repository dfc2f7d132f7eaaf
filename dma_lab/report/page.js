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
