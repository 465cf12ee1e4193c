// The chat page: owns the conversation, the composer, the settings and what the model's state is.
// Streams come from stream.js, Markdown from markdown.js.

import { MarkdownView } from "./markdown.js";
import { RequestFailed, streamChat } from "./stream.js";

const POLL_READY_MS = 15000;
const POLL_WAITING_MS = 1500;
const NEAR_END_PX = 80;
const SEPARATOR = " · ";
const $ = (id) => document.getElementById(id);

const page = {
  scroll: $("scroll"), log: $("log"), welcome: $("welcome"), jump: $("jump"), announcer: $("announcer"),
  composer: $("composer"), input: $("input"), send: $("send"),
  model: $("model"), modelName: $("model-name"), modelState: $("model-state"),
  settings: $("settings"), system: $("system"), temperature: $("temperature"), temperatureValue: $("temperature-value"),
  maxTokens: $("max-tokens"), apiKey: $("api-key"),
};

const chat = {
  messages: restore("messages", []), // {role, content, stats?}
  running: null, // AbortController of the answer that is being written
  model: null,
};
let followsEnd = true;

// --- small things ---------------------------------------------------------------------------------------------

function restore(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch { /* private mode or full: the page works without */ }
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function make(tag, className, text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function toolButton(name, label, action) {
  const button = make("button", "tool small");
  button.type = "button";
  button.setAttribute("aria-label", label);
  button.title = label;
  button.append(icon(name));
  button.addEventListener("click", () => action(button));
  return button;
}

async function copyText(text, button) {
  await navigator.clipboard.writeText(text);
  const before = [...button.childNodes];
  button.replaceChildren(button.dataset.copy ? "Copied" : icon("check"));
  setTimeout(() => button.replaceChildren(...before), 1500);
}

function scrollToEnd(force = false) {
  if (force) followsEnd = true;
  if (followsEnd) page.scroll.scrollTop = page.scroll.scrollHeight;
}

// --- messages -------------------------------------------------------------------------------------------------

function addMessage(message) {
  const article = make("article", `message ${message.role}`);
  article.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
  const body = make("div", "body");
  article.append(body);
  page.log.append(article);
  page.welcome.hidden = true;
  if (message.role === "user") {
    body.textContent = message.content;
    return { article, show: () => {} };
  }
  const view = new MarkdownView(body);
  view.show(message.content);
  return { article, show: (text) => view.show(text) };
}

function addFooter(article, message) {
  const footer = make("footer", "after");
  footer.append(toolButton("copy", "Copy answer", (button) => copyText(message.content, button)));
  footer.append(toolButton("retry", "Answer again", () => answerAgain(article, message)));
  if (message.stats) footer.append(statsLine(message.stats));
  article.append(footer);
}

function statsLine(text) {
  const line = make("span", "stats");
  text.split(SEPARATOR).forEach((part, number) => line.append(number ? SEPARATOR : "", make("span", "", part)));
  return line;
}

function showError(error, unfinished) {
  const box = make("div", "error");
  box.setAttribute("role", "alert");
  const text = make("div", "error-text");
  text.append(make("strong", "", errorTitle(error)), make("p", "", error.message));
  const retry = make("button", "primary", "Try again");
  retry.type = "button";
  retry.addEventListener("click", () => {
    box.remove();
    unfinished.remove();
    answer();
  });
  box.append(icon("alert"), text, retry);
  page.log.append(box);
  scrollToEnd(true);
  if (error.status === 401) openSettings(page.apiKey);
}

function errorTitle(error) {
  if (error.status === 0) return "No connection";
  if (error.status === 401) return "An API key is needed";
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  if (error.status === 429) return `The server is busy.${wait}`;
  if (error.status === 503) return `The model is not ready.${wait}`;
  return "That did not work";
}

// --- answering ------------------------------------------------------------------------------------------------

function requestBody() {
  const messages = chat.messages.map(({ role, content }) => ({ role, content }));
  const system = page.system.value.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: Number(page.temperature.value),
  };
  const longest = Number.parseInt(page.maxTokens.value, 10);
  if (longest > 0) body.max_completion_tokens = longest;
  return body;
}

async function answer() {
  const conversation = chat.messages;
  const message = { role: "assistant", content: "", stats: "" };
  const { article, show } = addMessage(message);
  const timing = new Timing();
  const controller = new AbortController();
  const draw = onceAFrame(() => {
    show(message.content);
    scrollToEnd();
  });
  article.classList.add("writing");
  setRunning(controller);
  scrollToEnd(true);
  const error = await streamChat(requestBody(), {
    key: page.apiKey.value.trim(),
    signal: controller.signal,
    onChunk: ({ text, tokens, finish }) => {
      message.content += text;
      timing.chunk(tokens, finish);
      page.modelState.textContent = timing.rate() || "writing";
      draw();
    },
  }).catch((caught) => caught);
  setRunning(null);
  pollState();
  if (chat.messages !== conversation) return; // a new chat was begun meanwhile
  article.classList.remove("writing");
  show(message.content);
  finishAnswer(message, article, timing, error);
  keep("messages", chat.messages);
  scrollToEnd();
}

function finishAnswer(message, article, timing, error) {
  const wasStopped = error?.name === "AbortError";
  if (error && !wasStopped) {
    if (!message.content) article.remove();
    showError(error instanceof RequestFailed ? error : new RequestFailed(-1, String(error.message ?? error)), article);
    return;
  }
  message.stats = timing.summary(wasStopped);
  chat.messages.push(message);
  addFooter(article, message);
  page.announcer.textContent = wasStopped ? "Stopped." : "Answer complete.";
}

function onceAFrame(work) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      work();
    });
  };
}

