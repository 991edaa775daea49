// Keeps the page fresh. Everything here is also in the HTML as the server wrote it.
"use strict";

const PERIOD_MS = 1000;
const element = (id) => document.getElementById(id);

function setText(id, text) {
  const node = element(id);
  // Unchanged text is left alone, so that screen readers repeat nothing.
  if (node.textContent !== text) node.textContent = text;
}

function fillRows(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, index) => {
    const row = body.rows[index] || body.insertRow();
    cells.forEach((text, column) => {
      let cell = row.cells[column];
      if (!cell) {
        cell = document.createElement(column ? "td" : "th");
        if (!column) cell.scope = "row";
        row.append(cell);
      }
      if (cell.textContent !== text) cell.textContent = text;
    });
  });
}

function drawChart(id, chart) {
  const figure = element(id);
  const lines = figure.querySelectorAll("path");
  const names = figure.querySelectorAll(".legend span");
  chart.lines.forEach(([name, points], index) => {
    lines[index].setAttribute("d", points);
    names[index].textContent = name;
  });
  figure.querySelector(".top").textContent = chart.top;
}

let shown = "";
async function showPictures(page) {
  const captions = document.querySelectorAll("#figures figcaption");
  if (captions.length === page.pictures.length) {
    page.pictures.forEach((picture, index) => { captions[index].textContent = picture.caption; });
  }
  if (page.picture_version === shown || !page.pictures.length) return;
  const figures = element("figures");
  if (figures.querySelectorAll("img").length !== page.pictures.length) {
    figures.replaceChildren(
      ...page.pictures.map((picture) => {
        const figure = document.createElement("figure");
        const bar = document.createElement("span");
        bar.className = `bar ${picture.palette}`;
        figure.append(document.createElement("img"), bar, document.createElement("figcaption"));
        return figure;
      }),
    );
    setText("pictures-title", page.pictures.length > 1 ? "Object" : "Last frame");
  }
  const version = encodeURIComponent(page.picture_version);
  const loads = page.pictures.map(async (picture, index) => {
    // Decoded before it is shown: no flicker, and no pile of requests behind a slow link.
    const next = new Image();
    next.src = `${picture.path}?frame=${version}`;
    next.alt = picture.alt;
    await next.decode();
    const figure = figures.children[index];
    figure.querySelector("img").replaceWith(next);
    figure.querySelector("figcaption").textContent = picture.caption;
  });
  await Promise.all(loads);
  shown = page.picture_version;
}

async function refresh() {
  try {
    const answer = await fetch("/status.json", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const { page } = await answer.json();
    element("health").dataset.level = page.level;
    setText("state", page.state);
    setText("reason", page.reason);
    setText("error", page.error);
    element("error").hidden = !page.error;
    for (const [id, rows] of Object.entries(page.tables)) fillRows(element(id), rows);
    for (const [id, chart] of Object.entries(page.charts)) drawChart(id, chart);
    await showPictures(page).catch(() => {});
    document.body.dataset.fresh = "yes";
  } catch (error) {
    element("health").dataset.level = "bad";
    setText("state", "no answer");
    setText("reason", `these numbers are old: ${error.message}`);
  }
  // A hidden page asks seldom: whoever leaves it open must not cost the detector anything.
  setTimeout(refresh, document.hidden ? 10 * PERIOD_MS : PERIOD_MS);
}

refresh();
