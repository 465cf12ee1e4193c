// The part of Markdown that models write, made into DOM nodes. Text only ever becomes text nodes, so nothing a model
// writes can become markup; links are http(s) alone. `MarkdownView` re-renders only the blocks that changed, because
// a streamed answer grows at its end.

const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[\s\S]*?[^\s])?)\*\*|\*([^\s*](?:[^*]*?[^\s*])?)\*|~~([^~]+)~~|\[([^\]\n]+)\]\(([^\s()]+(?:\([^\s()]*\))?)\)|(https?:\/\/[^\s<>()]+[^\s<>().,;:!?'"])/;
const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ROW = /^\s*\|.*\|\s*$/;
const ROW_RULE = /^\s*\|(?:\s*:?-+:?\s*\|)+\s*$/;

/** Shows Markdown in an element and keeps up with a text that grows. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  /** Shows the text. */
  show(text) {
    const blocks = splitBlocks(text);
    let same = 0;
    while (same < blocks.length && same < this.sources.length && blocks[same].source === this.sources[same]) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    for (const block of blocks.slice(same)) this.element.append(renderBlock(block));
    this.sources = blocks.map((block) => block.source);
  }
}

function splitBlocks(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const start = at;
    const kind = blockKind(lines, at);
    at = blockEnd(kind, lines, at);
    const own = lines.slice(start, at);
    const isOpen = kind === "code" && (own.length < 2 || !closes(own[0], own.at(-1)));
    blocks.push({ kind, lines: own, isOpen, source: `${kind}${isOpen}\n${own.join("\n")}` });
  }
  return blocks;
}

function blockKind(lines, at) {
  const line = lines[at];
  if (line.trim() === "<think>" || line.startsWith("<think>")) return "think";
  if (FENCE.test(line)) return "code";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (ITEM.test(line)) return "list";
  if (/^ {0,3}>/.test(line)) return "quote";
  if (ROW.test(line) && ROW_RULE.test(lines[at + 1] ?? "")) return "table";
  return "paragraph";
}