class Timing {
  constructor() {
    this.start = performance.now();
    this.first = null;
    this.last = null;
    this.firstTokens = 0;
    this.tokens = 0;
    this.finish = null;
  }

  chunk(tokens, finish) {
    if (tokens !== null && tokens > this.tokens) {
      this.last = performance.now();
      if (this.first === null) {
        this.first = this.last;
        this.firstTokens = tokens;
      }
      this.tokens = tokens;
    }
    this.finish = finish ?? this.finish;
  }

  rate() {
    const seconds = (this.last - this.first) / 1000;
    return this.first !== null && seconds > 0 ? `${((this.tokens - this.firstTokens) / seconds).toFixed(1)} tokens/s` : "";
  }

  summary(wasStopped) {
    const parts = [];
    if (this.rate()) parts.push(this.rate());
    if (this.first !== null) parts.push(`first token after ${((this.first - this.start) / 1000).toFixed(2)} s`);
    if (this.tokens) parts.push(`${this.tokens} ${this.tokens === 1 ? "token" : "tokens"}`);
    if (wasStopped) parts.push("stopped");
    if (this.finish === "length") parts.push("cut at the length limit");
    return parts.join(SEPARATOR);
  }
}

function answerAgain(article, message) {
  if (chat.running) return;
  const at = chat.messages.indexOf(message);
  chat.messages.length = at;
  while (article.nextSibling) article.nextSibling.remove();
  article.remove();
  keep("messages", chat.messages);
  answer();
}

function setRunning(controller) {
  chat.running = controller;
  const label = controller ? "Stop" : "Send";
  page.send.replaceChildren(icon(controller ? "stop" : "send"));
  page.send.setAttribute("aria-label", label);
  page.send.title = label;
  page.log.setAttribute("aria-busy", String(Boolean(controller)));
  updateSend();
}

function updateSend() {
  page.send.disabled = !chat.running && !page.input.value.trim();
  page.input.style.height = "auto";
  page.input.style.height = `${page.input.scrollHeight}px`;
}

function submit(text) {
  if (chat.running || !text.trim()) return;
  const message = { role: "user", content: text.trim() };
  page.log.querySelectorAll(".error").forEach((box) => box.remove());
  chat.messages.push(message);
  keep("messages", chat.messages);
  addMessage(message);
  page.input.value = "";
  updateSend();
  answer();
}

function newChat() {
  chat.running?.abort();
  chat.messages = [];
  keep("messages", chat.messages);
  page.log.replaceChildren();
  page.welcome.hidden = false;
  page.input.focus();
}

// --- the model's state ----------------------------------------------------------------------------------------

let poll = 0;

async function pollState() {
  clearTimeout(poll);
  let state = { status: "offline" };
  try {
    state = await (await fetch("/ready", { cache: "no-store" })).json();
  } catch { /* stays offline */ }
  chat.model = state.model ?? chat.model;
  page.model.dataset.state = state.status;
  page.modelName.textContent = chat.model ?? "";
  if (!chat.running) page.modelState.textContent = stateText(state);
  document.title = chat.model ? `${chat.model} · Millpond` : "Millpond";
  poll = setTimeout(pollState, state.status === "ready" ? POLL_READY_MS : POLL_WAITING_MS);
}

function stateText(state) {
  if (state.status !== "loading") return state.status;
  return state.stage ? `${state.stage} ${Math.round(100 * (state.fraction ?? 0))}%` : "loading";
}

// --- settings -------------------------------------------------------------------------------------------------

function loadSettings() {
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem("settings")) ?? {};
  } catch { /* nothing saved */ }
  page.system.value = saved.system ?? "";
  page.temperature.value = saved.temperature ?? 0.7;
  page.maxTokens.value = saved.maxTokens ?? "";
  page.apiKey.value = restore("key", "");
  page.temperatureValue.textContent = Number(page.temperature.value).toFixed(2);
}

function saveSettings() {
  page.temperatureValue.textContent = Number(page.temperature.value).toFixed(2);
  keep("key", page.apiKey.value);
  try {
    const { system, temperature, maxTokens } = page;
    const values = { system: system.value, temperature: temperature.value, maxTokens: maxTokens.value };
    localStorage.setItem("settings", JSON.stringify(values));
  } catch { /* not kept then */ }
}

function openSettings(field = null) {
  if (!page.settings.open) page.settings.showModal();
  field?.focus();
}

// --- wiring ---------------------------------------------------------------------------------------------------

page.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.running) chat.running.abort();
  else submit(page.input.value);
});
page.input.addEventListener("input", updateSend);
page.input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(page.input.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chat.running && !page.settings.open) chat.running.abort();
});
page.log.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copyText(button.closest("figure").querySelector("code").textContent, button);
});
page.scroll.addEventListener("scroll", () => {
  const left = page.scroll.scrollHeight - page.scroll.scrollTop - page.scroll.clientHeight;
  followsEnd = left < NEAR_END_PX;
  page.jump.hidden = followsEnd;
}, { passive: true });
page.jump.addEventListener("click", () => scrollToEnd(true));
const keepEnd = new ResizeObserver(() => scrollToEnd());
keepEnd.observe(page.scroll);
keepEnd.observe(page.log);
$("new-chat").addEventListener("click", newChat);
$("open-settings").addEventListener("click", () => openSettings());
$("settings-form").addEventListener("input", saveSettings);
page.settings.addEventListener("click", (event) => {
  if (event.target === page.settings) page.settings.close();
});
for (const idea of document.querySelectorAll(".idea")) {
  idea.addEventListener("click", () => submit(idea.textContent));
}

loadSettings();
for (const message of chat.messages) {
  const { article } = addMessage(message);
  if (message.role === "assistant") addFooter(article, message);
}
updateSend();
scrollToEnd(true);
pollState();
page.input.focus();
