// Asks for the figures once a second and writes them as text: nothing that a campaign is called can become markup.
"use strict";

const byId = (id) => document.getElementById(id);
const count = (value) => (value === undefined || value === null ? "" : value.toLocaleString("en"));
const percent = (value) => (value === undefined || value === null ? "" : (value * 100).toFixed(2) + "%");
const money = (value) => (value === undefined || value === null ? "" : value.toFixed(3));
let selected = new URLSearchParams(location.search).get("window");

function row(cells, tag = "td") {
  const line = document.createElement("tr");
  for (const text of cells) {
    const cell = document.createElement(tag);
    cell.textContent = text;
    line.append(cell);
  }
  return line;
}

function campaignRow(campaign) {
  const shown = campaign.windows[selected] || {};
  return row([
    campaign.name || campaign.campaign_id,
    campaign.currency,
    count(shown.served),
    count(shown.measurable),
    count(shown.viewable),
    percent(shown.viewable_rate),
    money(shown.cpm),
    money(shown.vcpm),
    percent(shown.viewable_of_served),
    percent(shown.measured_rate),
    count(campaign.total.served),
    campaign.total.spend,
  ]);
}

function eventRows(stream) {
  const outcomes = Object.keys(Object.values(stream.events)[0]);
  const head = row(["Topic", ...outcomes, "pending"], "th");
  const lines = Object.entries(stream.events).map(([topic, events]) =>
    row([topic, ...outcomes.map((outcome) => count(events[outcome])), count(stream.pending[topic])]));
  return [head, ...lines];
}

function showState(stream) {
  const state = byId("state");
  state.className = stream.not_ready.length ? "bad" : "good";
  state.textContent = stream.not_ready.length
    ? stream.not_ready.join("; ")
    : `live, ${count(stream.lag)} records behind, ${count(stream.remembered)} impressions remembered`;
}

function showWindows(windows) {
  const choice = byId("window");
  if (choice.options.length) return;
  if (!windows.includes(selected)) selected = windows[0];
  choice.append(...windows.map((name) => new Option(name, name, false, name === selected)));
  choice.addEventListener("change", () => { selected = choice.value; update(); });
}

async function update() {
  try {
    const figures = await (await fetch("/api/campaigns")).json();
    showWindows(figures.windows);
    byId("campaigns").replaceChildren(...figures.campaigns.map(campaignRow));
    byId("events").replaceChildren(...eventRows(figures.stream));
    showState(figures.stream);
  } catch {
    byId("state").className = "bad";
    byId("state").textContent = "the worker does not answer";
  }
}

update();
setInterval(update, 1000);