function closes(opening, line) {
  const mark = FENCE.exec(opening)[1];
  return new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`).test(line);
}

function blockEnd(kind, lines, start) {
  let at = start + 1;
  const goesOn = {
    think: () => !lines[at - 1].includes("</think>"),
    code: () => at - 1 === start || !closes(lines[start], lines[at - 1]),
    heading: () => false,
    rule: () => false,
    list: () => (lines[at].trim() ? ITEM.test(lines[at]) || /^\s{2,}/.test(lines[at]) : listResumes(lines, at)),
    quote: () => /^ {0,3}>/.test(lines[at]),
    table: () => ROW.test(lines[at]),
    paragraph: () => lines[at].trim() && blockKind(lines, at) === "paragraph",
  }[kind];
  while (at < lines.length && goesOn()) at += 1;
  return at;
}

function listResumes(lines, at) {
  const next = lines.slice(at).find((line) => line.trim());
  return next !== undefined && (ITEM.test(next) || /^\s{2,}\S/.test(next)) && !FENCE.test(next);
}

function renderBlock(block) {
  const { kind, lines } = block;
  switch (kind) {
    case "think": return renderThought(lines);
    case "code": return renderCode(block);
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      return withInline(element(`h${Math.min(marks.length + 2, 6)}`), text);
    }
    case "rule": return element("hr");
    case "list": return renderList(lines);
    case "quote": {
      const quote = element("blockquote");
      new MarkdownView(quote).show(lines.map((line) => line.replace(/^ {0,3}> ?/, "")).join("\n"));
      return quote;
    }
    case "table": return renderTable(lines);
    default: return withInline(element("p"), lines.join("\n"));
  }
}

function renderThought(lines) {
  const text = lines.join("\n").replace("<think>", "");
  const [thought, rest = ""] = text.split("</think>");
  const box = element("details", "thought");
  const summary = element("summary");
  summary.textContent = text.includes("</think>") ? "Thoughts" : "Thinking";
  const body = element("div");
  new MarkdownView(body).show(thought.trim());
  box.append(summary, body);
  if (!rest.trim()) return box;
  const both = element("div");
  const answer = element("div");
  new MarkdownView(answer).show(rest);
  both.append(box, ...answer.childNodes);
  return both;
}

function renderCode({ lines, isOpen }) {
  const language = FENCE.exec(lines[0])[2];
  const figure = element("figure", "code");
  const caption = element("figcaption");
  const name = element("span");
  name.textContent = language || "text";
  const copy = element("button", "copy");
  copy.type = "button";
  copy.dataset.copy = "code";
  copy.textContent = "Copy";
  caption.append(name, copy);
  const code = element("code");
  code.textContent = lines.slice(1, isOpen ? undefined : -1).join("\n");
  const pre = element("pre");
  pre.tabIndex = 0;
  pre.append(code);
  figure.append(caption, pre);
  return figure;
}

function renderList(lines) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const list = element(/\d/.test(marker) ? "ol" : "ul");
  if (/\d/.test(marker)) list.start = Number.parseInt(marker, 10);
  let own = [];
  const flush = () => {
    if (!own.length) return;
    const item = element("li");
    const [first, ...rest] = own;
    const nested = rest.findIndex((line) => ITEM.test(line) || FENCE.test(line.trimStart()));
    const text = [first, ...(nested < 0 ? rest : rest.slice(0, nested))].map((line) => line.trim()).filter(Boolean);
    withInline(item, text.join("\n"));
    if (nested >= 0) {
      const inner = element("div");
      new MarkdownView(inner).show(outdent(rest.slice(nested)));
      item.append(...inner.childNodes);
    }
    list.append(item);
    own = [];
  };
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= indent.length) {
      flush();
      own = [match[3]];
    } else {
      own.push(line);
    }
  }
  flush();
  return list;
}

function outdent(lines) {
  const indents = lines.filter((line) => line.trim()).map((line) => line.length - line.trimStart().length);
  const least = Math.min(...indents);
  return lines.map((line) => line.slice(least)).join("\n");
}

function renderTable(lines) {
  const cells = (line) => line.trim().slice(1, -1).split("|").map((cell) => cell.trim());
  const table = element("table");
  const row = (line, tag) => {
    const tr = element("tr");
    for (const cell of cells(line)) tr.append(withInline(element(tag), cell));
    return tr;
  };
  const head = element("thead");
  head.append(row(lines[0], "th"));
  const body = element("tbody");
  for (const line of lines.slice(2)) body.append(row(line, "td"));
  table.append(head, body);
  const frame = element("div", "table");
  frame.append(table);
  return frame;
}

function withInline(parent, text) {
  let rest = text;
  for (let match = INLINE.exec(rest); match; match = INLINE.exec(rest)) {
    parent.append(...plain(rest.slice(0, match.index)));
    parent.append(inlineNode(match));
    rest = rest.slice(match.index + match[0].length);
  }
  parent.append(...plain(rest));
  return parent;
}

function inlineNode([, , code, strong, emphasis, struck, label, target, address]) {
  if (code !== undefined) return withText(element("code"), code.trim());
  if (strong !== undefined) return withInline(element("strong"), strong);
  if (emphasis !== undefined) return withInline(element("em"), emphasis);
  if (struck !== undefined) return withInline(element("del"), struck);
  if (address !== undefined) return link(address, document.createTextNode(address));
  if (!/^https?:\/\//i.test(target)) return withText(element("span"), `${label} (${target})`);
  return link(target, withInline(element("span"), label));
}

function link(target, content) {
  const anchor = element("a");
  anchor.href = target;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  anchor.append(content);
  return anchor;
}

function plain(text) {
  return text.split("\n").flatMap((line, number) => (number ? [element("br"), line] : [line])).filter((node) => node !== "");
}

function withText(node, text) {
  node.textContent = text;
  return node;
}

function element(tag, className = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  return node;
}
