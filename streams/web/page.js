// Keeps the page live: puts the values that /live sends into the slots of page.html (see page.py), always as text.
"use strict";

const ATTRIBUTES = ["class", "href", "value", "title", "d", "aria-label", "aria-sort", "aria-current"];
const SILENCE_MS = 15000;
const RETRY_MS = 3000;
const TYPING_MS = 250;

const find = document.getElementById("find");
const lists = [...document.querySelectorAll("[data-list]")];
const slots = [...document.querySelectorAll("body *")].filter((element) => !element.parentElement.closest("[data-list]"));
let source, watchdog, typing;

function fill(element, values) {
  const { dataset } = element;
  if ("text" in dataset && element.textContent !== values[dataset.text]) element.textContent = values[dataset.text];
  for (const name of ATTRIBUTES) {
    const slot = element.getAttribute("data-" + name);
    if (slot === null) continue;
    const value = values[slot];
    if (value === null) element.removeAttribute(name);
    else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
}

function fillList(list, items) {
  const [template, ...lines] = list.children;
  for (const line of lines.slice(items.length)) line.remove();
  items.forEach((values, number) => {
    const line = lines[number] ?? list.appendChild(template.content.firstElementChild.cloneNode(true));
    for (const element of [line, ...line.querySelectorAll("*")]) fill(element, values);
  });
}

function show(values) {
  for (const element of slots) fill(element, values);
  for (const list of lists) fillList(list, values[list.dataset.list]);
}

function tell(text) {
  const state = document.getElementById("state");
  state.className = "bad";
  state.textContent = text;
}

// Many pages may be open: one that nobody sees asks for nothing.
function connect() {
  clearTimeout(watchdog);
  source?.close();
  if (document.hidden) return;
  source = new EventSource("/live" + location.search);
  const heard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, SILENCE_MS);
  };
  const lost = () => {
    tell("the worker does not answer; these are the last figures");
    clearTimeout(watchdog);
    source.close();
    watchdog = setTimeout(connect, RETRY_MS);
  };
  source.addEventListener("message", (event) => { heard(); show(JSON.parse(event.data)); });
  source.addEventListener("alive", heard);
  source.addEventListener("error", lost);
  heard();
}

function go(address) {
  history.pushState(null, "", address);
  connect();
}

function search() {
  go("?" + new URLSearchParams(new FormData(document.getElementById("form"))));
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-href]");
  if (!link?.hasAttribute("href") || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
document.getElementById("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
find.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(search, TYPING_MS); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== find && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    find.select();
  } else if (event.key === "Escape" && event.target === find && find.value) {
    event.preventDefault();
    find.value = "";
    search();
  }
});
window.addEventListener("popstate", () => {
  find.value = new URLSearchParams(location.search).get("find") ?? "";
  connect();
});
document.addEventListener("visibilitychange", connect);
connect();
