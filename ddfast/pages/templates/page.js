"use strict";
// Charts that zoom (uPlot draws them) and the slider of images.
const specs = JSON.parse(document.getElementById("charts").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const drawn = new Map();

function draw(spec) {
  const place = document.getElementById(`chart-${spec.id}`);
  const axis = { stroke: colour("--text"), grid: { stroke: colour("--line") }, ticks: { stroke: colour("--line") } };
  const series = spec.series.map((line) => ({
    label: line.label, stroke: colour(`--c${line.colour % 6}`), dash: line.colour < 6 ? [] : [6, 4],
    width: 1.5, spanGaps: true, points: { show: spec.x.length < 40 },
  }));
  drawn.get(spec.id)?.destroy();
  drawn.set(spec.id, new uPlot({
    width: place.clientWidth, height: 260,
    scales: { x: { time: false }, y: { distr: spec.log ? 3 : 1 } },
    axes: [{ ...axis, label: "iteration" }, { ...axis, label: spec.unit, size: 70 }],
    series: [{ label: "iteration" }, ...series],
  }, [spec.x, ...spec.series.map((line) => line.values)], place));
}

function zoom(spec, move) {
  const chart = drawn.get(spec.id), first = spec.x[0], last = spec.x[spec.x.length - 1];
  const { min, max } = chart.scales.x;
  const middle = (min + max) / 2, half = (max - min) / 2;
  const ranges = {
    in: [middle - half / 2, middle + half / 2], out: [middle - 2 * half, middle + 2 * half],
    earlier: [min - half, max - half], later: [min + half, max + half], all: [first, last],
  };
  const [low, high] = ranges[move];
  const width = Math.min(high - low, last - first), start = Math.max(first, Math.min(low, last - width));
  chart.setScale("x", { min: start, max: start + width });
}

for (const spec of specs) {
  draw(spec);
  const controls = document.getElementById(`controls-${spec.id}`);
  controls.querySelectorAll("button").forEach((button) =>
    button.addEventListener("click", () => zoom(spec, button.dataset.zoom)));
  controls.querySelector("input")?.addEventListener("change", (event) => {
    spec.log = event.target.checked;
    draw(spec);
  });
}
const again = () => specs.forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
addEventListener("resize", again);

const slider = document.getElementById("iteration");
if (slider) {
  const pictures = document.querySelectorAll("#pictures img"), said = document.getElementById("shown");
  const play = document.getElementById("play");
  let timer = 0;
  const show = () => {
    pictures.forEach((picture, n) => { picture.hidden = n !== Number(slider.value); });
    const words = `iteration ${pictures[slider.value].dataset.iteration}`;
    said.textContent = words;
    slider.setAttribute("aria-valuetext", words);
  };
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    play.textContent = "Stop";
    if (slider.value === slider.max) { slider.value = 0; show(); }
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) { stop(); }
    }, 400);
  });
  show();
}
